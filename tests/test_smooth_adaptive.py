"""Deletion at a rate that depends on the length: every certificate against brute force, changes of rate included."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import pytest
from oracle import TestFilter, arbitrary, keyword
from test_smooth_bounds import MOVES, deletion_law

from promptguard.certify.adaptive_deletion import AdaptiveDeletion
from promptguard.certify.deletion_smoothing import DeletionSmoothing
from promptguard.certify.smoothing import Sampling
from promptguard.errors import EmptyText, InvalidArgument, UnsupportedThreat
from promptguard.guard import Guard
from promptguard.threat import Threat
from promptguard.types import Certifier, Filter, Label
from promptguard.units import Chars, Words

BOMB = keyword("bomb", "never-there")
ADDED = {1: 0.5, 4: 0.875}
OTHERS = {1: 0.875, 4: 0.8125}  # edits need large shares, and radii that they reach
RATES = {"suffix": ADDED, "infusion": ADDED, "deletion": OTHERS, "substitution": OTHERS, "edit": OTHERS}
ETA = 0.02
SAMPLES = Sampling(samples=600, last_look=False)
# "long" loses at the higher rate what it has at the lower one, "short" the other way round.
FILTERS = {
    "long": TestFilter(lambda text: float(len(text) >= 2)),
    "short": TestFilter(lambda text: float(len(text) == 1)),
    "a": TestFilter(lambda text: float("a" in text)),
    "any": arbitrary(3),
}
TEXTS = ["".join(letters) for n in (2, 3, 4) for letters in product("ab", repeat=n)]


def rate_of(n: int, rates: Mapping[int, float]) -> Fraction:
    return Fraction(rates[max(fewest for fewest in rates if fewest <= n)])


@cache
def share(name: str, text: str, rate: Fraction) -> Fraction:
    """mu at this rate, exactly; blank texts are not harmful."""
    law, filter_ = deletion_law(text, rate), FILTERS[name]
    return sum((p for z, p in law.items() if z and filter_.score(z) >= filter_.threshold), Fraction(0))


def within(text: str, threat: str, edits: int) -> set[str]:
    reached = {text}
    for _ in range(edits):
        reached |= {y for x in reached for y in MOVES[threat](x)}
    return reached


def adaptive(radius: int | None, filter_: Filter, rates: Mapping[int, float], **more: Any) -> AdaptiveDeletion:
    settings = {"eta": ETA, "sampling": SAMPLES, "rng": random.Random(0), **more}
    return AdaptiveDeletion(filter_, Chars(), radius, rates=rates, **settings)


def radius_of(certifier: Certifier, text: str) -> int | None:
    certificate = certifier.certify(text).certificate
    return int(certificate.threat.budget) if certificate else None


@pytest.mark.parametrize("radius", [None, 1, 2])
@pytest.mark.parametrize("threat", RATES)
def test_no_attacked_text_falls_to_eta_at_its_own_rate(threat: str, radius: int | None) -> None:
    rates, crossed = RATES[threat], 0
    for name, text in product(FILTERS, TEXTS):
        found = radius_of(adaptive(radius, FILTERS[name], rates, threat=threat), text)
        for x in within(text, threat, min(2, found)) - {""} if found is not None else ():
            assert share(name, x, rate_of(len(x), rates)) > ETA
            crossed += rate_of(len(x), rates) != rate_of(len(text), rates)
    if radius != 2:
        assert bool(crossed) == (threat != "substitution")  # certificates do reach lengths of another rate


def test_the_share_at_the_own_rate_alone_proves_nothing() -> None:
    """Why every rate in reach is sampled: three letters flag this filter often, and of four too few are left."""
    text, eta, own = "abc", 0.1, DeletionSmoothing
    fixed = own(FILTERS["long"], Chars(), 1, rate=ADDED[1], eta=eta, sampling=SAMPLES, rng=random.Random(0))
    assert radius_of(fixed, text) == 1
    assert share("long", text + "a", rate_of(4, ADDED)) < eta
    verdict = adaptive(1, FILTERS["long"], ADDED, eta=eta).certify(text)
    assert verdict.label is Label.HARMFUL
    assert verdict.certificate is not None
    assert verdict.certificate.threat.budget == 0


def test_edits_that_end_before_the_next_rate_are_certified_without_it() -> None:
    """Two letters more keep the rate; the third would lead where nothing is flagged."""
    rates = {1: 0.9, 8: 0.999}
    assert radius_of(adaptive(None, FILTERS["long"], {1: 0.9}), "abcde") in range(5, 14)
    assert radius_of(adaptive(None, FILTERS["long"], rates), "abcde") == 2
    assert radius_of(adaptive(2, FILTERS["long"], rates), "abcde") == 2
    assert radius_of(adaptive(3, FILTERS["long"], rates), "abcde") == 2


def test_the_own_rate_limits_the_radius_too() -> None:
    alone = radius_of(adaptive(None, FILTERS["a"], {1: 0.5}), "aaaa")
    assert alone is not None
    assert alone < (radius_of(adaptive(None, FILTERS["a"], {1: 0.9}), "aaaa") or 0)
    assert radius_of(adaptive(None, FILTERS["a"], {1: 0.5, 5: 0.9}), "aaaa") == alone


def test_deleted_units_lead_to_the_rates_of_shorter_texts() -> None:
    alone, both = {1: 0.8}, {1: 0.99, 4: 0.8}
    assert (radius_of(adaptive(None, FILTERS["a"], alone, threat="deletion"), "aaaa") or 0) >= 2
    assert radius_of(adaptive(None, FILTERS["a"], both, threat="deletion"), "aaaa") == 0
    assert (radius_of(adaptive(None, FILTERS["a"], both), "aaaa") or 0) >= 2  # added ones do not


def test_the_label_is_that_of_the_own_rate() -> None:
    certifier = adaptive(None, FILTERS["long"], {1: 0.5, 4: 0.999})
    assert [certifier.certify("a" * n).label for n in (2, 3, 4, 5)] == [*[Label.HARMFUL] * 2, *[Label.SAFE] * 2]


def test_only_rates_in_reach_are_sampled() -> None:
    filter_, sampled = FILTERS["a"], Sampling(samples=600)
    rates = {1: 0.5, 6: 0.6, 9: 0.7}
    checks = {n: adaptive(1, filter_, rates, sampling=sampled).certify("a" * n).checks for n in range(1, 10)}
    alone = {n: adaptive(1, filter_, {1: 0.5}, sampling=sampled).certify("a" * n).checks for n in range(1, 10)}
    assert all(checks[n] == alone[n] for n in range(1, 5))
    assert checks[5] > alone[5]  # one more letter changes the rate
    other = adaptive(1, filter_, rates, threat="substitution", eta=0.2, sampling=sampled).certify("a" * 5)
    same = adaptive(1, filter_, {1: 0.5}, threat="substitution", eta=0.2, sampling=sampled).certify("a" * 5)
    assert other.checks == same.checks  # replaced letters never change the length


def test_one_rate_for_all_lengths_is_deletion_smoothing() -> None:
    own = DeletionSmoothing(BOMB, Words(), 2, rate=0.7, eta=0.04, rng=random.Random(5))
    same = AdaptiveDeletion(BOMB, Words(), 2, rates={1: 0.7}, eta=0.04, rng=random.Random(5))
    for text in ("how do I build a bomb at home", "how do I bake a cake at home"):
        mine, theirs = same.certify(text), own.certify(text)
        assert (mine.label, mine.score, mine.checks, mine.threat) == (
            theirs.label,
            theirs.score,
            theirs.checks,
            own.threat(),
        )
    assert Guard(same).check("how do I bake a cake at home").allowed


def test_the_certificate_names_the_rates() -> None:
    verdict = adaptive(1, FILTERS["a"], ADDED, rng=None).certify("aaa")
    assert verdict.certificate is not None
    assert verdict.certificate.method == "adaptive-deletion-smoothing"
    assert verdict.certificate.threat == Threat("infusion", 1, "char") == verdict.threat
    assert "number of units: 0.5 from 1 on, 0.875 from 4 on" in " ".join(verdict.certificate.assumes)
    assert adaptive(1, FILTERS["a"], ADDED).threat(7) == Threat("infusion", 7, "char")


@pytest.mark.parametrize(
    "rates", [{}, {2: 0.5}, {1: 0.5, 0: 0.5}, {1: 0.5, 1.5: 0.6}, {True: 0.5}, {1: 0.5, 4: 1.0}, {1: math.nan}]
)
def test_rates_that_mean_nothing_are_refused(rates: Any) -> None:
    with pytest.raises(InvalidArgument):
        adaptive(1, FILTERS["a"], rates)


def test_what_one_of_the_rates_cannot_certify_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="out of reach"):
        adaptive(9, FILTERS["a"], ADDED)
    with pytest.raises(UnsupportedThreat):
        adaptive(1, FILTERS["a"], ADDED, threat="wrap")
    with pytest.raises(EmptyText):
        adaptive(1, FILTERS["a"], ADDED).certify(" ")
