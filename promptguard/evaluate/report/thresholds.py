"""What scores say at every threshold: ROC curve, the area under it, and the thresholds that keep a false-positive rate.

Scores may be infinite: a refused text is blocked at any threshold.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import rankdata

from promptguard.stats import threshold_above

PERCENTS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a ROC curve: shares at or above a threshold."""

    threshold: float
    false_positives: float
    true_positives: float


def auc(harmful: Sequence[float], safe: Sequence[float]) -> float | None:
    """Area under the ROC curve: P[harmful > safe] + P[harmful = safe] / 2 over all pairs (Mann and Whitney 1947).

    Equal scores share the mean of their ranks, so ties count one half.

    Returns:
        A number in [0, 1]; None if either side is empty.
    """
    if not harmful or not safe:
        return None
    n, m = len(harmful), len(safe)
    ranks = rankdata([*harmful, *safe], method="average")
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def threshold_for(safe: Sequence[float], percent: int) -> float | None:
    """The smallest threshold that at most `percent` % of the safe scores reach: recall is largest there.

    Args:
        safe: scores of all safe rows.
        percent: a whole number from 0 to 99.

    Returns:
        A finite threshold; None without safe rows, or if more of them were refused than the rate allows.
    """
    if not safe:
        return None
    threshold = threshold_above(safe, len(safe) * percent // 100)
    return threshold if math.isfinite(threshold) else None


def share_from(ascending: Sequence[float], threshold: float) -> float:
    """Share of ascending scores that are at or above a threshold."""
    return 1 - bisect_left(ascending, threshold) / len(ascending)


def roc(harmful: Sequence[float], safe: Sequence[float]) -> list[Point]:
    """The ROC curve: a point for every distinct score, from the highest threshold to the lowest.

    A guard has a step curve: between two points it gets the recall of the left one. The first point is what refused
    texts alone make.

    Args:
        harmful: at least one score.
        safe: at least one score.
    """
    up, low = sorted(harmful), sorted(safe)
    thresholds = [math.inf, *sorted({score for score in (*up, *low) if math.isfinite(score)}, reverse=True)]
    return [Point(t, share_from(low, t), share_from(up, t)) for t in thresholds]
