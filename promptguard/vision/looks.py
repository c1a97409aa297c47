"""When to look at the votes, and what to look for: the sequential test of `promptguard.stats` as a table of counts.

A test of p > p0 that may be looked at any number of times is looked at after n_1 < n_2 < ... votes. For a given n the
evidence rises with the number of successes, so each look is one comparison with a number that is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from promptguard.errors import InvalidArgument
from promptguard.stats import SequentialTest, fewest_trials, log_e_value
from promptguard.stats.sequential import Counts

_GROWTH = 1.4  # looks are spaced geometrically: few of them, each costs a call of the model, and little overshoot


def _least(found: Callable[[Counts, Counts], np.ndarray[tuple[int], np.dtype[np.bool_]]], trials: Counts) -> Counts:
    """For each n the least s with found(s, n - s), for a condition that rises with s; n + 1 if there is none."""
    low, high = np.full_like(trials, -1), trials + 1
    while np.any(high - low > 1):
        middle = np.clip((low + high) // 2, 0, trials)
        holds = found(middle, trials - middle)
        open_ = high - low > 1
        low, high = np.where(open_ & ~holds, middle, low), np.where(open_ & holds, middle, high)
    result: Counts = high
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """What to find at each look.

    Attributes:
        trials: votes drawn up to each look, ascending; the last are all.
        holds: the least successes that show p > p0, at most alpha of the time wrongly, however one stops.
        hopeless: the most successes at which p > p0 is given up; costs power only.
        majority: the least successes that show a majority.
    """

    trials: Counts
    holds: Counts
    hopeless: Counts
    majority: Counts

    @classmethod
    def of(
        cls, needed: float, majority: float, alpha: float, samples: int, *, futility: float, last_look: bool
    ) -> Looks:
        """The looks of a test.

        Args:
            needed: p0, the share that the radius needs, at least `majority`.
            majority: the share that a label needs: 1/2 and the noise's slack.
            alpha: chance of a false answer; as p <= majority implies p <= needed, label and radius share it.
            samples: votes at most.
            futility: chance of giving up a radius that holds.
            last_look: spend half of alpha on one exact test of all votes.

        Raises:
            InvalidArgument: no number of votes will do, or `samples` is too small to certify anything.
        """
        if not needed < 1:
            raise InvalidArgument("the radius is out of reach of this noise: lower the radius or raise sigma")
        least = fewest_trials(needed, alpha, last_look=last_look)
        if samples < least:
            raise InvalidArgument(f"{samples} samples can never certify this radius: take at least {least}")
        trials = cls._times(fewest_trials(needed, alpha, last_look=False), samples)
        last = samples if last_look else None
        above, half = SequentialTest(needed, alpha, last), SequentialTest(majority, alpha, last)
        hope = -math.log(futility)
        most = trials - _least(lambda f, s: log_e_value(f, s, 1 - needed) >= hope, trials)
        return cls(trials, _least(above.rejects, trials), most, _least(half.rejects, trials))

    @staticmethod
    def _times(first: int, samples: int) -> Counts:
        """From the first look that can show anything to all votes."""
        times, at = [], first
        while at < samples:
            times.append(at)
            at = math.ceil(at * _GROWTH)
        return np.array([*times, samples], dtype=np.int64)
