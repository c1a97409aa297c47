"""Uniform smoothing: each unit is replaced by a uniformly drawn other symbol of a finite alphabet.

The uniform kernel of *Towards the Worst-case Robustness of Large Language Models* (2025, arXiv 2501.19040), with the
bound that a fractional knapsack gives. It is the exact Neyman-Pearson bound: noised texts of one likelihood ratio are
one item.

    Theorem. Let x' differ from x in at most r symbols, their number n being the same, and let V be the size of the
    alphabet. In a place where they differ, the noise gives the symbol of x (+1) with chance 1 - beta, that of x' (-1)
    with chance beta / (V - 1), another (0) otherwise; T is the sum over r such places. Under x' the law of T is that of
    -T, and the likelihood ratio depends on T alone. So mu(x') is least for the filter that flags where x is likelier
    than x', the largest ratio first, up to the share mu(x).

The proof needs x and x' over the same alphabet: a symbol that the noise can never produce tells x' from x. So units
outside the alphabet are mapped to one symbol *before* the noise, and replacing one of them by another is free.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promptguard.certify.smoothing import Sampling, Smoothed, fingerprint, rounded_up
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.types import Filter, Units, Verdict
from promptguard.view import canonical

_KIND = "substitution"


class UniformSmoothing:
    """Certifies that replaced units of a harmful prompt do not hide it from the smoothed filter.

    Theorem: let `certify(P)` give a certificate of radius r, and let the pieces of x be those of P with up to r of them
    replaced, one for one, by anything. Then, except with probability alpha, more than eta of x's noised texts are
    flagged; and a run on x says "safe" with probability at most alpha.

    The filter reads the symbols joined by `joiner`, not the text's own white space: that, too, is outside the alphabet.

    Args:
        filter_: the filter F; one trained on such texts does better.
        units: what is replaced and what the radius counts.
        radius: units that the attacker may replace; None reports the largest radius, which takes all samples.
        alphabet: the symbols that the noise draws from, in any order; each is taken in its canonical view.
        rate: beta, the chance that a unit is replaced, in (0, 1).
        eta: a text is harmful when more than this share of its noised versions is flagged, in (0, 1).
        threat: "substitution"; nothing else can be certified.
        unknown: the symbol for units outside the alphabet, added to it.
        joiner: what stands between symbols.
        sampling: error rates and limits.
        rng: one draw per text seeds its noise. The default is the system's; benchmarks pass a seeded one.

    Raises:
        UnsupportedThreat: a threat that adds or deletes units.
        InvalidArgument: an alphabet without symbols or with blank ones, rate, eta or radius outside its range, or too
            few samples.
    """

    method = "uniform-smoothing"

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        radius: int | None,
        *,
        alphabet: Iterable[str],
        rate: float,
        eta: float = 0.5,
        threat: str = _KIND,
        unknown: str = "[UNK]",
        joiner: str = " ",
        sampling: Sampling | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if threat != _KIND:
            raise UnsupportedThreat(f"uniform smoothing certifies {_KIND}, not {threat!r}: use deletion smoothing")
        if not 0 < rate < 1:
            raise InvalidArgument(f"the replacement rate must be between 0 and 1, both excluded, not {rate!r}")
        symbols = sorted({canonical(symbol) for symbol in (*alphabet, unknown)})
        if len(symbols) < 2 or not symbols[0] or isinstance(alphabet, str):
            raise InvalidArgument("the alphabet must be a list of visible symbols, at least one besides `unknown`")
        self.filter = filter_
        self.units = units
        kernel = _Kernel(tuple(symbols), symbols.index(canonical(unknown)), rate, joiner, units)
        self._smoothed = Smoothed(filter_, units, kernel, radius=radius, eta=eta, sampling=sampling, rng=rng)

    def threat(self, radius: int | None = None) -> Threat:
        """What a certificate covers, at the radius that was asked for or another one."""
        return self._smoothed.threat(radius)

    def certify(self, x: str) -> Verdict:
        """Sample texts that x becomes when units are replaced by symbols.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all samples.
            FilterError: the filter broke its contract.
        """
        return self._smoothed.verdict(x)


def _needed(eta: float, rate: float, size: int, radius: int) -> float:
    """The smallest mu(x) for which mu(x') >= eta whatever the filter, before rounding.

    Args:
        eta: in (0, 1).
        rate: beta.
        size: V, at least 2.
        radius: places in which x and x' differ.
    """
    other = rate / (size - 1)
    place = np.array([other, rate - other, 1 - rate])  # T = -1, 0, 1
    law = np.ones(1)
    for _ in range(radius):
        law = np.convolve(law, place)
    under_x, under_attack = law, law[::-1]
    order = range(len(law)) if 1 - rate < other else range(len(law) - 1, -1, -1)
    mine = theirs = 0.0
    for at in order:
        if theirs + under_attack[at] >= eta:
            return float(mine + under_x[at] * (eta - theirs) / under_attack[at])
        mine, theirs = mine + under_x[at], theirs + under_attack[at]
    return 1.0


@dataclass(frozen=True, slots=True)
class _Kernel:
    symbols: tuple[str, ...]
    unknown: int
    rate: float
    joiner: str
    units: Units
    method: str = UniformSmoothing.method
    kind: str = _KIND

    @property
    def assumes(self) -> tuple[str, ...]:
        return (
            f"noise: each unit is replaced with probability {self.rate!r} by another of {len(self.symbols)} symbols "
            f"(sha256 {fingerprint(self.symbols)}), one of which stands for all units outside the alphabet",
            f"the filter reads the symbols joined by {self.joiner!r}",
            f"units are replaced one for one: the pieces of unit {self.units.name} that the two texts are cut into are "
            "equally many, and differ in at most so many places",
        )

    def of(self, pieces: list[str]) -> _Noised:
        places = {symbol: at for at, symbol in enumerate(self.symbols)}
        return _Noised(np.array([places.get(canonical(piece), self.unknown) for piece in pieces]), self)

    def least(self, eta: float, radius: int) -> float:
        return rounded_up(_needed(eta, self.rate, len(self.symbols), min(radius, 1)))


@dataclass(frozen=True, slots=True)
class _Noised:
    ids: npt.NDArray[np.int64]
    kernel: _Kernel

    @property
    def most(self) -> int:
        return len(self.ids)

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        shape, size, symbols = (count, len(self.ids)), len(self.kernel.symbols), self.kernel.symbols
        # Adding 1 to V - 1 modulo V reaches every other symbol with the same chance.
        step = np.where(rng.random(shape) < self.kernel.rate, rng.integers(1, size, size=shape), 0)
        ids = (self.ids + step) % size
        return [self.kernel.joiner.join(map(symbols.__getitem__, row)) for row in ids.tolist()]

    def needed(self, eta: float, radius: int) -> float:
        kernel = self.kernel
        return rounded_up(_needed(eta, kernel.rate, len(kernel.symbols), min(radius, len(self.ids))))
