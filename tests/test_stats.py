"""Intervals cover what they promise, checked against exact binomial sums."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from promptguard.errors import InvalidArgument
from promptguard.stats import clopper_pearson, exceedances_allowed, threshold_above, trials_needed, upper_bound


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


# Thresholds from a calibration sample

RATES = [0.5, 0.2, 0.1, 0.05, 0.01, 0.001]
CONFIDENCES = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999]


def binomial_head(successes: int, trials: int, p: float) -> float:
    """P[X <= successes] for X binomial."""
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes + 1))


@given(trials=st.integers(1, 60), confidence=st.sampled_from(CONFIDENCES), data=st.data())
def test_the_upper_bound_solves_its_binomial_equation(trials: int, confidence: float, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    bound = upper_bound(successes, trials, confidence)
    if successes == trials:
        assert bound == 1.0
    else:
        assert binomial_head(successes, trials, bound) == pytest.approx(1 - confidence, rel=1e-6)


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("rate", RATES)
def test_the_allowed_exceedances_are_the_most_that_keep_the_promise(rate: float, confidence: float) -> None:
    """Without ties the rate above the (k + 1)-th largest of n scores is Beta(k + 1, n - k): one more is too many."""
    slack = 1e-9
    for trials in (1, 2, 7, 29, 59, 100, 299, 300, 1000, 2995, 5000):
        k = exceedances_allowed(trials, rate, confidence)
        if k is not None:
            assert beta.sf(rate, k + 1, trials - k) <= 1 - confidence + slack
        over = 0 if k is None else k + 1
        if over < trials:
            assert beta.sf(rate, over + 1, trials - over) > 1 - confidence - slack


@pytest.mark.parametrize(("rate", "confidence", "needed"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.5, 0.75, 2)])
def test_known_sample_sizes(rate: float, confidence: float, needed: int) -> None:
    assert trials_needed(rate, confidence) == needed


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("rate", RATES)
def test_the_sample_size_needed_is_the_smallest_that_will_do(rate: float, confidence: float) -> None:
    needed = trials_needed(rate, confidence)
    assert exceedances_allowed(needed, rate, confidence) == 0
    assert needed == 1 or exceedances_allowed(needed - 1, rate, confidence) is None


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]), min_size=1), st.sampled_from([0.0, 1e-4]), st.data())
def test_no_more_scores_than_allowed_pass_the_threshold(
    scores: list[float], margin: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(scores) - 1))
    threshold = threshold_above(scores, k, margin)
    if math.isfinite(threshold):
        assert sum(score + margin >= threshold for score in scores) <= k
        below = math.nextafter(threshold, -math.inf)  # the smallest such threshold: its neighbour lets one more pass
        assert sum(score + margin >= below for score in scores) > k


def failures(weights: Sequence[float], trials: int, rate: float, confidence: float) -> float:
    """P[true rate at the threshold > rate], exactly, when scores are 0, 1, ... with these probabilities."""
    k = exceedances_allowed(trials, rate, confidence)
    assert k is not None
    failed = 0.0
    for sample in product(range(len(weights)), repeat=trials):
        threshold = threshold_above(sample, k)
        if sum(weight for score, weight in enumerate(weights) if score >= threshold) > rate:
            failed += math.prod(weights[score] for score in sample)
    return failed


@pytest.mark.parametrize(
    "weights", [(0.5, 0.5), (0.7, 0.3), (0.4, 0.31, 0.29), (0.05, 0.64, 0.31), (0.3, 0.3, 0.2, 0.2)]
)
def test_the_promise_holds_with_ties_over_every_sample(weights: Sequence[float]) -> None:
    for trials, rate, confidence in ((6, 0.3, 0.5), (7, 0.5, 0.6), (7, 0.3, 0.9), (5, 0.25, 0.6)):
        assert failures(weights, trials, rate, confidence) <= 1 - confidence + 1e-12


def test_simulated_failures_are_as_many_as_the_beta_law_says() -> None:
    """Uniform scores: the true rate at a threshold t is 1 - t. One rank too low or too high would show."""
    trials, rate, confidence, runs = 200, 0.05, 0.9, 4000
    k = exceedances_allowed(trials, rate, confidence)
    assert k == 5
    rng = random.Random(0)
    thresholds = [threshold_above([rng.random() for _ in range(trials)], k) for _ in range(runs)]
    failed = sum(1 - threshold > rate for threshold in thresholds) / runs
    law = [float(beta.sf(rate, k + 1 + off, trials - k - off)) for off in (-1, 0, 1)]
    spread = 4 * math.sqrt(law[1] * (1 - law[1]) / runs)
    assert abs(failed - law[1]) < spread
    assert min(abs(law[0] - law[1]), abs(law[2] - law[1])) > 1.5 * spread  # so that a neighbour would fail


@pytest.mark.parametrize(
    "call",
    [
        lambda: upper_bound(1, 0),
        lambda: upper_bound(-1, 5),
        lambda: upper_bound(6, 5),
        lambda: upper_bound(1, 5, 1.0),
        lambda: exceedances_allowed(0, 0.1),
        lambda: exceedances_allowed(5, 0.0),
        lambda: exceedances_allowed(5, 1.0),
        lambda: exceedances_allowed(5, math.nan),
        lambda: exceedances_allowed(5, 0.1, 0.0),
        lambda: trials_needed(0.0),
        lambda: trials_needed(0.1, 1.0),
        lambda: threshold_above([], 0),
        lambda: threshold_above([1.0], 1),
        lambda: threshold_above([1.0], -1),
        lambda: threshold_above([1.0], 0, -0.1),
        lambda: threshold_above([1.0], 0, math.nan),
    ],
)
def test_meaningless_calibrations_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument):
        call()
