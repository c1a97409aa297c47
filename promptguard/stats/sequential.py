"""Tests of a success rate that may be looked at after every trial: a mixture e-process, and one exact last look.

    Theorem (Ville 1939). Let E_n be a non-negative martingale with E_0 = 1 under every rate of a hypothesis, or below
    one. Then the chance that it ever reaches 1 / alpha is at most alpha.

For H0: p <= p0 the likelihood ratio of every p > p0 against p0 is such a process, and so is their average over p
uniform in (p0, 1): with S successes and F failures, B the beta function and I its regularised incomplete one,

    E_n = B(S + 1, F + 1) I_{1 - p0}(F + 1, S + 1) / ((1 - p0) p0^S (1 - p0)^F).

So one may stop when enough is known, which repeated Clopper-Pearson limits do not allow: 35 looks turn an alpha of
0.001 into 0.012. Averages of likelihood ratios as e-processes: Robbins 1970; Ramdas et al. 2023, *Game-theoretic
statistics and safe anytime-valid inference*. Early stopping for smoothing: Horvath et al. 2022; Voracek 2024.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaln

from promptguard.errors import InvalidArgument
from promptguard.stats.binomial import trials_needed

Counts: TypeAlias = npt.NDArray[np.int64]
_MOST_TRIALS = 2**53
_SLACK = 1e-6  # of a logarithm: more than its rounding error at any number of trials that can be run


def log_e_value(successes: Counts, failures: Counts, p0: float) -> npt.NDArray[np.float64]:
    """Logarithm of the mixture e-value against H0: p <= p0.

    Swap successes and failures and take 1 - p0 for H0: p >= p0.

    Args:
        successes: after each look.
        failures: after each look, the same shape.
        p0: in (0, 1).

    Returns:
        One number per look, perhaps minus infinity.

    Raises:
        InvalidArgument: p0 outside (0, 1).
    """
    if not 0 < p0 < 1:
        raise InvalidArgument(f"p0 must be between 0 and 1, not {p0!r}")
    tail = betainc(failures + 1.0, successes + 1.0, 1 - p0)
    with np.errstate(divide="ignore"):  # no mass above p0: no evidence
        mixture = betaln(successes + 1.0, failures + 1.0) + np.log(tail)
    result: npt.NDArray[np.float64] = mixture - successes * math.log(p0) - (failures + 1.0) * math.log1p(-p0)
    return result


@dataclass(frozen=True, slots=True)
class SequentialTest:
    """Is a success rate above p0? Whenever one looks, and however one stops, the answer is right.

    Theorem: if the trials are independent with a rate of at most p0, the chance that `rejects` is True at any look is
    at most alpha.

    With a last look, half of alpha goes to the e-process and half to one Clopper-Pearson test after that many trials.

    Attributes:
        p0: in (0, 1).
        alpha: in (0, 1).
        last: trials before the last look; None is no last look.

    Raises:
        InvalidArgument: an attribute outside its range.
    """

    p0: float
    alpha: float
    last: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p0 < 1 or not 0 < self.alpha < 1 or (self.last is not None and self.last < 1):
            raise InvalidArgument("a sequential test needs p0 and alpha in (0, 1), and a last look at 1 or later")

    def rejects(self, successes: Counts, failures: Counts) -> npt.NDArray[np.bool_]:
        """For each look: does it show that the rate is above p0?

        Args:
            successes: after each look; looks may be left out.
            failures: after each look, the same shape.
        """
        alpha = self.alpha if self.last is None else self.alpha / 2
        found: npt.NDArray[np.bool_] = log_e_value(successes, failures, self.p0) >= _SLACK - math.log(alpha)
        if self.last is None:
            return found
        # P[Binomial(n, p0) >= S]; no success is no evidence, and betainc has no value there.
        tail = np.where(successes > 0, betainc(np.maximum(successes, 1), failures + 1.0, self.p0), 1.0)
        last: npt.NDArray[np.bool_] = (successes + failures == self.last) & (tail <= alpha * (1 - _SLACK))
        return found | last


def fewest_trials(p0: float, alpha: float, *, last_look: bool = True) -> int:
    """The smallest n for which n successes in n trials reject H0: p <= p0.

    Args:
        p0: in (0, 1).
        alpha: in (0, 1).
        last_look: the test has one, after n trials; without it the e-process must do alone, and takes longer.

    Raises:
        InvalidArgument: an argument outside (0, 1).
    """
    if last_look:
        # The exact limit comes first: no likelihood ratio, so no average of them, is above p0^-n.
        return trials_needed(1 - p0, 1 - alpha / 2)
    process = SequentialTest(p0, alpha)
    nothing = np.zeros(1, dtype=np.int64)
    return 1 + bisect_left(range(1, _MOST_TRIALS), True, key=lambda n: bool(process.rejects(nothing + n, nothing)[0]))
