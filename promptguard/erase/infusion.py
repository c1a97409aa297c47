"""Infusion mode: erase up to d units wherever they stand (Kumar et al. 2024, section 3.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Self

from promptguard.erase.budget import capped, checked, one_block
from promptguard.types import Erasure


def _runs(indices: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Ascending indices as half-open ranges."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return tuple(runs)


@dataclass(frozen=True)
class Infusion:
    """Theorem: if x is P with at most `budget` units inserted anywhere, some erasure of x leaves P.

    Sum of C(n, i) over i <= d erasures.
    """

    budget: float
    blocks: int = 1
    kind = "infusion"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", checked(self.budget))
        one_block(self.blocks, self.kind)

    def with_budget(self, budget: float) -> Self:
        """The same mode with another budget."""
        return dataclasses.replace(self, budget=budget)

    def erasures(self, n: int) -> Iterator[Erasure]:
        """All subsets of 0, 1, ... units."""
        for dropped in range(capped(self.budget, n) + 1):
            for indices in combinations(range(n), dropped):
                yield Erasure(dropped, _runs(indices))

    def count(self, n: int, limit: int | None = None) -> int:
        """Sum of C(n, i) for i up to min(d, n); the sum stops once it is over the limit."""
        if limit is None and capped(self.budget, n) == n:
            return 1 << n
        total = 0
        for dropped in range(capped(self.budget, n) + 1):
            total += math.comb(n, dropped)
            if limit is not None and total > limit:
                break
        return total

    def longest(self, n: int, budget: int) -> int:
        """Length n + budget."""
        return n + budget

    def left(self, spent: int) -> float:
        """A witness that spent s units survives d - s more."""
        return self.budget - spent
