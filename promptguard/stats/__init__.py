"""Statistics: every interval and bound of the project is computed here, in float64."""

from __future__ import annotations

from promptguard.stats.binomial import (
    Interval,
    clopper_pearson,
    exceedances_allowed,
    hoeffding_lower,
    lower_bound,
    threshold_above,
    trials_needed,
    upper_bound,
)
from promptguard.stats.sequential import SequentialTest, fewest_trials, log_e_value

__all__ = [
    "Interval",
    "SequentialTest",
    "clopper_pearson",
    "exceedances_allowed",
    "fewest_trials",
    "hoeffding_lower",
    "log_e_value",
    "lower_bound",
    "threshold_above",
    "trials_needed",
    "upper_bound",
]
