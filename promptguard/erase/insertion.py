"""Insertion mode: erase up to k contiguous blocks of up to d units each (Kumar et al. 2024, section 3.2).

A kept set is described by its *maximal erased runs*, so none comes twice. A run longer than d is several blocks that
touch: a run of length L costs ceil(L / d) blocks, and an erasure is allowed when its runs cost at most k blocks. (The
attack "two blocks on either side of an empty part of the prompt" is why touching blocks must be allowed.)
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from promptguard.erase.budget import capped, checked
from promptguard.errors import InvalidArgument
from promptguard.types import Erasure

Runs = tuple[tuple[int, int], ...]


def _blocks_needed(length: int, size: int) -> int:
    return -(-length // size)


def _runs_within(start: int, n: int, size: int, blocks: int) -> Iterator[Runs]:
    """Sets of maximal runs in [start, n) that cost at most `blocks` blocks of `size` units; the empty one included."""
    yield ()
    if blocks == 0:
        return
    for first in range(start, n):
        for length in range(1, min(blocks * size, n - first) + 1):
            rest = blocks - _blocks_needed(length, size)
            # One kept unit must follow, or the next run would be part of this one.
            for tail in _runs_within(first + length + 1, n, size, rest):
                yield ((first, first + length), *tail)


def _run_lengths(size: int, blocks: int, n: int) -> Iterator[Counter[int]]:
    """For m = 0, 1, ... runs: how many ordered lengths that cost at most `blocks` blocks sum to each total <= n."""
    state: Counter[tuple[int, int]] = Counter({(0, 0): 1})  # (blocks used, units erased) -> ways
    for _ in range(blocks + 1):
        totals: Counter[int] = Counter()
        following: Counter[tuple[int, int]] = Counter()
        for (used, total), ways in state.items():
            totals[total] += ways
            for length in range(1, min((blocks - used) * size, n - total) + 1):
                following[used + _blocks_needed(length, size), total + length] += ways
        yield totals
        state = following


@dataclass(frozen=True)
class Insertion:
    """Theorem: if x is P with at most `blocks` blocks of at most `budget` units inserted, some erasure leaves P."""

    budget: float
    blocks: int = 1
    kind = "insertion"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", checked(self.budget))
        if isinstance(self.blocks, bool) or not isinstance(self.blocks, int) or self.blocks < 1:
            raise InvalidArgument(f"insertion needs a whole number of blocks, at least one, not {self.blocks!r}")

    def with_budget(self, budget: float) -> Self:
        """The same mode with another budget."""
        return dataclasses.replace(self, budget=budget)

    def erasures(self, n: int) -> Iterator[Erasure]:
        """By the block size that they need: 0, 1, ... units."""
        yield Erasure(0, ())
        for size in range(1, capped(self.budget, n) + 1):
            for runs in _runs_within(0, n, size, min(self.blocks, n)):
                if runs and not self._fits(runs, size - 1):
                    yield Erasure(size, runs)

    def _fits(self, runs: Runs, size: int) -> bool:
        return size > 0 and sum(_blocks_needed(b - a, size) for a, b in runs) <= self.blocks

    def count(self, n: int, limit: int | None = None) -> int:
        """1 + sum over j <= min(d, n) of (n - j + 1) for one block.

        In general: runs of given lengths, m of them and T units in all, can stand in n units in C(n - T + 1, m) ways.
        The count for one block is a lower bound, and answers when it is over the limit already.
        """
        size = capped(self.budget, n)
        one_block = 1 + size * n - size * (size - 1) // 2
        if self.blocks == 1 or (limit is not None and one_block > limit):
            return one_block
        return sum(
            ways * math.comb(n - total + 1, m)
            for m, totals in enumerate(_run_lengths(size, min(self.blocks, n), n))
            for total, ways in totals.items()
        )

    def longest(self, n: int, budget: int) -> int:
        """Length n + blocks * budget."""
        return n + self.blocks * budget

    def left(self, spent: int) -> float | None:
        """The whole budget when the text itself is flagged, nothing otherwise.

        The rule "d - spent" is unsound here: further text inside the erased block makes it longer than d, and beside
        it needs a block that was spent (brute force in the tests finds such attacks).
        """
        return self.budget if spent == 0 else None
