"""Mask smoothing: units are replaced by a mask (RanMASK).

Zeng et al. 2021, *Certified Robustness to Text Adversarial Attacks by Randomized [MASK]*.

    Theorem. Let x' differ from x in at most r units, the number of units being the same. Then mu(x') is at least
    mu(x) - Delta(r), where Delta(r) is the chance that the noise leaves one of r given units unmasked.

Proof. As long as all units that differ are masked, x and x' give the same noised text. For some filter this is all that
can be said, so the bound is tight. A radius r holds when mu(x) > eta + Delta(r):

* exactly k of n units kept: Delta(r) = 1 - C(n - r, k) / C(n, k);
* each unit masked with probability beta: Delta(r) = 1 - beta^r.

It is mu - Delta, and not mu - mu Delta, which RanMASK's code uses unless told otherwise, and which certifies texts that
one changed word hides. Against added or deleted units the noise promises nothing: every unit behind them moves.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from promptguard.certify.smoothing import Sampling, Smoothed, rounded_up
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.types import Filter, Units, Verdict
from promptguard.view import canonical

Kept: TypeAlias = npt.NDArray[np.bool_]
_KIND = "substitution"


class Masking(Protocol):
    """Which units stay. Law: it looks at how many there are, never at what they say."""

    @property
    def describe(self) -> str:
        """In words, for certificates."""
        ...

    def draw(self, count: int, n: int, rng: np.random.Generator) -> Kept:
        """`count` rows of n: True where a unit stays."""
        ...

    def loss(self, n: int, radius: int) -> float:
        """Delta: the chance that one of `radius` given units of n stays."""
        ...

    def least_loss(self, radius: int) -> float:
        """No more than the smallest `loss` over all n."""
        ...


@dataclass(frozen=True, slots=True)
class KeepExactly:
    """k units stay, chosen uniformly; all of them where there are no more than k.

    Attributes:
        k: at least 1.

    Raises:
        InvalidArgument: k is no whole number, or below 1.
    """

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InvalidArgument(f"the number of units kept must be a whole number, at least 1, not {self.k!r}")

    @property
    def describe(self) -> str:
        """In words, for certificates."""
        return f"all units but {self.k}, chosen uniformly, are masked"

    def draw(self, count: int, n: int, rng: np.random.Generator) -> Kept:
        """`count` rows of n: True where a unit stays."""
        if self.k >= n:
            return np.ones((count, n), dtype=np.bool_)
        kept = np.zeros((count, n), dtype=np.bool_)
        # The places of the k smallest of n independent uniform numbers are a uniform subset.
        np.put_along_axis(kept, np.argpartition(rng.random((count, n)), self.k - 1, axis=1)[:, : self.k], True, axis=1)
        return kept

    def loss(self, n: int, radius: int) -> float:
        """1 - C(n - r, k) / C(n, k)."""
        k = min(self.k, n)
        return float(1 - Fraction(math.comb(max(0, n - radius), k), math.comb(n, k)))

    def least_loss(self, radius: int) -> float:
        """Long texts lose next to nothing."""
        return 0.0


@dataclass(frozen=True, slots=True)
class KeepShare:
    """A share of the units stays, rounded down but at least one; chosen uniformly.

    Attributes:
        share: in (0, 1).

    Raises:
        InvalidArgument: the share is outside its range.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InvalidArgument(f"the share kept must be between 0 and 1, both excluded, not {self.share!r}")

    @property
    def describe(self) -> str:
        """In words, for certificates."""
        return f"all units but a share of {self.share!r}, at least one, chosen uniformly, are masked"

    def draw(self, count: int, n: int, rng: np.random.Generator) -> Kept:
        """`count` rows of n: True where a unit stays."""
        return self._of(n).draw(count, n, rng)

    def loss(self, n: int, radius: int) -> float:
        """1 - C(n - r, k) / C(n, k) for the k of n units."""
        return self._of(n).loss(n, radius)

    def least_loss(self, radius: int) -> float:
        """Nothing is claimed."""
        return 0.0

    def _of(self, n: int) -> KeepExactly:
        return KeepExactly(max(1, int(self.share * n)))


@dataclass(frozen=True, slots=True)
class MaskEach:
    """Each unit is masked on its own.

    Attributes:
        rate: beta, the chance of a mask, in (0, 1).

    Raises:
        InvalidArgument: the rate is outside its range.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise InvalidArgument(f"the masking rate must be between 0 and 1, both excluded, not {self.rate!r}")

    @property
    def describe(self) -> str:
        """In words, for certificates."""
        return f"each unit is masked with probability {self.rate!r}"

    def draw(self, count: int, n: int, rng: np.random.Generator) -> Kept:
        """`count` rows of n: True where a unit stays."""
        kept: Kept = rng.random((count, n)) >= self.rate
        return kept

    def loss(self, n: int, radius: int) -> float:
        """1 - beta^r."""
        return 1 - self.rate ** min(n, radius)

    def least_loss(self, radius: int) -> float:
        """A text of one unit loses least."""
        return 1 - self.rate if radius else 0.0


class MaskSmoothing:
    """Certifies that replaced units of a harmful prompt do not hide it from the smoothed filter.

    Theorem: let `certify(P)` give a certificate of radius r, and let the pieces of x be those of P with up to r of them
    replaced, one for one. Then, except with probability alpha, more than eta of x's noised texts are flagged; and a run
    on x says "safe" with probability at most alpha.

    Args:
        filter_: the filter F; one trained on masked texts does better.
        units: what is masked and what the radius counts.
        radius: units that the attacker may replace; None reports the largest radius, which takes all samples.
        masking: which units stay: `KeepExactly(k)`, `KeepShare(share)` or `MaskEach(beta)`.
        eta: a text is harmful when more than this share of its noised versions is flagged, in (0, 1).
        threat: "substitution"; nothing else can be certified.
        mask: what a masked unit reads, with the white space before it.
        sampling: error rates and limits.
        rng: one draw per text seeds its noise. The default is the system's; benchmarks pass a seeded one.

    Raises:
        UnsupportedThreat: a threat that adds or deletes units.
        InvalidArgument: eta or radius outside its range, too few samples, or a blank mask.
    """

    method = "mask-smoothing"

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        radius: int | None,
        *,
        masking: Masking,
        eta: float = 0.5,
        threat: str = "substitution",
        mask: str = " [MASK]",
        sampling: Sampling | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if threat != _KIND:
            raise UnsupportedThreat(f"mask smoothing certifies {_KIND}, not {threat!r}: use deletion smoothing")
        if not canonical(mask):
            raise InvalidArgument("the mask must be visible: without one a masked unit is a deleted one")
        self.filter = filter_
        self.units = units
        kernel = _Kernel(masking, mask, units)
        self._smoothed = Smoothed(filter_, units, kernel, radius=radius, eta=eta, sampling=sampling, rng=rng)

    def threat(self, radius: int | None = None) -> Threat:
        """What a certificate covers, at the radius that was asked for or another one."""
        return self._smoothed.threat(radius)

    def certify(self, x: str) -> Verdict:
        """Sample texts that x leaves when units are masked.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all samples.
            FilterError: the filter broke its contract.
        """
        return self._smoothed.verdict(x)


@dataclass(frozen=True, slots=True)
class _Kernel:
    masking: Masking
    mask: str
    units: Units
    method: str = MaskSmoothing.method
    kind: str = _KIND

    @property
    def assumes(self) -> tuple[str, ...]:
        return (
            f"noise: {self.masking.describe}; the mask reads {canonical(self.mask)!r}",
            f"units are replaced one for one: the pieces of unit {self.units.name} that the two texts are cut into are "
            "equally many, and differ in at most so many places",
        )

    def of(self, pieces: list[str]) -> _Noised:
        return _Noised(pieces, self)

    def least(self, eta: float, radius: int) -> float:
        return rounded_up(eta + self.masking.least_loss(radius))


@dataclass(frozen=True, slots=True)
class _Noised:
    pieces: list[str]
    kernel: _Kernel

    @property
    def most(self) -> int:
        return len(self.pieces)

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        kept, mask = self.kernel.masking.draw(count, len(self.pieces), rng), self.kernel.mask
        return ["".join(p if k else mask for p, k in zip(self.pieces, row, strict=True)) for row in kept.tolist()]

    def needed(self, eta: float, radius: int) -> float:
        return rounded_up(eta + self.kernel.masking.loss(len(self.pieces), radius))
