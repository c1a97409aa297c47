"""Deletion smoothing with more noise for longer texts: p depends on the number of units n.

Long harmless texts collect words that a filter minds; more deletion thins them out, and a short prompt keeps enough of
its words under less. Length-dependent deletion: Huang et al. 2025, *AdaptDel*. What is certified here is simpler, and
needs no more than the theorem of `promptguard.certify.deletion_smoothing`.

    Theorem. Let p(n) be the rate for texts of n units. If for every n' that up to r edits of P lead to, the flagged
    share of P's noised versions *at the rate p(n')* exceeds what a radius r needs at that rate, then for every x within
    r edits the share at x's own rate exceeds eta.

Proof. x has some n' units and is noised at p(n'). Apply the theorem of deletion smoothing at that rate to P and x.

The share at P's own rate says nothing about the others: each rate in reach is sampled apart. No alpha is split. A false
certificate needs one of these samples, which one depends on the filter and P alone, to certify what does not hold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from promptguard.certify.deletion_smoothing import DeletionSmoothing
from promptguard.certify.pieces import Pieces
from promptguard.certify.smoothing import Sampling
from promptguard.errors import InvalidArgument
from promptguard.threat import Threat
from promptguard.types import Filter, Units, Verdict
from promptguard.view import check_text

_GROWS = {"suffix", "insertion", "infusion", "edit"}
_SHRINKS = {"deletion", "edit"}


class AdaptiveDeletion:
    """Certifies like `DeletionSmoothing`, with a rate of deletion that depends on the length of the text.

    Theorem: let `certify(P)` give a certificate of radius r, and let the pieces of x be those of P with up to r units
    added, deleted or replaced, as the threat says. Then, except with probability alpha, more than eta of x's noised
    texts are flagged; and a run on x says "safe" with probability at most alpha.

    Args:
        filter_: the filter F.
        units: what is deleted and what the radius counts.
        radius: units that the attacker may add or change; None reports the largest radius, which takes all samples.
        rates: fewest units to p from there on, for instance {1: 0.7, 30: 0.9}; it must hold 1.
        eta: a text is harmful when more than this share of its noised versions is flagged, in (0, 1).
        threat: as for `DeletionSmoothing`.
        sampling: error rates and limits; `samples` are for each rate in reach.
        rng: one draw per text and rate seeds its noise. The default is the system's; benchmarks pass a seeded one.

    Raises:
        UnsupportedThreat: another threat.
        InvalidArgument: no rate for some length, or what `DeletionSmoothing` refuses, for one of the rates.
    """

    method = "adaptive-deletion-smoothing"

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        radius: int | None,
        *,
        rates: Mapping[int, float],
        eta: float = 0.5,
        threat: str = "infusion",
        sampling: Sampling | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if 1 not in rates or not all(type(n) is int and n >= 1 for n in rates):
            raise InvalidArgument("rates must hold 1, and other whole numbers of units above it, each with its rate")
        self.filter = filter_
        self.units = units
        self._sampling = sampling or Sampling()
        rng = rng or random.SystemRandom()

        def step(fewest: int, above: float) -> _Step:
            rate = rates[fewest]
            certifier = DeletionSmoothing(
                filter_, units, radius, rate=rate, eta=eta, threat=threat, sampling=self._sampling, rng=rng
            )
            return _Step(fewest, above - 1, rate, certifier)

        self._steps = tuple(step(int(fewest), above) for fewest, above in pairwise([*sorted(rates), math.inf]))

    def threat(self, radius: int | None = None) -> Threat:
        """What a certificate covers, at the radius that was asked for or another one."""
        return self._steps[0].certifier.threat(radius)

    def certify(self, x: str) -> Verdict:
        """Sample at the rate of x's length; if that gives a certificate, at the other rates that its threat reaches.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all samples.
            FilterError: the filter broke its contract.
        """
        n, kind = len(Pieces.of(check_text(x, self._sampling.max_chars), self.units)), self.threat().kind
        nearest, *others = sorted(self._steps, key=lambda step: step.distance(n, kind))
        verdict = nearest.certifier.certify(x)
        if verdict.certificate is None:
            return verdict
        radius, calls, checks = verdict.certificate.threat.budget, verdict.calls, verdict.checks
        for step in others:
            distance = step.distance(n, kind)
            if distance > radius:
                break
            found = step.certifier.certify(x)
            calls, checks = calls + found.calls, checks + found.checks
            holds = found.certificate.threat.budget if found.certificate else 0
            radius = min(radius, max(holds, distance - 1))  # up to distance - 1 edits never lead there
        certificate = replace(
            verdict.certificate,
            threat=self.threat(int(radius)),
            method=self.method,
            assumes=(*verdict.certificate.assumes, self._lengths()),
        )
        return replace(verdict, calls=calls, checks=checks, threat=certificate.threat, certificate=certificate)

    def _lengths(self) -> str:
        rates = ", ".join(f"{step.rate!r} from {step.fewest} on" for step in self._steps)
        return f"the rate of deletion depends on the number of units: {rates}"


@dataclass(frozen=True, slots=True)
class _Step:
    fewest: int
    most: float
    rate: float
    certifier: DeletionSmoothing

    def distance(self, n: int, kind: str) -> float:
        """Edits that take a text of n units into this step; infinite if the threat never does."""
        if self.fewest <= n <= self.most:
            return 0
        if n < self.fewest:
            return self.fewest - n if kind in _GROWS else math.inf
        return n - self.most if kind in _SHRINKS else math.inf
