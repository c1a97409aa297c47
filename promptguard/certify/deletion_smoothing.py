"""Deletion smoothing: each unit is deleted with probability p.

RS-Del (Huang et al., NeurIPS 2023, *RS-Del: Edit Distance Robustness Certificates for Sequence Classifiers via
Randomized Deletion*) for certificates against any edits, and CERT-ED (Huang et al., 2024) for text. The deciding share
eta is free here: a safety filter may flag at far less than one half, which is what makes the radii large.

    Theorem. Let x' differ from x by edits, n and n' be their numbers of units, and l the length of their longest common
    subsequence. Then mu(x') >= p^(n' - n) (mu(x) - 1 + p^(n - l)).

Proof. With probability p^(n - l) the noise deletes all of x that is not in the subsequence, with p^(n' - l) all of x'
that is not; what remains of both has the same law. So mu(x) <= 1 - p^(n - l) + p^(n - l) m and mu(x') >= p^(n' - l) m,
where m is the share of flagged noised versions of the subsequence.

For up to r edits of one kind the worst case is r of them:

| threat | mu(x') is at least | mu(x) must exceed |
|---|---|---|
| suffix, insertion (one block), infusion | mu p^r | eta / p^r |
| deletion | 1 - (1 - mu) / p^r | 1 - (1 - eta) p^r |
| substitution, or any edits | mu - 1 + p^r | eta + 1 - p^r |

Each is tight: for some filter it is attained. (The authors' code has the first two the wrong way round for an attacker
who inserts or deletes.)

With a small eta this is the certified form of RandEC (`promptguard.certify.empirical`): it samples erasures, and flags
a text when enough of them are flagged; what RandEC lacks is the count that makes a promise of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

import numpy as np

from promptguard.certify.smoothing import Sampling, Smoothed, rounded_up
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.types import Filter, Units, Verdict

_Need = Callable[[float, float], float]


def _if_added(eta: float, power: float) -> float:
    return eta / power if power > eta else 1.0


def _if_deleted(eta: float, power: float) -> float:
    return 1 - (1 - eta) * power


def _if_edited(eta: float, power: float) -> float:
    return eta + (1 - power)


# From eta and p^r to the share that is needed.
_NEEDED: dict[str, _Need] = {
    "suffix": _if_added,
    "insertion": _if_added,
    "infusion": _if_added,
    "deletion": _if_deleted,
    "substitution": _if_edited,
    "edit": _if_edited,
}


class DeletionSmoothing:
    """Certifies that edits of a harmful prompt do not hide it from the smoothed filter.

    Theorem: let `certify(P)` give a certificate of radius r, and let the pieces of x be those of P with up to r units
    added, deleted or replaced, as the threat says. Then, except with probability alpha, more than eta of x's noised
    texts are flagged; and a run on x says "safe" with probability at most alpha.

    Args:
        filter_: the filter F; any will do, and one trained on texts with words missing does better.
        units: what is deleted and what the radius counts.
        radius: units that the attacker may add or change; None reports the largest radius, which takes all samples.
        rate: p, the chance that a unit is deleted, in (0, 1). More noise gives larger radii and smaller shares.
        eta: a text is harmful when more than this share of its noised versions is flagged, in (0, 1).
        threat: "infusion", "insertion" (one block), "suffix", "deletion", "substitution" or "edit" (all of them).
        sampling: error rates and limits.
        rng: one draw per text seeds its noise. The default is the system's; benchmarks pass a seeded one.

    Raises:
        UnsupportedThreat: another threat.
        InvalidArgument: rate, eta or radius outside its range, a radius out of reach, or too few samples.
    """

    method = "deletion-smoothing"

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        radius: int | None,
        *,
        rate: float,
        eta: float = 0.5,
        threat: str = "infusion",
        sampling: Sampling | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not 0 < rate < 1:
            raise InvalidArgument(f"the deletion rate must be between 0 and 1, both excluded, not {rate!r}")
        if threat not in _NEEDED:
            raise UnsupportedThreat(f"deletion smoothing certifies {', '.join(_NEEDED)}; not {threat!r}")
        self.filter = filter_
        self.units = units
        kernel = _Kernel(threat, rate, units)
        self._smoothed = Smoothed(filter_, units, kernel, radius=radius, eta=eta, sampling=sampling, rng=rng)

    def threat(self, radius: int | None = None) -> Threat:
        """What a certificate covers, at the radius that was asked for or another one."""
        return self._smoothed.threat(radius)

    def certify(self, x: str) -> Verdict:
        """Sample texts that x leaves when units are deleted.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all samples.
            FilterError: the filter broke its contract.
        """
        return self._smoothed.verdict(x)


@dataclass(frozen=True, slots=True)
class _Kernel:
    kind: str
    rate: float
    units: Units
    method: str = DeletionSmoothing.method

    @property
    def assumes(self) -> tuple[str, ...]:
        added = _NEEDED[self.kind] is _if_added
        return (
            f"noise: each unit is deleted with probability {self.rate!r}",
            f"edits are counted between the pieces of unit {self.units.name} that the two texts are cut into",
            *([f"unit {self.units.name} covers {self.units.covers}"] if added else []),
        )

    def of(self, pieces: list[str]) -> _Noised:
        return _Noised(pieces, self)

    def least(self, eta: float, radius: int) -> float:
        return rounded_up(_NEEDED[self.kind](eta, self.rate**radius))


@dataclass(frozen=True, slots=True)
class _Noised:
    pieces: list[str]
    kernel: _Kernel
    most: int | None = None

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        kept = rng.random((count, len(self.pieces))) >= self.kernel.rate
        return ["".join(compress(self.pieces, row)) for row in kept.tolist()]

    def needed(self, eta: float, radius: int) -> float:
        return self.kernel.least(eta, radius)
