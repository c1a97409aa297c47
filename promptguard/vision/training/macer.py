"""MACER (Zhai et al. 2020): the certified radius itself, softened, is what grows; no attack is needed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from promptguard.vision.training.recipe import check_recipe, logits_of, noise_for

_EDGE = 1e-6  # of shares: at 0 and 1 the quantile is infinite


class Macer:
    """-log of the mean softmax, and where that is right a hinge on the soft radius (their eq. 11 and algorithm 1).

    Args:
        sigma: of the noise.
        weight: lambda, of the hinge.
        gamma: radius, in units of sigma / 2, beyond which nothing is gained.
        sharpness: beta of the softmax in the radius.
        copies: noised copies of an image.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(
        self, sigma: float, weight: float = 4.0, gamma: float = 8.0, sharpness: float = 16.0, copies: int = 8
    ) -> None:
        check_recipe(sigma, copies, weight, gamma, sharpness)
        self._sigma, self._weight, self._gamma, self._sharpness = sigma, weight, gamma, sharpness
        self._copies = copies

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`."""
        logits = logits_of(model, images, noise_for(images, self._sigma, self._copies, generator))
        mean = torch.softmax(logits, -1).mean(0)
        fit = functional.nll_loss(mean.clamp_min(_EDGE).log(), labels)
        sharp = torch.softmax(self._sharpness * logits, -1).mean(0)
        mine = sharp.gather(1, labels[:, None]).squeeze(1)
        other = sharp.scatter(1, labels[:, None], 0.0).amax(1)
        gap = self._gamma - self.radius(mine, other, 2.0)
        # Only images that are right, not yet far enough, and with shares at which the quantile has a slope.
        inside = (mine > other) & (gap > 0) & (mine < 1 - _EDGE) & (other > _EDGE)
        hinge = torch.where(inside, gap, torch.zeros_like(gap)).sum() * self._sigma / 2 / len(images)
        return fit + self._weight * hinge

    @staticmethod
    def radius(mine: torch.Tensor, other: torch.Tensor, sigma: float) -> torch.Tensor:
        """Sigma / 2 (Phi^-1(mine) - Phi^-1(other)), differentiable; shares are kept away from 0 and 1."""
        shares = torch.stack([mine, other]).clamp(_EDGE, 1 - _EDGE)
        quantiles: torch.Tensor = torch.special.ndtri(shares)
        return (quantiles[0] - quantiles[1]) * (sigma / 2)
