"""The maximum by listing every erasure: the ways for filters of any kind.

Erasures come as a stream, cheapest first, and nothing that is kept grows with their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from promptguard.capabilities import BoundedFilter
from promptguard.certify.found import Batching, Found, Settings
from promptguard.certify.pieces import Pieces
from promptguard.certify.scoring import bounds_all, exact_all, score_all
from promptguard.errors import InvalidArgument
from promptguard.types import EraseMode, Erasure, Filter
from promptguard.view import canonical

_BATCH_CHARS = 65_536
_REMEMBERED = 100_000  # texts; a duplicate that is met after more of them is scored again
_OPEN = 4_096  # erasures whose bounds are compared before the best of them are scored
_FIRST_SCORED = 8
_EXACT_WORK = 3  # times that of a bound, for a time budget: a little more than in bfloat16 against float32


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
        total = mode.count(len(pieces)) if settings.progress else 0
        seen: set[str] = set()
        for batch in settings.pace.batches(found, mode.erasures(len(pieces)), _batching(pieces, settings)):
            self._score(pieces, batch, seen, found)
            if settings.progress:
                settings.progress(found.checks, total)
            if settings.early_stop and found.sure:
                break
        return found

    def _score(self, pieces: Pieces, batch: list[Erasure], seen: set[str], found: Found) -> None:
        """Score the new, non-blank candidates of a batch."""
        fresh = _fresh(pieces, batch, seen)
        found.checks += len(batch)
        if not fresh:
            return
        found.calls += len(fresh)
        for erasure, score in zip(fresh.values(), score_all(self._filter, list(fresh)), strict=True):
            found.note(erasure, score, self._filter)


@dataclass(frozen=True, slots=True)
class _Bounded:
    """An erasure and an upper bound on the score of what it leaves."""

    erasure: Erasure
    bound: float


class Screen:
    """A cheap upper bound U for every erasure; the costly score E only where the bound leaves room.

    Theorem: it finds what plain enumeration of F(x) = min(U(x), max(E(x), floor)) would: the same maximum, and the same
    cheapest erasures. By definition F <= U, so a candidate can raise the maximum only if its U is above the best F so
    far, and be flagged only if its U is at or above the threshold. An erasure is sure when neither part can fall below
    the threshold in another batch: E is its band above it, and so is what U can fall to.
    """

    limited = True
    how = "every erasure was bounded from above, and scored exactly where the bound left room"

    def __init__(self, filter_: BoundedFilter, settings: Settings) -> None:
        """Take the filter.

        Raises:
            InvalidArgument: its floor or its exact band means nothing.
        """
        if not (0 <= filter_.exact_band < math.inf and math.isfinite(filter_.floor)):
            raise InvalidArgument("the filter's floor and exact band must be finite numbers, the band not negative")
        self._filter = filter_
        self._settings = settings

    def work(self, pieces: Pieces, mode: EraseMode) -> int:
        """The text once per erasure."""
        return mode.count(len(pieces)) * len(pieces.text)

    def search(self, pieces: Pieces, mode: EraseMode) -> Found:
        """Bound batch by batch; score what may be flagged at once, and what may be the maximum after many batches."""
        found, settings = Found(), self._settings
        total = mode.count(len(pieces)) if settings.progress else 0
        seen: set[str] = set()
        waiting: list[_Bounded] = []
        for batch in settings.pace.batches(found, mode.erasures(len(pieces)), _batching(pieces, settings)):
            waiting += self._flag(pieces, self._bound(pieces, batch, seen, found), found)
            if settings.progress:
                settings.progress(found.checks, total)
            if settings.early_stop and found.sure:
                return found
            if len(waiting) >= _OPEN:
                self._raise(pieces, waiting, found)
                waiting = []
        self._raise(pieces, waiting, found)
        return found

    def _bound(self, pieces: Pieces, batch: list[Erasure], seen: set[str], found: Found) -> list[_Bounded]:
        """Bounds of the new, non-blank candidates of a batch."""
        fresh = _fresh(pieces, batch, seen)
        found.checks += len(batch)
        if not fresh:
            return []
        found.calls += len(fresh)
        bounds = bounds_all(self._filter, list(fresh))
        # F is at least this, and the bound itself where that is below the floor.
        found.best = max(found.best, min(max(bounds), self._filter.floor))
        return [_Bounded(erasure, bound) for erasure, bound in zip(fresh.values(), bounds, strict=True)]

    def _flag(self, pieces: Pieces, batch: list[_Bounded], found: Found) -> list[_Bounded]:
        """Score what may be flagged, in order, until one is sure: all others cost as much. The rest comes back."""
        likely = [one for one in batch if one.bound >= self._filter.threshold]
        rest = [one for one in batch if one.bound < self._filter.threshold]
        size = _FIRST_SCORED
        while likely and not found.sure:
            self._score(pieces, likely[:size], found)
            likely = likely[size:]
            size = min(2 * size, self._settings.batch_size)
        return rest + likely

    def _raise(self, pieces: Pieces, waiting: list[_Bounded], found: Found) -> None:
        """Score in descending order of the bounds until the next one is no larger than the best score."""
        above = takewhile(lambda one: one.bound > found.best, sorted(waiting, key=lambda one: -one.bound))
        how: Batching[_Bounded] = Batching(
            work=lambda one: _EXACT_WORK * _work(pieces, one.erasure),
            cost=lambda _: math.inf,  # the bounds have shown already that none of these is flagged
            first=_FIRST_SCORED,
            most=self._settings.batch_size,
            growth=2,
        )
        for batch in self._settings.pace.batches(found, above, how):
            self._score(pieces, batch, found)

    def _score(self, pieces: Pieces, batch: Sequence[_Bounded], found: Found) -> None:
        filter_, threshold = self._filter, self._filter.threshold
        costly = [one for one in batch if one.bound > filter_.floor]
        views = [canonical(pieces.without(one.erasure.runs)) for one in costly]
        exact = dict(zip(costly, exact_all(filter_, views), strict=True))
        for one in batch:
            score = exact.get(one, -math.inf)
            surely = min(filter_.least_bound(one.bound), max(score - filter_.exact_band, filter_.floor))
            final = min(one.bound, max(score, filter_.floor))
            found.judge(one.erasure, final, is_flagged=final >= threshold, is_sure=surely >= threshold)


def _batching(pieces: Pieces, settings: Settings) -> Batching[Erasure]:
    """The text itself first, if one may stop there: it settles most harmful prompts.

    Long texts go in small batches, so that progress shows and memory stays bounded.
    """
    most = max(1, min(settings.batch_size, _BATCH_CHARS // len(pieces.text)))
    return Batching(
        work=lambda erasure: _work(pieces, erasure),
        cost=lambda erasure: erasure.cost,
        first=1 if settings.early_stop else most,
        most=most,
    )


def _work(pieces: Pieces, erasure: Erasure) -> int:
    """Code points that an erasure leaves."""
    return len(pieces.text) - sum(stop - start for start, stop in pieces.chars(erasure.runs))


def _fresh(pieces: Pieces, batch: list[Erasure], seen: set[str]) -> dict[str, Erasure]:
    """The canonical views that are not blank and were not seen lately, each with the first erasure that leaves it."""
    if len(seen) > _REMEMBERED:
        seen.clear()
    fresh: dict[str, Erasure] = {}
    for erasure in batch:
        view = canonical(pieces.without(erasure.runs))
        if view and view not in seen:
            seen.add(view)
            fresh[view] = erasure
    return fresh
