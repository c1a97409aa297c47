"""What a search for the maximum over the erasures is told, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from promptguard.certify.pieces import Pieces
from promptguard.types import EraseMode, Erasure, Filter

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
