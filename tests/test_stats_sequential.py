"""The e-process is what it is said to be: exact values, type I error computed exactly and by simulation, power."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptguard.errors import InvalidArgument
from promptguard.stats import SequentialTest, fewest_trials, hoeffding_lower, log_e_value, lower_bound, upper_bound

ALPHA = 0.001
RATES = [0.02, 0.3, 0.5, 0.97]


def counts(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def exact_e_value(successes: int, failures: int, p0: Fraction) -> Fraction:
    """The average likelihood ratio over (p0, 1), as a polynomial integral."""
    total = Fraction(0)
    for k in range(failures + 1):  # (1 - p)^F expanded
        power = successes + k + 1
        total += (-1) ** k * math.comb(failures, k) * (1 - p0**power) / power
    return total / ((1 - p0) * p0**successes * (1 - p0) ** failures)


def boundary(test: SequentialTest, trials: int) -> npt.NDArray[np.int64]:
    """For n = 0, ..., trials: the smallest number of successes that rejects; n + 1 if none does."""
    least = [1]
    for n in range(1, trials + 1):
        s = np.arange(n + 1)
        rejects = test.rejects(s, n - s)
        assert (np.diff(rejects.astype(int)) >= 0).all()  # more successes are never less evidence
        least.append(n + 1 - int(rejects.sum()))
    return np.array(least)


def crossing(test: SequentialTest, trials: int, p: float) -> float:
    """P[the test rejects at some look up to `trials`], exactly, under rate p."""
    least = boundary(test, trials)
    alive, crossed = np.ones(1), 0.0
    for n in range(1, trials + 1):
        alive = np.convolve(alive, [1 - p, p])
        crossed += float(alive[least[n] :].sum())
        alive[least[n] :] = 0.0
    return crossed


@pytest.mark.parametrize("p0", [Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)])
def test_the_e_value_is_the_average_likelihood_ratio(p0: Fraction) -> None:
    for successes in (0, 1, 3, 20):
        for failures in (0, 1, 2, 15):
            ours = log_e_value(counts(successes), counts(failures), float(p0))[0]
            assert ours == pytest.approx(math.log(exact_e_value(successes, failures, p0)), abs=1e-9)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.05, 0.95))
def test_the_e_value_is_a_martingale_at_p0(successes: int, failures: int, p0: float) -> None:
    now, up, down = log_e_value(
        counts(successes, successes + 1, successes), counts(failures, failures, failures + 1), p0
    )
    assert p0 * math.exp(up - now) + (1 - p0) * math.exp(down - now) == pytest.approx(1, rel=1e-6)


def test_what_underflows_is_evidence_that_was_not_there() -> None:
    """Where the mass above p0 underflows, the true value is below 1, so it never came near a rejection."""
    for p0, successes, failures in ((0.99, 0, 300), (0.5, 10, 3000), (0.9, 500, 2000)):
        assert log_e_value(counts(successes), counts(failures), p0)[0] < 0
        top = successes * math.log(p0) + failures * math.log1p(-p0)  # the likelihood falls above p0
        assert successes / (successes + failures) < p0
        assert all(successes * math.log(p) + failures * math.log1p(-p) <= top for p in np.linspace(p0, 1 - 1e-9, 50))


def test_no_evidence_is_no_warning() -> None:
    assert log_e_value(counts(0), counts(100_000), 0.9)[0] == -math.inf


@pytest.mark.parametrize("p0", RATES)
@pytest.mark.parametrize("alpha", [0.05, ALPHA])
@pytest.mark.parametrize("last", [None, 600])
def test_type_i_error_is_at_most_alpha_however_one_stops(p0: float, alpha: float, last: int | None) -> None:
    error = crossing(SequentialTest(p0, alpha, last), 600, p0)
    assert error <= alpha
    assert error > alpha / 20  # not by never rejecting


def test_type_i_error_over_100_000_simulated_runs() -> None:
    runs, trials, p0 = 100_000, 300, 0.5
    rng = np.random.default_rng(7)
    ours = boundary(SequentialTest(p0, ALPHA, trials), trials)[1:]
    n = np.arange(1, trials + 1)
    peeking = np.array(
        [next(s for s in range(k + 2) if s > k or lower_bound(s, k, 1 - ALPHA) > p0) for k in n.tolist()]
    )
    wrong = naive = 0
    for _ in range(10):
        successes = np.cumsum(rng.random((runs // 10, trials)) < p0, axis=1, dtype=np.int16)
        wrong += int((successes >= ours).any(axis=1).sum())
        naive += int((successes >= peeking).any(axis=1).sum())
    assert 0 < wrong / runs <= ALPHA
    assert naive / runs > 3 * ALPHA  # repeated exact limits are no such test


@pytest.mark.parametrize("p0", RATES)
def test_the_last_look_is_clopper_pearson_at_half_of_alpha(p0: float) -> None:
    last = 500
    successes = np.arange(last + 1)
    found = SequentialTest(p0, ALPHA, last).rejects(successes, last - successes)
    process = SequentialTest(p0, ALPHA / 2).rejects(successes, last - successes)
    exact = np.array([lower_bound(s, last, 1 - ALPHA / 2) > p0 for s in range(last + 1)])
    assert (found == (process | exact)).all()
    assert (exact & ~process).any()  # it is not idle
    elsewhere = SequentialTest(p0, ALPHA, last + 1).rejects(successes, last - successes)
    assert (elsewhere == process).all()


def test_clear_cases_are_settled_by_few_trials() -> None:
    """The number of trials at which a test with rate p rejects with even chance, by exact calculation."""
    for p0, p, few in ((0.5, 0.9, 60), (0.1, 0.6, 30), (0.05, 0.9, 12)):
        assert crossing(SequentialTest(p0, ALPHA), few, p) > 0.5


@pytest.mark.parametrize("p0", RATES)
@pytest.mark.parametrize("alpha", [0.05, ALPHA])
@pytest.mark.parametrize("last_look", [True, False])
def test_fewer_samples_than_the_smallest_can_never_reject(p0: float, alpha: float, last_look: bool) -> None:
    n = fewest_trials(p0, alpha, last_look=last_look)
    assert SequentialTest(p0, alpha, n if last_look else None).rejects(counts(n), counts(0))[0]
    if n > 1:
        looks = np.arange(1, n)
        fewer = SequentialTest(p0, alpha, n - 1 if last_look else None)
        assert not fewer.rejects(looks, np.zeros_like(looks)).any()


@given(trials=st.integers(1, 60), confidence=st.sampled_from([0.5, 0.95, 0.999]), data=st.data())
def test_the_lower_bound_mirrors_the_upper_one_and_gives_way(
    trials: int, confidence: float, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, trials))
    low = lower_bound(successes, trials, confidence)
    mirrored = 1 - upper_bound(trials - successes, trials, confidence)
    assert low == pytest.approx(mirrored, abs=1e-6)
    if successes:
        tail = sum(math.comb(trials, k) * low**k * (1 - low) ** (trials - k) for k in range(successes, trials + 1))
        assert tail <= 1 - confidence  # rounded down: never the least bit too large


@pytest.mark.parametrize("alpha", [0.1, 1e-3, 1e-8, 1e-13, 1e-15])
def test_a_lower_bound_of_1_less_a_small_alpha_is_not_too_large(alpha: float) -> None:
    """1 - alpha is rounded before it arrives, by more than a ten-thousandth of an alpha of 1e-13. In rationals."""
    for successes, trials in ((1, 1), (1, 5), (3, 5), (20, 20), (30, 40)):
        low = Fraction(lower_bound(successes, trials, 1 - alpha))
        tail = sum(math.comb(trials, k) * low**k * (1 - low) ** (trials - k) for k in range(successes, trials + 1))
        assert tail <= Fraction(alpha)


def test_a_lower_bound_from_successes_alone_has_a_closed_form() -> None:
    assert lower_bound(100_000, 100_000, 0.999) == pytest.approx(0.001 ** (1 / 100_000), rel=1e-8)
    assert lower_bound(0, 5) == 0.0


@given(st.integers(1, 200), st.sampled_from([0.9, 0.999]), st.data())
def test_hoeffding_is_never_above_the_exact_bound(trials: int, confidence: float, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    assert hoeffding_lower(successes / trials, trials, confidence) <= lower_bound(successes, trials, confidence) + 1e-12


def test_hoeffding_has_a_closed_form() -> None:
    assert hoeffding_lower(0.9, 200, 0.95) == pytest.approx(0.9 - math.sqrt(math.log(20) / 400))


@pytest.mark.parametrize(
    "call",
    [
        lambda: log_e_value(counts(1), counts(1), 0.0),
        lambda: log_e_value(counts(1), counts(1), 1.0),
        lambda: SequentialTest(0.0, 0.1),
        lambda: SequentialTest(1.0, 0.1),
        lambda: SequentialTest(math.nan, 0.1),
        lambda: SequentialTest(0.5, 0.0),
        lambda: SequentialTest(0.5, 1.0),
        lambda: SequentialTest(0.5, 0.1, 0),
        *[lambda last=last: fewest_trials(1.0, 0.1, last_look=last) for last in (True, False)],
        *[lambda last=last: fewest_trials(0.5, 0.0, last_look=last) for last in (True, False)],
        lambda: lower_bound(1, 0),
        lambda: lower_bound(6, 5),
        lambda: lower_bound(1, 5, 1.0),
        lambda: hoeffding_lower(1.1, 5),
        lambda: hoeffding_lower(0.5, 0),
        lambda: hoeffding_lower(0.5, 5, 0.0),
    ],
)
def test_arguments_that_mean_nothing_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument):
        call()
