"""SmoothAdv (Salman et al. 2019): adversarial training of the smoothed classifier, algorithm of section 3.2."""

from __future__ import annotations

import torch
from torch import nn

from promptguard.vision.ascent import ascend, evaluating
from promptguard.vision.training.recipe import check_recipe, copies_loss, logits_of, noise_for, smoothed_loss


class SmoothAdv:
    """Cross-entropy of noised copies at a point that an attack through the mean softmax found; the noise is the same.

    Args:
        sigma: of the noise.
        radius: l2, of the attack.
        copies: noises m, shared by all steps of the attack and by the loss.
        steps: of the attack.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(self, sigma: float, radius: float = 0.25, copies: int = 4, steps: int = 2) -> None:
        check_recipe(sigma, copies, radius)
        self._sigma, self._radius, self._copies, self._steps = sigma, radius, copies, steps

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`."""
        noise = noise_for(images, self._sigma, self._copies, generator)
        with evaluating(model):
            target = smoothed_loss(model, labels, noise)
            step = 2 * self._radius / max(1, self._steps)
            *_, attacked = ascend(target, images, radius=self._radius, step=step, steps=self._steps)
        return copies_loss(logits_of(model, attacked, noise), labels)
