"""Consistency regularisation (Jeong and Shin 2020): noised copies of an image shall agree, and be sure of it."""

from __future__ import annotations

import torch
from torch import nn

from promptguard.vision.training.recipe import check_recipe, copies_loss, logits_of, noise_for


class Consistency:
    """Cross-entropy + weight * mean KL(mean || each copy) + entropy * H(mean) (their eq. 8).

    Args:
        sigma: of the noise.
        weight: lambda, of the divergence.
        entropy: eta, of the entropy.
        copies: noised copies of an image.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(self, sigma: float, weight: float = 10.0, entropy: float = 0.5, copies: int = 2) -> None:
        check_recipe(sigma, copies, weight, entropy)
        self._sigma, self._weight, self._entropy, self._copies = sigma, weight, entropy, copies

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`."""
        logits = logits_of(model, images, noise_for(images, self._sigma, self._copies, generator))
        divergence, entropy = self.terms(logits)
        return copies_loss(logits, labels) + self._weight * divergence + self._entropy * entropy

    @staticmethod
    def terms(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean divergence of the mean softmax from each copy's, and the mean softmax' entropy.

        Args:
            logits: (copies, count, classes). If all copies agree the first is 0.
        """
        each = torch.log_softmax(logits, -1)
        mean = each.exp().mean(0)
        log_mean = mean.clamp_min(1e-20).log()
        divergence = (mean * (log_mean - each)).sum(-1).mean()
        return divergence, -(mean * log_mean).sum(-1).mean()
