"""Proven upper bounds and mere estimates: two types, so that one cannot stand in for the other.

Power iteration approaches a norm from below; a certificate that rests on it claims too large a radius (for the weight
[[1, -1], [-1, 1]] and a start at the all-ones vector an infinite one). So it returns an `Estimate`, and everything that
leads to a certificate asks for an `UpperBound`.

Bounds are kept as logarithms: the product over a deep network neither overflows nor vanishes. Every operation rounds up
by more than the error of the mathematical library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from promptguard.errors import InvalidArgument


def up(value: float) -> float:
    """A float above what was computed with a few roundings; inf for what is not a number."""
    if math.isnan(value):
        return math.inf
    return math.nextafter(value + abs(value) * 2.0**-50, math.inf)


def down(value: float) -> float:
    """A float below what was computed with a few roundings; -inf for what is not a number."""
    return -up(-value)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number near a norm, perhaps below it: for training and reports, never for a certificate.

    Attributes:
        value: the estimate.
    """

    value: float


@dataclass(frozen=True, slots=True)
class UpperBound:
    """A number that is proven to be at least some non-negative quantity.

    Attributes:
        log: its natural logarithm; -inf for 0.
    """

    log: float

    def __post_init__(self) -> None:
        if math.isnan(self.log):
            raise InvalidArgument("a bound must be a number")

    @classmethod
    def of(cls, value: float) -> UpperBound:
        """The bound of this value, which the caller has proven.

        Raises:
            InvalidArgument: it is negative or not a number.
        """
        if not value >= 0:
            raise InvalidArgument("a bound of a norm must be a number >= 0")
        return cls(up(math.log(value)) if 0 < value != 1 else math.log(value) if value else -math.inf)

    @property
    def value(self) -> float:
        """As a float, rounded up; inf where it overflows."""
        if self.log in (0, -math.inf):
            return math.exp(self.log)
        return up(math.exp(self.log)) if self.log < 709 else math.inf

    def then(self, other: UpperBound) -> UpperBound:
        """The product: a bound for one map after another (the PUB of Tsuzuku et al. 2018, in log space)."""
        if -math.inf in (self.log, other.log):
            return UpperBound(-math.inf)
        total = self.log + other.log
        return UpperBound(up(total) if self.log and other.log else total)

    def plus(self, other: UpperBound) -> UpperBound:
        """The sum: a bound for two maps whose results are added."""
        high, low = max(self.log, other.log), min(self.log, other.log)
        if low == -math.inf or high == math.inf:
            return UpperBound(high)
        return UpperBound(up(high + up(math.log1p(up(math.exp(low - high))))))

    def least(self, other: UpperBound) -> UpperBound:
        """The smaller of two bounds of one quantity."""
        return UpperBound(min(self.log, other.log))


ONE = UpperBound(0.0)
ZERO = UpperBound(-math.inf)
