"""Gaussian augmentation (Cohen et al. 2019, section 3.3): train on what will be voted on."""

from __future__ import annotations

import torch
from torch import nn

from promptguard.vision.training.recipe import check_recipe, copies_loss, logits_of, noise_for


class GaussianAugmentation:
    """Mean cross-entropy over noised copies.

    Args:
        sigma: of the noise; 0 is plain training.
        copies: of each image in a step.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(self, sigma: float, copies: int = 1) -> None:
        check_recipe(sigma, copies)
        self._sigma, self._copies = sigma, copies

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`."""
        noise = noise_for(images, self._sigma, self._copies, generator)
        return copies_loss(logits_of(model, images, noise), labels)
