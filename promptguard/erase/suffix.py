"""Suffix mode: erase up to d units from the end (Kumar et al. 2024, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from promptguard.capabilities import Span
from promptguard.erase.budget import capped, checked, one_block
from promptguard.types import Erasure


@dataclass(frozen=True)
class Suffix:
    """Theorem: if x is P with at most `budget` units appended, some erasure of x leaves P. min(d, n) + 1 erasures."""

    budget: float
    blocks: int = 1
    kind = "suffix"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", checked(self.budget))
        one_block(self.blocks, self.kind)

    def with_budget(self, budget: float) -> Self:
        """The same mode with another budget."""
        return dataclasses.replace(self, budget=budget)

    def erasures(self, n: int) -> Iterator[Erasure]:
        """Drop 0, 1, ... units from the end."""
        yield Erasure(0, ())
        for dropped in range(1, capped(self.budget, n) + 1):
            yield Erasure(dropped, ((n - dropped, n),))

    def spans(self, n: int) -> Iterator[Span]:
        """One span: prefixes with at most `budget` units dropped; the empty one is left out."""
        if n:
            yield Span(0, max(1, n - capped(self.budget, n)), n)

    def count(self, n: int, limit: int | None = None) -> int:
        """min(d, n) + 1, exactly."""
        return capped(self.budget, n) + 1

    def longest(self, n: int, budget: int) -> int:
        """Length n + budget."""
        return n + budget

    def left(self, spent: int) -> float:
        """A witness that spent s units survives d - s more."""
        return self.budget - spent
