"""Wrap mode: erase any amount of text before and after (ours; the shape of role-play wrappers around a request)."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from promptguard.capabilities import Span
from promptguard.erase.budget import capped, checked, one_block
from promptguard.errors import InvalidArgument
from promptguard.types import Erasure
from promptguard.view import canonical, kinds

MAX_PROMPT = 40
_LINE_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


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
        boundaries: substrings start only at the beginning and after a mark or a line break, white space aside. The
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
    def covers(self) -> str:
        """Which text before the prompt is undone, if not every text."""
        if not self.boundaries:
            return ""
        return (
            "text before the prompt that ends, white space and invisible code points aside, with a line break or a "
            "mark: any visible code point whose canonical image ends in no letter, digit or combining mark"
        )

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
        return dataclasses.replace(self, starts=tuple(_starts(pieces)))

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
        """The sum over the starts of the number of ends, exactly. Longer texts may have fewer."""
        if n == 0:
            return 1
        if self.starts is not None:
            return sum(span.high - span.low + 1 for span in self.spans(n))
        shortest, longest = max(1, n - capped(self.budget, n)), min(n, self.max_prompt)
        lengths = max(0, longest - shortest + 1)
        return lengths * (2 * n - shortest - longest + 2) // 2  # n - length + 1 starts for each length

    def longest(self, n: int, budget: int) -> int:
        """Length n + budget."""
        return n + budget

    def left(self, spent: int) -> float:
        """A witness stays a substring whatever is put around it: the rest of the budget."""
        return self.budget - spent


def wrap_after_boundaries(budget: float = math.inf, blocks: int = 1, max_prompt: int = MAX_PROMPT) -> Wrap:
    """Wrap mode with starts at the beginning and after marks and line breaks only: fewer, for a weaker threat."""
    return Wrap(budget, blocks, max_prompt, boundaries=True)


def _starts(pieces: Sequence[str]) -> Iterator[int]:
    """The beginning, and the first visible piece after a mark or a line break."""
    is_open = True
    for index, piece in enumerate(pieces):
        shape = kinds(piece)
        visible = [at for at, kind in enumerate(shape) if kind in "wp"]
        if not visible:
            is_open = is_open or not _LINE_BREAKS.isdisjoint(piece)
            continue
        if is_open or not _LINE_BREAKS.isdisjoint(piece[: visible[0]]):
            yield index
        last = canonical(piece)[-1]
        is_mark = not (last.isalnum() or unicodedata.category(last).startswith("M"))
        is_open = is_mark or not _LINE_BREAKS.isdisjoint(piece[visible[-1] :])
