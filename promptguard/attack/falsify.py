"""Attacks inside a certificate: what a certificate says cannot be found must not be found.

A counter-example proves a certificate wrong. None after many attempts proves nothing, but every fault that was ever
found in a certifier was found by looking.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from promptguard.attack.base import Attack, AttackResult, check_sizes
from promptguard.attack.infusion import EvolutionaryInfusion, GreedyInfusion
from promptguard.attack.objective import CertifierObjective
from promptguard.attack.random_search import RandomSearch
from promptguard.attack.reach import MAX_ADDED, Reach
from promptguard.errors import BudgetExceeded, InvalidArgument
from promptguard.types import Certificate, Certifier, Filter, Label, Units, Verdict
from promptguard.units import load_units

_ALL = 1_000_000  # more units than any budget


@dataclass(frozen=True, slots=True)
class CounterExample:
    """A text that a certificate says is impossible.

    Attributes:
        certificate: what it refutes.
        result: the attack that found it; its text is in no repr and no JSON.
    """

    certificate: Certificate
    result: AttackResult

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without any text."""
        return {"threat": self.certificate.threat.to_dict(), "result": self.result.to_dict()}


@dataclass(frozen=True, slots=True)
class Falsification:
    """What attacks inside the certificates of a verdict came to.

    Attributes:
        certificates: certificates attacked.
        left_out: certificates that were not: sampled ones, those of another label than "harmful", and those of a threat
            that none of the attacks can search.
        attacks: attacks run.
        attempts: attacked texts that the certifier was asked about, over all attacks.
        calls: texts that the filter scored for them.
        counter_examples: the attacks that succeeded; empty for a sound certifier.
    """

    certificates: int
    left_out: int
    attacks: int
    attempts: int
    calls: int
    counter_examples: tuple[CounterExample, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without any text."""
        return {
            "certificates": self.certificates,
            "left_out": self.left_out,
            "attacks": self.attacks,
            "attempts": self.attempts,
            "calls": self.calls,
            "counter_examples": [example.to_dict() for example in self.counter_examples],
        }


def falsifiers(*, queries: int = 100) -> list[Attack]:
    """Score-only attacks that use the whole budget of whatever certificate they are aimed at.

    Args:
        queries: texts that each of them asks about, roughly.

    Raises:
        InvalidArgument: fewer than 4 queries.
    """
    check_sizes(queries=queries - 3)
    side = math.isqrt(queries)
    return [
        RandomSearch(length=_ALL, steps=side, candidates=side, restarts=1),
        GreedyInfusion(budget=_ALL, candidates=max(1, queries // MAX_ADDED)),
        EvolutionaryInfusion(budget=_ALL, population=side, generations=side),
    ]


def falsify(
    certifier: Certifier,
    text: str,
    verdict: Verdict,
    attacks: Sequence[Attack],
    rng: random.Random,
    *,
    filter_: Filter | None = None,
    units: Units | None = None,
    cap: int = MAX_ADDED,
) -> Falsification:
    """Attack a certified text inside the threat of every certificate of its verdict.

    A text gets through when the certifier does not call it harmful, or refuses it because of its budget of checks.
    Other refusals block the text, as the certificates say. A success counts only if the threat holds its text and the
    certifier lets it through once more.

    Args:
        certifier: gave the verdict.
        text: the certified text.
        verdict: what `certifier.certify(text)` returned. Without a certificate nothing is attacked. A certificate of a
            confidence below 1 speaks of a smoothed label, which one more sampled verdict cannot refute: it is left out.
        attacks: each is aimed at the certificates whose kind of threat it can search. Those that add fewer units than a
            certificate's budget leave the rest of it untried; see `falsifiers`.
        rng: gives each attack its seed.
        filter_: whose token gradients guide white-box attacks; default the certifier's own `filter`.
        units: what the budgets count; needed for unit "token" only.
        cap: units that stand for an unlimited, or a larger, budget.

    Raises:
        UnsupportedThreat: a white-box attack has no gradients, or a third party's a kind of threat that is unknown.
        InvalidArgument: units are missing or not the certificate's, or an attack left its threat.
    """
    objective = CertifierObjective(certifier, filter_=filter_, breaking=(BudgetExceeded,))
    results: list[tuple[Certificate, Reach, AttackResult]] = []
    attacked = 0
    for certificate in verdict.certificates:
        fit = [attack for attack in attacks if certificate.threat.kind in attack.kinds]
        if not fit or certificate.confidence < 1.0 or certificate.label is not Label.HARMFUL:
            continue
        attacked += 1
        reach = Reach(text, certificate.threat, _units_of(certificate, units), cap=cap)
        results += [(certificate, reach, attack.run(objective, reach, rng.getrandbits(32))) for attack in fit]
    return Falsification(
        certificates=attacked,
        left_out=len(verdict.certificates) - attacked,
        attacks=len(results),
        attempts=sum(result.attempts for _, _, result in results),
        calls=sum(result.calls for _, _, result in results),
        counter_examples=tuple(
            CounterExample(certificate, result)
            for certificate, reach, result in results
            if _is_counter_example(objective, reach, result)
        ),
    )


def _units_of(certificate: Certificate, units: Units | None) -> Units:
    name = certificate.threat.unit
    if units is not None and units.name == name:
        return units
    if name.startswith("token"):
        raise InvalidArgument(f"pass the units of the certificate, {name!r}")
    return load_units(name)


def _is_counter_example(objective: CertifierObjective, reach: Reach, result: AttackResult) -> bool:
    if not reach.holds(result.text):
        raise InvalidArgument(f"attack {result.attack!r} left the threat that it was given")
    return objective([result.text])[0].broken
