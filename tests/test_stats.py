"""Intervals cover what they promise, checked against exact binomial sums."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptguard.errors import InvalidArgument
from promptguard.stats import clopper_pearson


def binomial_tail(successes: int, trials: int, p: float) -> float:
    """P[X >= successes] for X binomial, summed term by term."""
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))


@given(trials=st.integers(1, 60), data=st.data())
def test_limits_solve_the_two_binomial_equations(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    interval = clopper_pearson(successes, trials)
    if successes:
        assert binomial_tail(successes, trials, interval.low) == pytest.approx(0.025, rel=1e-6)
    if successes < trials:
        assert 1 - binomial_tail(successes + 1, trials, interval.high) == pytest.approx(0.025, rel=1e-6)
    assert interval.low <= successes / trials <= interval.high


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.97])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_coverage_is_at_least_the_confidence(p: float, confidence: float) -> None:
    trials = 40
    covered = 0.0
    for k in range(trials + 1):
        interval = clopper_pearson(k, trials, confidence)
        if interval.low <= p <= interval.high:
            covered += math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
    assert covered >= confidence


def test_extremes_have_closed_forms() -> None:
    assert clopper_pearson(0, 10).low == 0.0
    assert clopper_pearson(10, 10).high == 1.0
    assert clopper_pearson(10, 10).low == pytest.approx(0.025 ** (1 / 10))


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_arguments_outside_their_range_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgument):
        clopper_pearson(*arguments)
