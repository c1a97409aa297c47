"""Exact bounds for a share that was counted in a sample of a fixed size, and thresholds that rest on them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import beta

from promptguard.errors import InvalidArgument

_ROUNDING = 1e-9  # far more than the error of the quantile functions: limits that certificates rest on give way by it
_ULP = 2.0**-53  # of a confidence near 1: more than a caller's rounding of 1 - alpha, which outgrows a small alpha


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval for a proportion, in [0, 1]."""

    low: float
    high: float


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact two-sided interval for a binomial proportion (Clopper and Pearson 1934).

    It covers the true proportion with at least `confidence`, whatever that proportion is.

    Args:
        successes: between 0 and `trials`.
        trials: at least 1.
        confidence: in (0, 1).

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise InvalidArgument("clopper_pearson needs 0 <= successes <= trials, trials >= 1 and confidence in (0, 1)")
    alpha = 1 - confidence
    low = beta.ppf(alpha / 2, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - alpha / 2, successes + 1, trials - successes) if successes < trials else 1.0
    return Interval(float(low), float(high))


def upper_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper limit for a binomial proportion (Clopper and Pearson 1934).

    It is at least the true proportion with probability `confidence` or more, whatever that proportion is: the p with
    P[Binomial(trials, p) <= successes] = 1 - confidence.

    Args:
        successes: between 0 and `trials`.
        trials: at least 1.
        confidence: in (0, 1).

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise InvalidArgument("upper_bound needs 0 <= successes <= trials, trials >= 1 and confidence in (0, 1)")
    return float(beta.ppf(confidence, successes + 1, trials - successes)) if successes < trials else 1.0


def lower_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """The exact one-sided lower limit for a binomial proportion (Clopper and Pearson 1934), rounded down.

    It is at most the true proportion with probability `confidence` or more, whatever that proportion is: the p with
    P[Binomial(trials, p) >= successes] = 1 - confidence. The number of trials must be fixed before the first one.

    Args:
        successes: between 0 and `trials`.
        trials: at least 1.
        confidence: in (0, 1).

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise InvalidArgument("lower_bound needs 0 <= successes <= trials, trials >= 1 and confidence in (0, 1)")
    if not successes:
        return 0.0
    alpha = max(0.0, 1 - confidence - _ULP)
    return float(beta.ppf(alpha, successes, trials - successes + 1)) * (1 - _ROUNDING)


def hoeffding_lower(mean: float, trials: int, confidence: float = 0.95) -> float:
    """A lower limit for the mean of independent values in [0, 1], not only of zeros and ones (Hoeffding 1963).

    mean - sqrt(log(1 / (1 - confidence)) / (2 trials)) is at most the true mean with probability `confidence` or more.
    For zeros and ones `lower_bound` is never below it.

    Args:
        mean: of the values that were seen, in [0, 1].
        trials: how many were seen, at least 1.
        confidence: in (0, 1).

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if trials < 1 or not 0 <= mean <= 1 or not 0 < confidence < 1:
        raise InvalidArgument("hoeffding_lower needs a mean in [0, 1], trials >= 1 and confidence in (0, 1)")
    return max(0.0, mean - math.sqrt(-math.log1p(-confidence) / (2 * trials)) * (1 + _ROUNDING))


def exceedances_allowed(trials: int, max_rate: float, confidence: float = 0.95) -> int | None:
    """How many of n scores may lie above a threshold that future scores pass at a rate of at most `max_rate`.

    Theorem (tolerance limits, Wilks 1941; training-conditional validity of split conformal prediction, Vovk 2012). Let
    k be this number, S_1, ..., S_n and S independent draws from one distribution, whatever it is, and T the (k + 1)-th
    largest of the S_i. Then P[S > T | S_1, ..., S_n] <= max_rate with probability at least `confidence` over the draw.

    Proof. k is chosen from n, max_rate and confidence alone, before any score is seen, with
    P[Binomial(n, max_rate) <= k] <= 1 - confidence. Let G(t) = P[S > t] and q the smallest t with G(t) <= max_rate
    (G falls and is continuous from the right, so there is one). If G(T) > max_rate, then T < q, so at most k of the S_i
    are >= q. Each of them is with probability P[S >= q] = lim G(t), t rising to q, which is at least max_rate. So the
    chance of that is at most P[Binomial(n, max_rate) <= k]. (Without ties G(T) is Beta(k + 1, n - k).)

    Args:
        trials: n, at least 1.
        max_rate: in (0, 1).
        confidence: in (0, 1).

    Returns:
        The largest such k; None if n is too small even for k = 0.

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if trials < 1 or not 0 < max_rate < 1 or not 0 < confidence < 1:
        raise InvalidArgument("trials must be at least 1; the largest rate and the confidence must be between 0 and 1")
    # P[Binomial(n, p) <= k] <= 1 - confidence says the same as upper_bound(k, n) <= p, and the bound rises with k.
    allowed = bisect_right(range(trials), max_rate, key=lambda k: upper_bound(k, trials, confidence))
    return allowed - 1 if allowed else None


def trials_needed(max_rate: float, confidence: float = 0.95) -> int:
    """The smallest n for which `exceedances_allowed` is not None: (1 - max_rate)^n <= 1 - confidence.

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if not 0 < max_rate < 1 or not 0 < confidence < 1:
        raise InvalidArgument("the largest rate and the confidence must be between 0 and 1")
    # Rounding may put the quotient on either side of a whole number; the bound itself decides.
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-max_rate)) - 1)
    while upper_bound(0, n, confidence) > max_rate:
        n += 1
    return n


def threshold_above(scores: Sequence[float], exceedances: int, margin: float = 0.0) -> float:
    """A float t for which t - margin is just above all but the `exceedances` largest scores.

    Then at most that many scores of the sample are >= t, whatever ties there are, and no more would be if every score
    rose by up to `margin`. No float is above infinity: if more scores than `exceedances` are infinite, so is t.

    Args:
        scores: at least one; infinite ones are allowed.
        exceedances: between 0 and len(scores) - 1.
        margin: at least 0.

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if not 0 <= exceedances < len(scores) or not 0 <= margin < math.inf:
        raise InvalidArgument("threshold_above needs 0 <= exceedances < number of scores, and a finite margin >= 0")
    # The sum is rounded to the nearest float, so its neighbour is above the exact sum.
    return math.nextafter(sorted(scores, reverse=True)[exceedances] + margin, math.inf)
