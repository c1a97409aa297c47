"""How the maximum over the erasures is computed: the cheapest way that the filter and the mode allow.

Every way returns what plain enumeration would: the maximum itself (up to the filter's guard band), or an upper bound
that obeys the same law. In this order:

1. A monotone filter: no erasure raises the score, so it is the score of the text.
2. A filter that scores all prefixes in one pass, in a mode whose erasures leave contiguous substrings.
3. A filter that bounds its score over all infusion erasures, in infusion mode, in words.
4. Any filter: every erasure, cheapest first, duplicates once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from promptguard.capabilities import InfusionFilter, MonotoneFilter, PrefixFilter, Span, SpanMode
from promptguard.certify.pieces import Pieces
from promptguard.certify.scoring import infusion_bounds, prefixes_all, score_all
from promptguard.types import EraseMode, Erasure, Filter, Units
from promptguard.view import canonical, prefix_views

_BATCH_CHARS = 65_536
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Found:
    """What is known so far.

    Attributes:
        best: the largest score.
        flagged: the cheapest erasure at or above the threshold.
        sure: the cheapest erasure that is the guard band above it.
        calls: texts that the filter was given.
        checks: scores compared with the threshold.
    """

    best: float = -math.inf
    flagged: Erasure | None = None
    sure: Erasure | None = None
    calls: int = 0
    checks: int = 0

    def note(self, erasure: Erasure, score: float, filter_: Filter) -> None:
        """Remember what a score shows."""
        self.best = max(self.best, score)
        if score >= filter_.threshold and (self.flagged is None or erasure.cost < self.flagged.cost):
            self.flagged = erasure
        sure = score >= filter_.threshold + filter_.guard_band
        if sure and (self.sure is None or erasure.cost < self.sure.cost):
            self.sure = erasure


@dataclass(frozen=True, slots=True)
class Settings:
    """How to search: see `EraseAndCheck`."""

    early_stop: bool = True
    batch_size: int = 64
    progress: Progress | None = None


class Way(Protocol):
    """One way to the maximum.

    Attributes:
        limited: its cost grows with the number of erasures, so a limit of checks makes sense.
        how: for the assumptions of a certificate; empty for plain enumeration.
    """

    limited: bool
    how: str

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """Code points that the filter will read."""
        ...

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """Find the maximum."""
        ...


def cheapest(filter_: Filter, mode: EraseMode, units: Units, settings: Settings | None = None) -> Way:
    """The cheapest way that is sound for this filter, mode and unit."""
    settings = settings or Settings()
    if isinstance(filter_, MonotoneFilter) and filter_.monotone(mode.kind, units.name):
        return Monotone(filter_)
    if isinstance(filter_, PrefixFilter) and isinstance(mode, SpanMode):
        return Prefixes(filter_, settings)
    if isinstance(filter_, InfusionFilter) and mode.kind == "infusion" and units.name == "word":
        return Infusions(filter_)
    return Enumerate(filter_, settings)


class Monotone:
    """The score of the text itself is the maximum."""

    limited = False
    how = "no erasure raises this filter's score, so the text itself was scored"

    def __init__(self, filter_: Filter) -> None:
        self._filter = filter_

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The text once."""
        return len(pieces.text)

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """One call."""
        found = Found(calls=1, checks=1)
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
        spans = _spans(mode, n)
        cut = pieces.cut()
        while batch := _some(spans, lambda span: offsets[span.high] - offsets[span.start], _BATCH_CHARS // 8):
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

    def __init__(self, filter_: InfusionFilter) -> None:
        self._filter = filter_

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The text once per unit of the budget."""
        return len(pieces.text) * (self._budget(len(pieces), mode) + 1)

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """One call; the bounds ascend, so the first one that is flagged is the cheapest."""
        words = [word for word in map(canonical, pieces.cut()) if word]
        bounds = infusion_bounds(self._filter, words, self._budget(len(words), mode))
        found = Found(calls=1, checks=len(bounds))
        for cost, bound in enumerate(bounds):
            found.note(Erasure(cost, ()), bound, self._filter)
        return found

    @staticmethod
    def _budget(n: int, mode: EraseMode) -> int:
        return int(min(mode.budget, n))


class Enumerate:
    """Every erasure, cheapest first, through the canonical view, duplicates once."""

    limited = True
    how = ""

    def __init__(self, filter_: Filter, settings: Settings) -> None:
        self._filter = filter_
        self._settings = settings

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The text once per erasure."""
        return mode.count(len(pieces)) * len(pieces.text)

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """Score batch by batch."""
        found, settings = Found(), self._settings
        total = mode.count(len(pieces))
        seen: set[str] = set()
        erasures = mode.erasures(len(pieces))
        size = 1  # the text itself first: it settles most harmful prompts
        while batch := list(islice(erasures, size)):
            self._score(pieces, batch, seen, found)
            if settings.progress:
                settings.progress(found.checks, total)
            if settings.early_stop and found.sure:
                break
            # Long texts go in small batches, so that progress shows and memory stays bounded.
            size = max(1, min(settings.batch_size, _BATCH_CHARS // len(pieces.text)))
        return found

    def _score(self, pieces: Pieces, batch: list[Erasure], seen: set[str], found: Found) -> None:
        """Score the new, non-blank candidates of a batch."""
        fresh: dict[str, Erasure] = {}
        for erasure in batch:
            view = canonical(pieces.without(erasure.runs))
            if view and view not in seen:
                seen.add(view)
                fresh[view] = erasure
        found.checks += len(batch)
        if not fresh:
            return
        found.calls += len(fresh)
        for erasure, score in zip(fresh.values(), score_all(self._filter, list(fresh)), strict=True):
            found.note(erasure, score, self._filter)


def _spans(mode: EraseMode, n: int) -> Iterator[Span]:
    return mode.spans(n) if isinstance(mode, SpanMode) else iter(())


def _some(spans: Iterator[Span], size: Callable[[Span], int], most: int) -> list[Span]:
    """The next spans of at most `most` code points together, at least one."""
    batch: list[Span] = []
    total = 0
    for span in spans:
        batch.append(span)
        total += size(span)
        if total >= most:
            break
    return batch
