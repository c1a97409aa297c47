"""Wrap mode: erase any amount of text before and after (ours; the shape of role-play wrappers around a request)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from promptguard.capabilities import Span
from promptguard.erase.budget import capped, checked, one_block
from promptguard.errors import InvalidArgument
from promptguard.types import Erasure
from promptguard.view import canonical

MAX_PROMPT = 40
# Ends of sentences and clauses, quotes, brackets, and what sets off parts of a plain-text document.
BOUNDARIES = frozenset(".!?:;…。！？\"'«»[](){}<>`*#|-=~_")


@dataclass(frozen=True)
class Wrap:
    """Contiguous substrings of at most `max_prompt` units, with at most `budget` units left out before and after.

    Theorem: if x is P with at most `budget` units put before and after it, and P has at most `max_prompt` units, then
    some erasure of x leaves P. They are about n * max_prompt substrings but only n spans: a causal filter reads all
    ends of a start in one pass.

    Attributes:
        budget: units before and after, together; `math.inf` is unlimited.
        blocks: 1.
        max_prompt: units of the longest prompt that is protected.
        boundaries: substrings start only at the beginning and after a mark of `BOUNDARIES` or a line break. The
            theorem then holds for attacks whose text before P ends with one, and the kind is "wrap-boundary".
        starts: where substrings may start, ascending; None is everywhere.
    """

    budget: float = math.inf
    blocks: int = 1
    max_prompt: int = MAX_PROMPT
    boundaries: bool = False
    starts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", checked(self.budget))
        one_block(self.blocks, self.kind)
        whole = isinstance(self.max_prompt, int) and not isinstance(self.max_prompt, bool)
        if not whole or self.max_prompt < 1:
            raise InvalidArgument(f"the longest prompt must be a whole number of units >= 1, not {self.max_prompt!r}")

    @property
    def kind(self) -> str:
        """The threat: "wrap", or the weaker "wrap-boundary"."""
        return "wrap-boundary" if self.boundaries else "wrap"

    def with_budget(self, budget: float) -> Self:
        """The same mode with another budget."""
        return dataclasses.replace(self, budget=budget)

    def of(self, pieces: Sequence[str]) -> Self:
        """The mode for a text: with `boundaries`, its starts are found."""
        if not self.boundaries:
            return self
        starts = (i for i in range(len(pieces)) if i == 0 or _is_boundary(pieces[i - 1], pieces[i]))
        return dataclasses.replace(self, starts=tuple(starts))

    def spans(self, n: int) -> Iterator[Span]:
        """For each start, the ends of its substrings."""
        shortest, longest = max(1, n - capped(self.budget, n)), min(n, self.max_prompt)
        for start in range(n) if self.starts is None else self.starts:
            if shortest <= min(longest, n - start):
                yield Span(start, start + shortest, min(n, start + longest))

    def erasures(self, n: int) -> Iterator[Erasure]:
        """Longest substrings first. The text itself is one of them when it has at most `max_prompt` units."""
        if n == 0:
            yield Erasure(0, ())
        starts = range(n) if self.starts is None else self.starts
        for length in range(min(n, self.max_prompt), max(0, n - 1 - capped(self.budget, n)), -1):
            for start in starts:
                if start + length <= n:
                    runs = ((0, start), (start + length, n))
                    yield Erasure(n - length, tuple((a, b) for a, b in runs if a < b))

    def count(self, n: int, limit: int | None = None) -> int:
        """The sum over the starts of the number of ends, exactly."""
        return sum(span.high - span.low + 1 for span in self.spans(n)) if n else 1

    def longest(self, n: int, budget: int) -> int:
        """Length n + budget."""
        return n + budget

    def left(self, spent: int) -> float:
        """A witness stays a substring whatever is put around it: the rest of the budget."""
        return self.budget - spent


def wrap_after_boundaries(budget: float = math.inf, blocks: int = 1, max_prompt: int = MAX_PROMPT) -> Wrap:
    """Wrap mode with starts at the beginning and after `BOUNDARIES` and line breaks: fewer, for a weaker threat."""
    return Wrap(budget, blocks, max_prompt, boundaries=True)


def _is_boundary(before: str, after: str) -> bool:
    """Whether a mark or a line break stands between two neighbouring pieces; both are part of the attacked text."""
    view = canonical(before)
    blank = after[: len(after) - len(after.lstrip())]
    return (bool(view) and view[-1] in BOUNDARIES) or len(f"{blank}.".splitlines()) > 1 or _ends_line(before)


def _ends_line(piece: str) -> bool:
    return bool(piece) and piece[-1:].splitlines() == [""]
