"""How the maximum over the erasures is computed: the cheapest way that the filter and the mode allow.

Every way returns what plain enumeration would: the maximum itself (up to the filter's guard band), or an upper bound
that obeys the same law. In this order:

1. A monotone filter: no erasure raises the score, so it is the score of the text.
2. A filter that scores all prefixes in one pass, in a mode whose erasures leave contiguous substrings.
3. A filter that bounds its score over all infusion erasures, in infusion mode, in words.
4. A filter with a cheap upper bound: every erasure is bounded, and scored where the bound leaves room.
5. Any filter: every erasure, cheapest first, duplicates once.
"""

from __future__ import annotations

from collections.abc import Iterator

from promptguard.capabilities import BoundedFilter, InfusionFilter, MonotoneFilter, PrefixFilter, Span, SpanMode
from promptguard.certify.enumeration import Enumerate, Screen
from promptguard.certify.found import Batching, Found, Settings, Way
from promptguard.certify.pieces import Pieces
from promptguard.certify.scoring import infusion_bounds, prefixes_all, score_all
from promptguard.types import EraseMode, Erasure, Filter, Units
from promptguard.view import canonical, prefix_views

_SPAN_CHARS = 8_192  # of the spans that are scored together


def cheapest(filter_: Filter, mode: EraseMode, units: Units, settings: Settings | None = None) -> Way:
    """The cheapest way that is sound for this filter, mode and unit."""
    settings = settings or Settings()
    if isinstance(filter_, MonotoneFilter) and filter_.monotone(mode.kind, units.name):
        return Monotone(filter_, settings)
    if isinstance(filter_, PrefixFilter) and isinstance(mode, SpanMode):
        return Prefixes(filter_, settings)
    if isinstance(filter_, InfusionFilter) and mode.kind == "infusion" and units.name == "word":
        return Infusions(filter_, settings)
    if isinstance(filter_, BoundedFilter):
        return Screen(filter_, settings)
    return Enumerate(filter_, settings)


class Monotone:
    """The score of the text itself is the maximum."""

    limited = False
    how = "no erasure raises this filter's score, so the text itself was scored"

    def __init__(self, filter_: Filter, settings: Settings) -> None:
        self._filter = filter_
        self._settings = settings

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The text once."""
        return len(pieces.text)

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """One call."""
        found = Found()
        for _ in self._settings.pace.batches(found, iter([pieces.text]), _one_call(self.work(pieces, mode))):
            found.calls, found.checks = 1, 1
            found.note(Erasure(0, ()), score_all(self._filter, [canonical(pieces.text)])[0], self._filter)
        return found


class Prefixes:
    """One pass per start scores all ends."""

    limited = False
    how = "all ends of a substring were scored in one pass"

    def __init__(self, filter_: PrefixFilter, settings: Settings) -> None:
        self._filter = filter_
        self._settings = settings

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The longest substring of each start."""
        offsets = pieces.offsets
        return sum(offsets[span.high] - offsets[span.start] for span in _spans(mode, len(pieces)))

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """Score the spans, some at a time, so that memory stays bounded and progress shows."""
        found, n = Found(), len(pieces)
        total = mode.count(n) if self._settings.progress else 0
        offsets = pieces.offsets
        cut = pieces.cut()
        how: Batching[Span] = Batching(
            work=lambda span: offsets[span.high] - offsets[span.start],
            cost=lambda span: span.start,  # starts ascend, and what stands before a start is erased
            first=n,
            most=n,
            full=_SPAN_CHARS,
        )
        for batch in self._settings.pace.batches(found, _spans(mode, n), how):
            self._score(cut, batch, found)
            if self._settings.progress:
                self._settings.progress(found.checks, total)
            if self._settings.early_stop and found.sure:
                break
        return found

    def _score(self, cut: list[str], batch: list[Span], found: Found) -> None:
        n = len(cut)
        views = [prefix_views(cut[span.start : span.high]) for span in batch]
        # Invisible pieces at the end leave the view as it is: the longest of equal prefixes is the cheapest.
        cheapest_ends = [
            {end: span.start + at for at, end in enumerate(ends, 1) if end and span.start + at >= span.low}
            for span, (_, ends) in zip(batch, views, strict=True)
        ]
        filled = [i for i, ends in enumerate(cheapest_ends) if ends]
        scores = prefixes_all(self._filter, [views[i][0] for i in filled], [list(cheapest_ends[i]) for i in filled])
        found.calls += len(filled)
        found.checks += sum(span.high - span.low + 1 for span in batch)
        for i, row in zip(filled, scores, strict=True):
            start = batch[i].start
            for stop, score in zip(cheapest_ends[i].values(), row, strict=True):
                runs = tuple((a, b) for a, b in ((0, start), (stop, n)) if a < b)
                found.note(Erasure(n - (stop - start), runs), score, self._filter)


class Infusions:
    """The filter's own bound over all infusion erasures, budget by budget."""

    limited = False
    how = "the score was bounded over all erasures by dynamic programming over the words' windows"

    def __init__(self, filter_: InfusionFilter, settings: Settings) -> None:
        self._filter = filter_
        self._settings = settings

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The text once per unit of the budget."""
        return len(pieces.text) * (self._budget(len(pieces), mode) + 1)

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """One call; the bounds ascend, so the first one that is flagged is the cheapest."""
        found = Found()
        for _ in self._settings.pace.batches(found, iter([pieces.text]), _one_call(self.work(pieces, mode))):
            words = [word for word in map(canonical, pieces.cut()) if word]
            bounds = infusion_bounds(self._filter, words, self._budget(len(words), mode))
            found.calls, found.checks = 1, len(bounds)
            for cost, bound in enumerate(bounds):
                found.note(Erasure(cost, ()), bound, self._filter)
        return found

    @staticmethod
    def _budget(n: int, mode: EraseMode) -> int:
        return int(min(mode.budget, n))


def _spans(mode: EraseMode, n: int) -> Iterator[Span]:
    return mode.spans(n) if isinstance(mode, SpanMode) else iter(())


def _one_call(work: int) -> Batching[str]:
    """All erasures at once, or none."""
    return Batching(work=lambda _: work, cost=lambda _: 0, first=1, most=1)
