"""What a filter or a mode can do beyond the least; certifiers look for it and take the cheapest sound way.

One declares a capability by having its method; nothing is registered. Every capability of a filter is a promise about
the same function F that `Filter.__call__` computes: what it returns is what scoring the texts one by one would return,
up to the filter's guard band, or an upper bound where the docstring says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from promptguard.types import EraseMode, Filter


@runtime_checkable
class MonotoneFilter(Filter, Protocol):
    """A filter whose score no erasure of some kind raises: the maximum over erasures is the score itself."""

    def monotone(self, kind: str, unit: str) -> bool:
        """True if F(erased x) <= F(x) for every text x and every erasure of mode `kind` in `unit`, whatever its cost.

        Args:
            kind: an erase mode, for instance "suffix", "infusion" or "wrap".
            unit: the name of the units, for instance "word".
        """
        ...


@runtime_checkable
class PrefixFilter(Filter, Protocol):
    """A filter that scores all prefixes of a text for about the price of the text itself, as a causal model does."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        """F(text[:end]) for each of a text's ends.

        Args:
            texts: canonical texts.
            ends: for each text, code point offsets, ascending; the prefixes they cut are canonical and not blank.
        """
        ...


@runtime_checkable
class InfusionFilter(Filter, Protocol):
    """A filter that bounds its score over all infusion erasures at once, without listing them."""

    def infusion_scores(self, words: Sequence[str], budget: int) -> list[float]:
        """Upper bounds B_0 <= B_1 <= ... <= B_budget over the erasures of words.

        Laws: B_0 is F of the text that these words make. If x is y with at most b words erased, then
        B_{r + b}(y) >= B_r(x) for every r; in particular B_b(y) >= F(x). Words past the last one that helps may be
        answered by repeating the last bound.

        Args:
            words: canonical, non-blank pieces of the unit "word", in order.
            budget: words that may be erased, at most len(words).
        """
        ...


@dataclass(frozen=True, slots=True)
class MaskGradient:
    """Derivative of a filter's score by an erasure mask.

    Attributes:
        score: the filter's score at the mask.
        gradient: d score / d mask, one number per piece.
    """

    score: float
    gradient: tuple[float, ...]


@runtime_checkable
class DifferentiableFilter(Filter, Protocol):
    """A filter whose score can be differentiated by a soft erasure mask on the embeddings."""

    def mask_gradient(self, pieces: Sequence[str], mask: Sequence[float]) -> MaskGradient:
        """Score and gradient with the embeddings of piece i multiplied by mask[i] in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """Contiguous erasures with a common start: units [start, end) for every end from `low` to `high`.

    Attributes:
        start: the first kept unit.
        low: the smallest end, above `start`.
        high: the largest end.
    """

    start: int
    low: int
    high: int


@runtime_checkable
class SpanMode(EraseMode, Protocol):
    """A mode whose erasures leave contiguous substrings: with a `PrefixFilter`, one pass per start."""

    def spans(self, n: int) -> Iterator[Span]:
        """The same substrings as `erasures(n)`, but the empty one, grouped by where they start."""
        ...


@runtime_checkable
class TextMode(EraseMode, Protocol):
    """A mode whose erasures depend on what the pieces say, not only on how many there are."""

    def of(self, pieces: Sequence[str]) -> EraseMode:
        """The mode for this text. `count` of the mode itself is an upper bound over all texts of n units."""
        ...
