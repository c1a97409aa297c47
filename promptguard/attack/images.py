"""Attacks on images, and attacks inside the certificates of images.

* FGSM (Goodfellow et al. 2015): one step along the sign of the gradient, in l-infinity.
* l2-PGD (Madry et al. 2018): projected ascent with random restarts; the best point seen is kept, per image.
* Adaptive PGD: the same through a smoothed model, on the mean softmax of noised copies (Salman et al. 2019, section 3).

A certificate says that no point of an l2 ball has another label. `falsify_image` looks for one. A success proves the
certificate wrong, or, for a sampled one, that an event of probability alpha happened twice; none proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from promptguard.errors import InvalidArgument
from promptguard.threat import L2
from promptguard.types import Certificate, Certifier, Label, Verdict
from promptguard.vision.ascent import Loss, ascend, evaluating, gradient, norms, within
from promptguard.vision.training.recipe import noise_for, smoothed_loss

_SHRINK = 1 - 1e-6  # of a radius: steps in floating point must not leave the ball


class ImageAttack(Protocol):
    """A search for images of another class near given ones."""

    def run(
        self, images: torch.Tensor, labels: torch.Tensor, radius: float, generator: torch.Generator
    ) -> torch.Tensor:
        """The worst images found.

        Args:
            images: (count, ...).
            labels: (count,), the classes to be left.
            radius: l2, of the ball around each image.
            generator: of restarts and of noise.

        Returns:
            The same shape, each within its ball.
        """
        ...


def fgsm(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    *,
    domain: tuple[float, float] | None = (0.0, 1.0),
) -> torch.Tensor:
    """One step of size eps along the sign of the gradient of the cross-entropy (Goodfellow et al. 2015, section 4).

    For a linear loss w . x it is the best there is: the loss rises by eps |w|_1.

    Args:
        model: batches of images to logits; in eval mode while it is attacked.
        images: (count, ...); not changed.
        labels: (count,), class indices.
        eps: l-infinity, at least 0.
        domain: least and largest value of a pixel, after the step; None is no limit.

    Raises:
        InvalidArgument: eps means nothing.
    """
    if not 0 <= eps < math.inf:
        raise InvalidArgument(f"eps must be a finite number >= 0, not {eps!r}")
    with evaluating(model):
        slope = gradient(_cross_entropy(model, labels), images)
    moved = images.detach() + eps * slope.sign()
    return moved if domain is None else moved.clamp(*domain)


@dataclass(frozen=True, slots=True)
class PGD:
    """l2-PGD on a model (Madry et al. 2018).

    For a linear model of two classes it succeeds exactly if the radius is above |margin| / |w|_2.

    Attributes:
        model: batches of images to logits; in eval mode while it is attacked.
        steps: of each restart; a step is 2.5 radius / steps long.
        restarts: the first begins at the image, the others anywhere in the ball.
        domain: least and largest value of a pixel; None is no limit.

    Raises:
        InvalidArgument: fewer than one step or restart.
    """

    model: nn.Module
    steps: int = 20
    restarts: int = 2
    domain: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts)

    def run(
        self, images: torch.Tensor, labels: torch.Tensor, radius: float, generator: torch.Generator
    ) -> torch.Tensor:
        """See `ImageAttack`."""
        with evaluating(self.model):
            loss = _cross_entropy(self.model, labels)
            return _best(
                loss, images, radius,
                steps=self.steps, restarts=self.restarts, domain=self.domain, generator=generator,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SmoothedPGD:
    """l2-PGD through the smoothed model: on -log of the mean softmax over noised copies (Salman et al. 2019, eq. 9).

    Attributes:
        model: the base classifier; in eval mode while it is attacked.
        sigma: of the noise.
        copies: of each image; the noise is the same in all steps.
        steps: of each restart.
        restarts: as for `PGD`.
        domain: least and largest value of a pixel; None is no limit.

    Raises:
        InvalidArgument: fewer than one step, restart or copy, or sigma means nothing.
    """

    model: nn.Module
    sigma: float
    copies: int = 16
    steps: int = 20
    restarts: int = 2
    domain: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts, self.copies)
        if not 0 < self.sigma < math.inf:
            raise InvalidArgument(f"sigma must be a finite number above 0, not {self.sigma!r}")

    def run(
        self, images: torch.Tensor, labels: torch.Tensor, radius: float, generator: torch.Generator
    ) -> torch.Tensor:
        """See `ImageAttack`."""
        with evaluating(self.model):
            loss = smoothed_loss(self.model, labels, noise_for(images, self.sigma, self.copies, generator))
            return _best(
                loss, images, radius,
                steps=self.steps, restarts=self.restarts, domain=self.domain, generator=generator,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnGrid:
    """An attack whose images are brought to the grid of 1 / levels, for certifiers that refuse others.

    Each pixel's change is rounded towards none, so the image stays in its ball.

    Attributes:
        attack: finds images anywhere.
        levels: steps from 0 to 1. The attacked images must be whole numbers of them.
    """

    attack: ImageAttack
    levels: int

    def run(
        self, images: torch.Tensor, labels: torch.Tensor, radius: float, generator: torch.Generator
    ) -> torch.Tensor:
        """See `ImageAttack`."""
        moved = self.attack.run(images, labels, radius, generator)
        whole = torch.round(images.double() * self.levels)
        change = torch.trunc(moved.double() * self.levels - whole)
        return ((whole + change) / self.levels).to(images.dtype)


@dataclass(frozen=True, slots=True)
class ImageFalsification:
    """What attacks inside the certificate of an image came to.

    Attributes:
        certificate: what was attacked; None if the verdict has none.
        attempts: attacked images that the certifier was asked about.
        abstained: how many of them it abstained on.
        counter_examples: images inside the ball with another label; empty for a sound certifier.
    """

    certificate: Certificate | None
    attempts: int
    abstained: int
    counter_examples: tuple[torch.Tensor, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without any image."""
        threat = self.certificate.threat.to_dict() if self.certificate else None
        found = {"threat": threat, "attempts": self.attempts, "abstained": self.abstained}
        return found | {"counter_examples": len(self.counter_examples)}


def falsify_image(
    certifier: Certifier[torch.Tensor],
    x: torch.Tensor,
    verdict: Verdict,
    attacks: Sequence[ImageAttack],
    generator: torch.Generator,
    *,
    label: int | None = None,
) -> ImageFalsification:
    """Attack a certified image inside the ball of its certificate.

    A success is an image strictly inside to which the certifier gives another label, twice. An abstention is one if the
    certificate is deterministic; of a sampled certificate it may be chance, and is only counted.

    Args:
        certifier: gave the verdict.
        x: the certified image, without a batch dimension.
        verdict: what `certifier.certify(x)` returned. Without a certificate nothing is attacked.
        attacks: each is run once, from x.
        generator: of the attacks' randomness.
        label: the class that attacks shall leave; needed if the certified label is no class index.

    Raises:
        InvalidArgument: the certificate is of another threat than l2, no class is known, or an attack left the ball.
    """
    certificate = verdict.certificate
    if certificate is None:
        return ImageFalsification(None, 0, 0, ())
    if certificate.threat.kind != L2:
        raise InvalidArgument("only l2 certificates can be attacked here")
    left = certificate.label if label is None else label
    if isinstance(left, Label):
        raise InvalidArgument("pass the class that attacks shall leave: the certificate names none")
    budget = certificate.threat.budget
    # Rounding a moved image may take it as far out again as its numbers are coarse.
    radius = max(0.0, budget * _SHRINK - torch.finfo(x.dtype).eps * (float(x.double().norm()) + budget))
    found, abstained = [], 0
    for attack in attacks:
        moved = attack.run(x[None], torch.tensor([left], device=x.device), radius, generator)[0]
        if float((moved.double() - x.double()).norm()) > budget:
            raise InvalidArgument("an attack left the ball that it was given")
        labels = [certifier.certify(moved).label for _ in range(2)]
        gone = [one != certificate.label and _counts(one, certificate) for one in labels]
        abstained += labels[0] is Label.ABSTAIN
        if all(gone):
            found.append(moved)
    return ImageFalsification(certificate, len(attacks), abstained, tuple(found))


def _counts(label: int | Label, certificate: Certificate) -> bool:
    return label is not Label.ABSTAIN or certificate.confidence == 1.0


def _check(*sizes: int) -> None:
    if min(sizes) < 1:
        raise InvalidArgument("steps, restarts and copies must be at least 1")


def _cross_entropy(model: nn.Module, labels: torch.Tensor) -> Loss:
    return lambda x: functional.cross_entropy(model(x), labels, reduction="none")


def _best(
    loss: Loss, images: torch.Tensor, radius: float, *, steps: int, restarts: int,
    domain: tuple[float, float] | None, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """The point of the largest loss that any restart sees, per image; the image itself is one of them."""
    best, most = images, loss(images).detach()
    for number in range(restarts):
        start = _start(images, radius, generator, domain) if number else images
        iterates = ascend(
            loss, images, radius=radius, step=2.5 * radius / steps, steps=steps, start=start, domain=domain
        )
        for moved in iterates:
            with torch.no_grad():
                now = loss(moved)
            better = now > most
            most = torch.where(better, now, most)
            best = torch.where(better.reshape(-1, *[1] * (images.ndim - 1)), moved, best)
    return best


def _start(
    images: torch.Tensor, radius: float, generator: torch.Generator, domain: tuple[float, float] | None
) -> torch.Tensor:
    """Uniform in the ball: a uniform direction, and the right power of a uniform length."""
    way = torch.randn(images.shape, generator=generator, device=images.device)
    share = torch.rand(len(images), generator=generator, device=images.device) ** (1 / images[0].numel())
    away = way / norms(way).to(way.dtype) * radius * share.reshape(-1, *[1] * (images.ndim - 1))
    moved = within(images + away, images, radius)
    return moved if domain is None else moved.clamp(*domain)
