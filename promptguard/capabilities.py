"""What a filter or a mode can do beyond the least; certifiers look for it and take the cheapest sound way.

One declares a capability by having its method; nothing is registered. Every capability of a filter is a promise about
the same function F that `Filter.__call__` computes: what it returns is what scoring the texts one by one would return,
up to the filter's guard band, or an upper bound where the docstring says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from promptguard.types import EraseMode, Filter

if TYPE_CHECKING:
    import torch


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


@runtime_checkable
class BoundedFilter(Filter, Protocol):
    """A filter made of a cheap bound U and a costly score E: F(x) = min(U(x), max(E(x), floor)).

    This is what F is, by definition, so F(x) <= U(x) whatever U and E are, and no text with U(x) <= floor needs E. The
    guard band holds for F, however it is computed.
    """

    @property
    def floor(self) -> float:
        """Scores up to it are the bound alone; 0 or more, far below any threshold that makes sense."""
        ...

    @property
    def exact_band(self) -> float:
        """How far E may move with the composition of a batch."""
        ...

    def upper_bounds(self, texts: Sequence[str]) -> Sequence[float]:
        """U, one finite number per text."""
        ...

    def least_bound(self, bound: float) -> float:
        """The least that U of a text may be in another batch when it was `bound` in one; ascending, at most `bound`."""
        ...

    def exact_scores(self, texts: Sequence[str]) -> Sequence[float]:
        """E, one finite number per text."""
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


@dataclass(frozen=True, slots=True, eq=False)
class TokenGradient:
    """Derivative of a score by the one-hot tokens of a part of a text.

    Attributes:
        score: the score of the text.
        ids: the tokens of that part.
        by_token: float32 of shape (len(ids), vocabulary) on the CPU: d score / d one-hot. Writing token v at position
            i changes the score by about by_token[i, v] - by_token[i, ids[i]].
    """

    score: float
    ids: tuple[int, ...]
    by_token: torch.Tensor


@runtime_checkable
class TokenAccess(Protocol):
    """White-box access to a model's tokens. `ids` and `gradient` take texts as `view` gives them."""

    @property
    def usable(self) -> Sequence[int]:
        """Ids that can be written as text: no special token, not blank, unchanged by the canonical view."""
        ...

    @property
    def words(self) -> Mapping[str, int]:
        """Texts that are one token behind white space, with its id."""
        ...

    def view(self, text: str) -> str:
        """The text as the model reads it; no code point's image depends on its neighbours, white space aside."""
        ...

    def ids(self, texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
        """The tokens in text[start:end] of each text, as the whole text is cut."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without white space around it; it need not be cut into the same ids again."""
        ...

    def gradient(self, text: str, start: int, end: int) -> TokenGradient:
        """Derivative of the score by the tokens in text[start:end]."""
        ...

    def vectors(self) -> torch.Tensor:
        """The input embeddings of all ids, float32 of shape (vocabulary, width) on the CPU."""
        ...


@runtime_checkable
class TokenGradientFilter(Filter, Protocol):
    """A filter whose score can be differentiated by the tokens of a text (Zou et al. 2023, section 2.2)."""

    @property
    def tokens(self) -> TokenAccess:
        """Its tokens."""
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
