"""When to look at the votes, and what to look for: the sequential test of `promptguard.stats` as a table of counts.

A test of p > p0 that may be looked at any number of times is looked at after n_1 < n_2 < ... votes. For a given n the
evidence rises with the number of successes, so each look is one comparison with a number that is computed once.

Hope is given up when a proof has become unlikely, in two ways: an e-process against the share that would just be
proved by all votes (it ends what is far below, soon), and stochastic curtailment, the chance of a proof if that share
held from now on (Lan, Simon and Halperin 1982; it ends what is just below, late). Neither can make an answer false.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from promptguard.errors import InvalidArgument
from promptguard.stats import SequentialTest, fewest_trials, log_e_value
from promptguard.stats.sequential import Counts

# Looks are spaced geometrically, for little overshoot, but not closer than a call of the model is worth.
_GROWTH = 1.1
_STEP = 50


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
        hopeless: the most successes at which a proof of p > p0 is given up; costs power only.
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
            futility: chance, in each of the two ways, of giving up the share that all votes prove every other time.
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
        holds = _least(above.rejects, trials)
        return cls(trials, holds, cls._hopeless(trials, int(holds[-1]), futility), _least(half.rejects, trials))

    @staticmethod
    def _hopeless(trials: Counts, proof: int, futility: float) -> Counts:
        """When to give up, if a proof takes `proof` successes of all trials."""
        samples = int(trials[-1])
        goal = proof / samples
        late: Counts = proof - 1 - binom.isf(futility, samples - trials, goal).astype(np.int64)
        if proof == samples:  # one failure is the end
            return late
        hope = -math.log(futility)
        far = trials - _least(lambda f, s: log_e_value(f, s, 1 - goal) >= hope, trials)
        result: Counts = np.maximum(far, late)
        return result

    @staticmethod
    def _times(first: int, samples: int) -> Counts:
        """From the first look that can show anything to all votes."""
        times, at = [], first
        while at < samples:
            times.append(at)
            at = max(at + _STEP, math.ceil(at * _GROWTH))
        return np.array([*times, samples], dtype=np.int64)
