"""Adversarial training (Madry et al. 2018): train at the worst point that an attack finds. Proves nothing by itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from promptguard.vision.ascent import ascend, evaluating
from promptguard.vision.training.recipe import check_recipe


class AdversarialTraining:
    """Cross-entropy where l2-PGD takes the images; the model is in eval mode while it is attacked.

    Args:
        radius: l2, of the attack.
        steps: of the attack.
        domain: least and largest value of a pixel; None is no limit.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(self, radius: float, steps: int = 5, domain: tuple[float, float] | None = (0.0, 1.0)) -> None:
        check_recipe(radius, steps)
        self._radius, self._steps, self._domain = radius, steps, domain

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`."""
        del generator
        step = 2.5 * self._radius / self._steps
        with evaluating(model):
            *_, attacked = ascend(
                lambda x: functional.cross_entropy(model(x), labels, reduction="none"),
                images, radius=self._radius, step=step, steps=self._steps, domain=self._domain,
            )  # fmt: skip
        return functional.cross_entropy(model(attacked), labels)
