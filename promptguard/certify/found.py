"""What a search for the maximum over the erasures is told, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, Protocol, TypeVar

from promptguard.certify.pieces import Pieces
from promptguard.types import EraseMode, Erasure, Filter

Progress = Callable[[int, int], None]
T = TypeVar("T")


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
        is_sure = score >= filter_.threshold + filter_.guard_band
        self.judge(erasure, score, is_flagged=score >= filter_.threshold, is_sure=is_sure)

    def judge(self, erasure: Erasure, score: float, *, is_flagged: bool, is_sure: bool) -> None:
        """Remember a score, whether it is harmful, and whether it is so in every batch."""
        self.best = max(self.best, score)
        if is_flagged and (self.flagged is None or erasure.cost < self.flagged.cost):
            self.flagged = erasure
        if is_sure and (self.sure is None or erasure.cost < self.sure.cost):
            self.sure = erasure


@dataclass(frozen=True, slots=True)
class Batching(Generic[T]):
    """How work comes in batches.

    Attributes:
        work: code points that the filter reads for an item.
        cost: no erasure of this item or a later one costs less; infinite where no erasure is left to check.
        first: items in the first batch at most.
        most: items in a batch at most.
        growth: a batch has at most this many times the items of the one before.
        full: code points at which a batch is full.
    """

    work: Callable[[T], int]
    cost: Callable[[T], float]
    first: int
    most: int
    growth: float = math.inf
    full: float = math.inf


class Pace(Protocol):
    """How far a search goes.

    Attributes:
        cut: every erasure that costs less was checked; infinite if nothing was left out.
    """

    cut: float

    def batches(self, found: Found, items: Iterator[T], how: Batching[T]) -> Iterator[list[T]]:
        """The items, in order, as far as time allows; the caller works on a batch before it asks for the next."""
        ...


class Unhurried:
    """To the end, however long it takes."""

    cut = math.inf

    def batches(self, found: Found, items: Iterator[T], how: Batching[T]) -> Iterator[list[T]]:
        """All items."""
        size: float = how.first
        for head in items:
            batch: list[T] = []
            work = 0
            for item in chain([head], items):
                batch.append(item)
                work += how.work(item)
                if len(batch) >= size or work >= how.full:
                    break
            yield batch
            size = min(how.most, size * how.growth)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to search: see `EraseAndCheck`."""

    early_stop: bool = True
    batch_size: int = 64
    progress: Progress | None = None
    pace: Pace = field(default_factory=Unhurried)


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
