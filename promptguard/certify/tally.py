"""What samples say of a smoothed filter: the label, and whether a radius holds. Two ways to ask.

Write mu for the chance that a noised text is flagged, and eta for the share that decides. A sample that the filter
flags by its guard band counts as *sure*; only these count towards "harmful", all that are *flagged* count against
"safe". So with mu the chance of a text that is flagged in every batch, neither answer depends on what else was in one.

* `AtRadius` asks about one radius, and stops as soon as the answer is known.
* `Largest` takes a fixed number of samples and reports the largest radius; only "safe" may stop it early.

Errors. "Harmful" is wrong with probability at most alpha if mu <= eta, "safe" if mu > eta, a radius if mu is at most
what it needs. A radius is reported only together with "harmful". As mu <= eta implies that mu is at most what any
radius needs, this is a closed test: a false certificate, label and radius together, has probability at most alpha, none
of it split. A false "safe" has at most alpha of its own: where mu is above eta, and below what the radius needs, either
mistake may be made, and one of the two has at most twice alpha. Nothing else is chosen by the samples that prove it:
the label asked about is fixed, eta is given, and `Largest` reads all radii off one lower bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from promptguard.stats import SequentialTest, log_e_value, lower_bound
from promptguard.types import Label

Flags: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Settings:
    """Error rates and numbers of samples: see `promptguard.certify.smoothing.Sampling`."""

    eta: float
    alpha: float
    samples: int
    futility: float
    last_look: bool

    def test(self, p0: float) -> SequentialTest:
        """A test of a rate above p0."""
        return SequentialTest(p0, self.alpha, self.samples if self.last_look else None)


@dataclass(slots=True)
class Counts:
    """How many samples were used, and how they fell."""

    trials: int = 0
    sure: int = 0
    flagged: int = 0

    @property
    def share(self) -> float:
        """Flagged samples per sample."""
        return self.flagged / self.trials


class Tally(Protocol):
    """Takes samples until the answer is known.

    Attributes:
        counts: of the samples that were used.
    """

    counts: Counts

    def add(self, sure: Flags, flagged: Flags) -> bool:
        """Take samples in the order in which they were drawn; True if no more are wanted."""
        ...

    @property
    def label(self) -> Label:
        """The verdict."""
        ...

    def radius(self) -> int | None:
        """The certified radius; None if the label is not "harmful"."""
        ...


@dataclass(slots=True)
class _Path:
    """Running counts after each new sample, the counts before them included."""

    sure: npt.NDArray[np.int64]
    flagged: npt.NDArray[np.int64]
    trials: npt.NDArray[np.int64]

    @classmethod
    def after(cls, counts: Counts, sure: Flags, flagged: Flags) -> _Path:
        return cls(
            counts.sure + np.cumsum(sure),
            counts.flagged + np.cumsum(flagged),
            counts.trials + np.arange(1, len(sure) + 1),
        )

    def counts(self, at: int) -> Counts:
        return Counts(int(self.trials[at]), int(self.sure[at]), int(self.flagged[at]))


def _since(crossed: Flags, before: bool) -> Flags:
    """True from the first look that is True on."""
    result: Flags = np.logical_or.accumulate(crossed) | before
    return result


class AtRadius:
    """Does the radius hold?

    Stops when the radius is certified, when the text is safe, or when the radius is beyond hope and the text is known
    to be harmful. Hope is given up by the mirrored process at 1 / futility, which costs power only, never truth.

    Args:
        settings: error rates and numbers of samples.
        radius: asked for.
        needed: the share that mu must exceed for it; 1 or more is out of reach.
    """

    def __init__(self, settings: Settings, radius: int, needed: float) -> None:
        self.counts = Counts()
        self._radius = radius
        self._above_eta = settings.test(settings.eta)
        self._below_eta = settings.test(1 - settings.eta)
        self._above_needed = settings.test(needed) if needed < 1 else None
        self._futility = -np.log(settings.futility)
        self._needed = needed
        self._samples = settings.samples
        self._harmful = self._safe = self._holds = False
        self._hopeless = needed >= 1

    def add(self, sure: Flags, flagged: Flags) -> bool:
        """Take samples in the order in which they were drawn; True if no more are wanted."""
        path = _Path.after(self.counts, sure, flagged)
        missed = path.trials - path.sure
        harmful = _since(self._above_eta.rejects(path.sure, missed), self._harmful)
        safe = _since(self._below_eta.rejects(path.trials - path.flagged, path.flagged), self._safe)
        holds, hopeless = np.zeros_like(harmful), np.full_like(harmful, self._hopeless)
        if self._above_needed:
            holds = _since(self._above_needed.rejects(path.sure, missed), self._holds)
            hopeless = _since(log_e_value(missed, path.sure, 1 - self._needed) >= self._futility, self._hopeless)
        done = safe | (harmful & (holds | hopeless)) | (path.trials >= self._samples)
        at = int(np.argmax(done)) if done.any() else -1
        self.counts = path.counts(at)
        self._harmful, self._safe = bool(harmful[at]), bool(safe[at])
        self._holds, self._hopeless = bool(holds[at]), bool(hopeless[at])
        return bool(done[at])

    @property
    def label(self) -> Label:
        """The verdict; if both answers are given, one of which is wrong, the one that blocks."""
        if self._harmful:
            return Label.HARMFUL
        return Label.SAFE if self._safe else Label.ABSTAIN

    def radius(self) -> int | None:
        """The radius that was asked for if it holds, else 0; None if the label is not "harmful"."""
        return (self._radius if self._holds else 0) if self._harmful else None


class Largest:
    """Which radius holds?

    Args:
        settings: error rates and numbers of samples.
        needed: radius to the share that mu must exceed for it; it never falls.
        most: no larger radius means anything; None is no such limit.
    """

    def __init__(self, settings: Settings, needed: Callable[[int], float], most: int | None) -> None:
        self.counts = Counts()
        self._settings = settings
        self._below_eta = settings.test(1 - settings.eta)
        self._needed = needed
        self._most = most
        self._safe = False

    def add(self, sure: Flags, flagged: Flags) -> bool:
        """Take samples in the order in which they were drawn; True if no more are wanted."""
        path = _Path.after(self.counts, sure, flagged)
        safe = _since(self._below_eta.rejects(path.trials - path.flagged, path.flagged), self._safe)
        done = safe | (path.trials >= self._settings.samples)
        at = int(np.argmax(done)) if done.any() else -1
        self.counts = path.counts(at)
        self._safe = bool(safe[at])
        return bool(done[at])

    @property
    def label(self) -> Label:
        """The verdict. Only "safe" stops early, so the lower bound is of a number of samples that was fixed."""
        if self._safe:
            return Label.SAFE
        return Label.HARMFUL if self._lower() > self._needed(0) else Label.ABSTAIN

    def radius(self) -> int | None:
        """The largest radius that holds; None if the label is not "harmful"."""
        if self.label is not Label.HARMFUL:
            return None
        return largest(self._needed, self._lower(), self._most)

    def _lower(self) -> float:
        return lower_bound(self.counts.sure, self.counts.trials, 1 - self._settings.alpha)


def largest(needed: Callable[[int], float], share: float, most: int | None) -> int:
    """The largest radius r up to `most` with needed(r) < share, for needed(0) < share and `needed` that never falls."""
    low, high = 0, 1  # low holds; doubling first keeps the numbers small
    while (most is None or high < most) and needed(high) < share:
        low, high = high, 2 * high
    if most is not None and high >= most:
        if needed(most) < share:
            return most
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) < share else (low, middle)
    return low
