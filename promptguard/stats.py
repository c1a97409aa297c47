"""Statistics: every interval and bound of the project is computed here, in float64."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import beta

from promptguard.errors import InvalidArgument


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
