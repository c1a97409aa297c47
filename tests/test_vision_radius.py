"""Radii and shares: the theorem on half-spaces, where it is exact, and every rounding on the safe side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from promptguard.errors import InvalidArgument
from promptguard.stats import SequentialTest, clopper_pearson, lower_bound, upper_bound
from promptguard.vision.looks import Looks
from promptguard.vision.radius import certified_radius, pixeldp_radius, share_needed, shown

SHARES = st.floats(1e-9, 1 - 1e-9)


@settings(deadline=None)
@given(st.floats(0, 6), st.floats(0.01, 10))
def test_on_a_half_space_the_radius_is_the_distance(distance: float, sigma: float) -> None:
    share = math.nextafter(float(ndtr(distance)), 0)  # the nearest float may lie above
    found = certified_radius(share, float(ndtr(-distance)), sigma)
    assert found <= distance * sigma
    assert found == pytest.approx(distance * sigma, abs=1e-7 * sigma)


def test_all_votes_for_one_class() -> None:
    low = lower_bound(100_000, 100_000, 0.999)
    assert low == pytest.approx(0.999930924833, abs=2e-9)
    assert shown(certified_radius(low, 1 - low, 1.0), 4) == "3.8114"  # 3.81149...: printing 3.8115 promises too much


def test_one_minus_p_a_is_weak_with_many_classes() -> None:
    n, alpha = 100_000, 0.001
    low = lower_bound(55_000, n, 1 - alpha)
    assert certified_radius(low, 1 - low, 1.0) == pytest.approx(0.113, abs=1e-3)
    each = alpha / 10
    found = certified_radius(lower_bound(55_000, n, 1 - each), upper_bound(5_000, n, 1 - each), 1.0)
    assert found == pytest.approx(0.866, abs=2e-3)


def test_no_cell_is_above_float64_or_infinite() -> None:
    for n in (100, 1000, 100_000):
        for k in {n // 2 + 1, 3 * n // 4, n - 1, n}:
            low = lower_bound(k, n, 0.999)
            found = certified_radius(low, 1 - low, 0.5)
            assert found <= max(0.0, 0.5 * float(ndtri(low)))
            assert math.isfinite(found)
    near = 1 - 1e-8
    assert torch.special.ndtri(torch.tensor(near)).isinf()  # what single precision makes of it
    assert certified_radius(near, 1 - near, 1.0) == pytest.approx(5.612, abs=1e-3)


@settings(deadline=None)
@given(SHARES, SHARES)
def test_no_radius_without_a_lead(p_a: float, p_b: float) -> None:
    found = certified_radius(p_a, p_b, 1.0)
    assert (found > 0) == (p_a > p_b and ndtri(p_a) - ndtri(p_b) > 1e-10) or found == 0.0
    if p_a <= p_b:
        assert found == 0.0


@settings(deadline=None)
@given(st.floats(0, 5), st.floats(0.1, 3), st.sampled_from([0.0, 1e-9, 1e-6, 1e-3]))
def test_the_share_that_a_radius_needs_fits_and_rounds_up(r: float, sigma: float, slack: float) -> None:
    needed = share_needed(r * sigma, sigma, slack)
    assert needed >= float(ndtr(r))
    if needed < 1 - 1e-6:
        back = certified_radius(min(needed + 1e-9, 1 - 1e-9), max(1 - needed - 1e-9, 1e-9), sigma, slack)
        assert back == pytest.approx(r * sigma, rel=1e-2, abs=1e-2)
        least = certified_radius(needed, 1 - needed, sigma, slack)
        assert share_needed(least, sigma, slack) <= needed * (1 + 1e-10)


@settings(deadline=None)
@given(st.floats(0.5, 0.9999), st.floats(0.01, 0.5), st.floats(0, 1e-3))
def test_slack_covers_the_worst_noise_at_that_distance(p_a: float, part: float, slack: float) -> None:
    """The worst law moves the shares by the slack at the image and again at the attacked one."""
    p_b = (1 - p_a) * part * 2
    radius = certified_radius(p_a, p_b, 1.0, slack)
    if radius > 0:
        upper = float(ndtr(ndtri(p_a - slack) - radius)) - slack
        lower = float(ndtr(ndtri(p_b + slack) + radius)) + slack
        assert upper >= lower - 1e-12
    needed = share_needed(0.3, 1.0, slack)
    assert float(ndtr(ndtri(needed - slack) - 0.3)) - slack >= 0.5 - 1e-12


@pytest.mark.parametrize(("p_a", "p_b"), [(0.99, 0.3), (0.7, 0.01)])
def test_slack_counts_for_both_classes(p_a: float, p_b: float) -> None:
    radius, slack = certified_radius(p_a, p_b, 1.0, 0.01), 0.01
    upper, lower = ndtr(ndtri(p_a - slack) - radius) - slack, ndtr(ndtri(p_b + slack) + radius) + slack
    assert upper >= lower - 1e-12


def test_slack_costs_something() -> None:
    assert certified_radius(0.9, 0.1, 1.0, 1e-3) < certified_radius(0.9, 0.1, 1.0) - 1e-3
    assert certified_radius(0.5005, 0.4995, 1.0, 1e-3) == 0.0


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
@example(2.225073858507e-311, 2.2250738585e-313)
@example(1e-280, 5e-324)
def test_pixeldp_never_proves_more(p_a: float, p_b: float) -> None:
    old = pixeldp_radius(p_a, p_b, 1.0)
    if p_a < 1 and p_b > 0:
        assert old <= certified_radius(p_a, p_b, 1.0) + 1e-9
    if p_a <= p_b:
        assert old == 0.0


def test_pixeldp_proves_something() -> None:
    assert 0.1 < pixeldp_radius(0.999, 0.001, 1.0) < 0.5 * certified_radius(0.999, 0.001, 1.0)


@settings(deadline=None)
@given(st.floats(0, 100), st.integers(0, 6))
def test_printing_rounds_down(radius: float, digits: int) -> None:
    assert radius - 10.0**-digits - 1e-9 <= float(shown(radius, digits)) <= radius


@pytest.mark.parametrize(
    "call",
    [
        lambda: certified_radius(1.0, 0.1, 1.0),
        lambda: certified_radius(0.9, 0.0, 1.0),
        lambda: certified_radius(0.9, 0.1, 0.0),
        lambda: certified_radius(0.9, 0.1, 1.0, 0.5),
        lambda: certified_radius(math.nan, 0.1, 1.0),
        lambda: share_needed(-0.1, 1.0),
        lambda: share_needed(math.inf, 1.0),
        lambda: pixeldp_radius(0.9, 1.1, 1.0),
        lambda: Looks.of(1.0, 0.5, 0.01, 1000, futility=0.01, last_look=True),
        lambda: Looks.of(0.9, 0.5, 0.001, 20, futility=0.01, last_look=True),
    ],
)
def test_arguments_that_mean_nothing(call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call()


# Looks


@pytest.mark.parametrize("last_look", [True, False])
@pytest.mark.parametrize("p0", [0.5, 0.66, 0.84, 0.977])
def test_the_table_says_what_the_test_says(p0: float, last_look: bool) -> None:
    looks = Looks.of(p0, 0.5, 0.01, 700, futility=0.05, last_look=last_look)
    test = SequentialTest(p0, 0.01, 700 if last_look else None)
    half = SequentialTest(0.5, 0.01, 700 if last_look else None)
    assert looks.trials[-1] == 700
    assert np.all(np.diff(looks.trials) > 0)
    for at, n in enumerate(looks.trials):
        successes = np.arange(n + 1)
        np.testing.assert_array_equal(test.rejects(successes, n - successes), successes >= looks.holds[at])
        np.testing.assert_array_equal(half.rejects(successes, n - successes), successes >= looks.majority[at])


@pytest.mark.parametrize("last_look", [True, False])
@pytest.mark.parametrize("p0", [0.5, 0.84, 0.977])
def test_hope_is_given_up_when_a_proof_has_become_unlikely(p0: float, last_look: bool) -> None:
    looks = Looks.of(p0, 0.5, 0.01, 700, futility=0.05, last_look=last_look)
    proof = int(looks.holds[-1])
    goal = proof / 700
    for at, n in enumerate(looks.trials):
        chance = binom.sf(proof - np.arange(n + 1) - 1, 700 - n, goal)
        far = SequentialTest(1 - goal, 0.05).rejects(n - np.arange(n + 1), np.arange(n + 1))
        # one slack is rounded, the other is not
        assert abs(int(looks.hopeless[at]) + 1 - max(int((chance <= 0.05).sum()), int(far.sum()))) <= 1
    assert looks.hopeless[-1] == proof - 1


def test_a_proof_that_allows_no_failure_is_given_up_at_the_first() -> None:
    looks = Looks.of(0.9, 0.5, 0.001, 73, futility=0.01, last_look=True)
    assert looks.holds[-1] == 73
    np.testing.assert_array_equal(looks.hopeless, looks.trials - 1)


def test_giving_up_costs_few_proofs() -> None:
    looks = Looks.of(0.84, 0.5, 0.01, 2000, futility=0.02, last_look=True)
    patient = Looks(looks.trials, looks.holds, np.full_like(looks.trials, -1), looks.majority)
    for p, seed in ((0.86, 0), (looks.holds[-1] / 2000, 1), (0.875, 2)):
        assert errors(p, patient, 4000, seed) - errors(p, looks, 4000, seed) <= 2 * 0.02


def errors(p: float, looks: Looks, runs: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    votes = rng.random((runs, int(looks.trials[-1]))) < p
    sums = np.cumsum(votes, 1)[:, looks.trials - 1]
    return float(((sums >= looks.holds) & ~np.logical_or.accumulate(sums <= looks.hopeless, 1)).any(1).mean())


def test_looking_often_keeps_alpha_and_finds_what_is_there() -> None:
    looks = Looks.of(0.84, 0.5, 0.05, 1000, futility=0.001, last_look=True)
    assert errors(0.84, looks, 4000, 0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    assert errors(0.93, looks, 500, 1) > 0.95


def test_that_measure_sees_repeated_exact_limits() -> None:
    looks = Looks.of(0.84, 0.5, 0.05, 1000, futility=0.001, last_look=True)
    naive = [next(k for k in range(n + 2) if k > n or clopper_pearson(k, n, 0.9).low > 0.84) for n in looks.trials]
    peeking = Looks(looks.trials, np.array(naive), looks.hopeless, looks.majority)
    assert errors(0.84, peeking, 4000, 0) > 0.1
