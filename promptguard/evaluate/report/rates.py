"""Shares with their intervals, and spreads of costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from promptguard.stats import Interval, clopper_pearson


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of rows with its 95 % Clopper-Pearson interval.

    Attributes:
        hits: rows that count.
        n: rows, at least 1.
    """

    hits: int
    n: int

    @classmethod
    def of(cls, flags: Iterable[bool]) -> Self | None:
        """The share of true ones; None of nothing, which has no share."""
        found = list(flags)
        return cls(sum(found), len(found)) if found else None

    @property
    def share(self) -> float:
        """Hits over n."""
        return self.hits / self.n

    @property
    def interval(self) -> Interval:
        """The exact two-sided 95 % interval (Clopper and Pearson 1934)."""
        return clopper_pearson(self.hits, self.n)

    def to_dict(self) -> dict[str, float]:
        """JSON form."""
        interval = self.interval
        return {"hits": self.hits, "n": self.n, "share": self.share, "low": interval.low, "high": interval.high}

    def __str__(self) -> str:
        """Percent, with the interval."""
        interval = self.interval
        return f"{100 * self.share:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile of a cost, with linear interpolation between order statistics."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """The spread of some values; None of none."""
        if not values:
            return None
        p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), [50, 95])
        return cls(float(p50), float(p95))

    def to_dict(self) -> dict[str, float]:
        """JSON form."""
        return {"p50": self.p50, "p95": self.p95}
