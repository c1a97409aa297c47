"""SmoothMix (Jeong et al. 2021): from an image to where an attack takes it, the smoothed label fades to none."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from promptguard.vision.ascent import ascend, evaluating
from promptguard.vision.training.recipe import check_recipe, copies_loss, logits_of, noise_for, smoothed_loss


class SmoothMix:
    """Cross-entropy of noised copies + weight * divergence from the mixed label at a mixed image (their section 3.2).

    Args:
        sigma: of the noise.
        step: length of a step of the attack, which has no radius.
        steps: of the attack.
        weight: eta, of the mixed part.
        copies: noised copies of an image.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(self, sigma: float, step: float = 0.5, steps: int = 2, weight: float = 5.0, copies: int = 2) -> None:
        check_recipe(sigma, copies, step, weight)
        self._sigma, self._step, self._steps, self._weight, self._copies = sigma, step, steps, weight, copies

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`."""
        noise = noise_for(images, self._sigma, self._copies, generator)
        with evaluating(model):
            target = smoothed_loss(model, labels, noise)
            *_, attacked = ascend(target, images, radius=math.inf, step=self._step, steps=self._steps)
        logits = logits_of(model, images, noise)
        soft = torch.softmax(logits.detach(), -1).mean(0)
        share = torch.rand(len(images), generator=generator, device=images.device) / 2
        mixed, label = self.mix(images, attacked, soft, share)
        at_mixed = torch.log_softmax(logits_of(model, mixed, noise), -1)
        far = functional.kl_div(at_mixed, label.expand_as(at_mixed), reduction="none").sum(-1).mean()
        return copies_loss(logits, labels) + self._weight * far

    @staticmethod
    def mix(
        images: torch.Tensor, attacked: torch.Tensor, soft: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(1 - share) image + share attacked, and (1 - share) soft label + share uniform; a share of 0 is the image.

        Args:
            images: (count, ...).
            attacked: the same shape.
            soft: mean softmax at the images, (count, classes).
            share: (count,), in [0, 1/2].
        """
        wide = share.reshape(-1, *[1] * (images.ndim - 1))
        label = (1 - share)[:, None] * soft + share[:, None] / soft.shape[1]
        return (1 - wide) * images + wide * attacked, label
