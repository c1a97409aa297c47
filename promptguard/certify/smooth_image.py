"""Randomized smoothing of image classifiers: the likeliest class under Gaussian noise, with a certified l2 radius.

    Definition. g(x) is the class that f gives most often to x + e, e ~ N(0, sigma^2 I).
    Theorem (Cohen, Rosenfeld and Kolter 2019, theorem 1): see `promptguard.vision.radius`.

The share of a class is not known but sampled (their CERTIFY, section 3.2.2): a first sample chooses the class, and a
second one, independent of it, bounds its share from below. Choosing on the sample that proves would double the error.

Two ways to ask. Without `radius` a fixed number of votes gives the largest radius (Clopper-Pearson). With one, the
question is only whether the share is above Phi(radius / sigma); votes are drawn until an e-process answers it (Ville's
inequality: valid however one stops; Horvath et al. 2022 and Voracek 2024 stop early by other tests), most often after a
few dozen.

What keeps this true of the program: the model is in eval mode and its answers do not depend on the batch; votes within
the guard band count for no class; all bounds are in float64 and round down; seeds are fresh and secret, so that a
certificate holds for an image that was chosen before its noise. Abstention is `Label.ABSTAIN`, never a class.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from promptguard.errors import InvalidArgument
from promptguard.stats import trials_needed
from promptguard.threat import L2, Threat
from promptguard.types import Certificate, Label, Verdict
from promptguard.vision.looks import Looks
from promptguard.vision.noise import Draw, Gaussian, Noise, Which
from promptguard.vision.radius import certified_radius, share_needed
from promptguard.vision.runner_up import Rest, RunnerUp
from promptguard.vision.votes import Tally, Voter, check_eval, digest, version

_SEED_BITS = 63
_UNIT = "image"


@dataclass(frozen=True, slots=True)
class ImageSampling:
    """How many votes are drawn, and how often an answer may be wrong.

    Attributes:
        alpha: probability that a certificate is false, for each image.
        samples: votes that prove, at most.
        selection: votes that choose the class, apart from those.
        futility: chance of giving up a radius that all votes may prove; it costs certificates, never their truth.
        last_look: spend half of alpha on one exact test when all votes are drawn. It is for `radius` only.
        batch_size: noised images per call of the model.
        guard_band: how far a logit may move with the composition of a batch.

    Raises:
        InvalidArgument: an attribute outside its range.
    """

    alpha: float = 0.001
    samples: int = 100_000
    selection: int = 100
    futility: float = 0.01
    last_look: bool = True
    batch_size: int = 1000
    guard_band: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 < self.futility < 1 or not 0 <= self.guard_band < np.inf:
            raise InvalidArgument("alpha and futility must be in (0, 1), and the guard band finite and not negative")
        sizes = (self.samples, self.selection, self.batch_size)
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
            raise InvalidArgument("samples, selection and batch_size must be whole numbers, at least 1")


class GaussianSmoothing:
    """Certifies that no small change of an image, in Euclidean norm, changes its smoothed class.

    Theorem: see the module and `promptguard.vision.radius`; a certificate is true with probability 1 - alpha.

    Args:
        model: the base classifier: batches of images to logits (count, classes), in eval mode, normalisation inside.
        sigma: standard deviation of the noise, in the units of the image that the model is given.
        radius: the radius that is asked for; None reports the largest, which takes all samples.
        noise: a kind of noise, from sigma: `Gaussian`, `LinearGaussian`, or `partial(GridGaussian, levels=255)`.
        harmful: classes that are merged to HARMFUL; all others are SAFE. None keeps the classes.
        runner_up: how the other classes' shares are bounded for the largest radius.
        sampling: error rates and numbers of votes.
        rng: one draw per call seeds the noise. The default is the system's, which nobody can predict.

    Raises:
        InvalidArgument: an argument means nothing, the model is in training mode, the radius is out of reach, or
            `samples` is too small to certify any image (the message says how many could).
    """

    method = "gaussian-smoothing"

    def __init__(
        self,
        model: nn.Module,
        sigma: float,
        *,
        radius: float | None = None,
        noise: Callable[[float], Noise] = Gaussian,
        harmful: Collection[int] | None = None,
        runner_up: RunnerUp | None = None,
        sampling: ImageSampling | None = None,
        rng: random.Random | None = None,
    ) -> None:
        check_eval(model)
        if harmful is not None and (not harmful or not all(isinstance(c, int) and c >= 0 for c in harmful)):
            raise InvalidArgument("harmful must be class indices, at least one")
        self.model, self.noise, self.radius = model, noise(sigma), radius
        self._sigma = self.noise.sigma * self.noise.shrink  # radii are of the tensors that are given
        self.sampling = sampling = sampling or ImageSampling()
        self._runner_up = runner_up or Rest()
        self._merged = harmful is not None
        self._voter = Voter(
            model, self.noise, harmful=harmful, batch_size=sampling.batch_size, guard_band=sampling.guard_band
        )
        self._rng = rng or random.SystemRandom()
        self._looks: dict[float, Looks] = {}
        self._known: tuple[tuple[str, *tuple[int, ...]], str] | None = None
        if radius is None:
            if sampling.samples < (least := trials_needed(0.5, 1 - sampling.alpha)):
                raise InvalidArgument(f"{sampling.samples} samples can never certify an image: take at least {least}")
        else:
            self._looks_of(0.0)

    def predict(self, x: torch.Tensor, samples: int = 1000) -> int | Label | None:
        """The class of the smoothed classifier, or None (Cohen et al. 2019, PREDICT, section 3.2.1).

        Args:
            x: an image, without a batch dimension.
            samples: votes; two classes are told apart by an exact binomial test.

        Returns:
            Wrong with probability at most alpha; None if the votes do not tell.

        Raises:
            InvalidArgument: x is no image for this noise, or too few samples to tell anything.
            FilterError: the model broke its contract.
        """
        if samples < (least := trials_needed(0.5, 1 - self.sampling.alpha / 2)):
            raise InvalidArgument(f"{samples} samples can never tell a class: take at least {least}")
        draw, generator = self._start(x.unsqueeze(0))
        votes = Tally(self._voter.count(draw, np.zeros(1, dtype=np.int64), samples, generator)[0], samples)
        second, first = np.argsort(votes.counts, kind="stable")[-2:]
        mine, others = int(votes.counts[first]), int(votes.counts[second]) + votes.unsure
        sure = mine > others and binomtest(mine, mine + others, 0.5).pvalue <= self.sampling.alpha
        return self._label(int(first)) if sure else None

    def certify(self, x: torch.Tensor) -> Verdict:
        """The smoothed class of an image, with a certificate if the radius holds.

        Args:
            x: an image, without a batch dimension; of integers for noise on a grid.

        Returns:
            The class, or HARMFUL and SAFE, or ABSTAIN. `score` is the share of votes for the chosen class.

        Raises:
            InvalidArgument: x is no image for this noise, or the model is in training mode.
            FilterError: the model broke its contract.
        """
        return self.certify_many(x.unsqueeze(0))[0]

    def certify_many(self, images: torch.Tensor) -> list[Verdict]:
        """The same for several images of one shape: `certify` of each, in fewer calls of the model.

        Each image has votes and noise of its own, and alpha holds for each.

        Args:
            images: (count, ...).

        Raises:
            InvalidArgument: they are no images for this noise, or the model is in training mode.
            FilterError: the model broke its contract.
        """
        draw, generator = self._start(images)
        everyone = np.arange(len(images))
        selection = self._voter.count(draw, everyone, self.sampling.selection, generator)
        chosen = np.argmax(selection, 1)
        slack = self.noise.slack(images[0].numel())
        if self.radius is not None:
            return self._at_radius(self.radius, chosen, draw, generator, slack=slack)
        samples = self.sampling.samples
        votes = self._voter.count(draw, everyone, samples, generator)
        tallies = (
            (Tally(a, self.sampling.selection), Tally(b, samples)) for a, b in zip(selection, votes, strict=True)
        )
        return [self._largest(int(c), *both, slack) for c, both in zip(chosen, tallies, strict=True)]

    def _start(self, images: torch.Tensor) -> tuple[Draw, torch.Generator]:
        draw = self._voter.of(images)
        like = next(self.model.parameters(), None)
        generator = torch.Generator(like.device if like is not None else "cpu")
        return draw, generator.manual_seed(self._rng.getrandbits(_SEED_BITS))

    def _largest(self, chosen: int, selection: Tally, votes: Tally, slack: float) -> Verdict:
        shares = self._runner_up.shares(chosen, selection, votes, self.sampling.alpha)
        radius = certified_radius(*shares, self._sigma, slack)
        label = self._label(chosen) if radius > 0 else Label.ABSTAIN
        share = int(votes.counts[chosen]) / votes.trials
        return self._verdict(label, share, 0.5, votes.trials, radius, holds=radius > 0)

    def _at_radius(
        self, radius: float, chosen: Which, draw: Draw, generator: torch.Generator, *, slack: float
    ) -> list[Verdict]:
        looks = self._looks_of(slack)
        successes, last = np.zeros_like(chosen), np.zeros_like(chosen)
        open_, before = np.arange(len(chosen)), 0
        for at, until in enumerate(looks.trials):
            votes = self._voter.count(draw, open_, int(until) - before, generator)
            successes[open_] += votes[np.arange(len(open_)), chosen[open_]]
            last[open_], before = at, int(until)
            undecided = (successes[open_] < looks.holds[at]) & (successes[open_] > looks.hopeless[at])
            open_ = open_[undecided]
            if not len(open_):
                break
        needed = share_needed(radius, self._sigma, slack)
        verdicts = []
        for label, votes_for, at in zip(chosen, successes, last, strict=True):
            holds, trials = bool(votes_for >= looks.holds[at]), int(looks.trials[at])
            name = self._label(int(label)) if holds or votes_for >= looks.majority[at] else Label.ABSTAIN
            verdicts.append(self._verdict(name, int(votes_for) / trials, needed, trials, radius, holds=holds))
        return verdicts

    def _looks_of(self, slack: float) -> Looks:
        if slack not in self._looks:
            sampling, sigma = self.sampling, self._sigma
            needed = share_needed(self.radius or 0.0, sigma, slack)
            self._looks[slack] = Looks.of(
                needed, share_needed(0.0, sigma, slack), sampling.alpha, sampling.samples,
                futility=sampling.futility, last_look=sampling.last_look,
            )  # fmt: skip
        return self._looks[slack]

    def _label(self, chosen: int) -> int | Label:
        return (Label.HARMFUL if chosen else Label.SAFE) if self._merged else chosen

    def _verdict(
        self, label: int | Label, share: float, needed: float, trials: int, radius: float, *, holds: bool
    ) -> Verdict:
        calls = trials + self.sampling.selection
        threat = Threat(L2, radius, _UNIT)
        proved = self._certificate(label, threat) if holds else None
        return Verdict(label, share, needed, calls=calls, checks=calls, threat=threat, certificate=proved)

    def _certificate(self, label: int | Label, threat: Threat) -> Certificate:
        sampling = self.sampling
        if self._known is None or self._known[0] != version(self.model):
            self._known = version(self.model), digest(self.model)
        assumes = (
            f"the label is the smoothed classifier's: the likeliest class under noise of sigma {self.noise.sigma!r}",
            self.noise.assumes,
            f"at most {sampling.samples} votes, and {sampling.selection} to choose the class, with a fresh secret seed",
            f"the model is in eval mode; votes within {sampling.guard_band!r} of another class count for none",
        )
        return Certificate(label, threat, self.method, 1 - sampling.alpha, self._known[1], assumes)
