"""What recipes share: the seam, noised copies, and averages over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from promptguard.errors import InvalidArgument


class Recipe(Protocol):
    """A way to train: the loss of one batch."""

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """A scalar to go down.

        Args:
            model: in training mode.
            images: (count, ...).
            labels: (count,), class indices.
            generator: of all noise.
        """
        ...


def check_recipe(sigma: float, copies: int, *weights: float) -> None:
    """Refuse settings that mean nothing.

    Raises:
        InvalidArgument: sigma or a weight is negative or no number, or there is no copy.
    """
    if not all(0 <= number < float("inf") for number in (sigma, *weights)) or copies < 1:
        raise InvalidArgument("sigma and weights must be finite and not negative, and copies at least 1")


def noise_for(images: torch.Tensor, sigma: float, copies: int, generator: torch.Generator) -> torch.Tensor:
    """N(0, sigma^2) of shape (copies, count, ...)."""
    return torch.randn(copies, *images.shape, generator=generator, device=images.device) * sigma


def logits_of(model: nn.Module, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Logits of all noised copies in one pass: (copies, count, classes)."""
    found: torch.Tensor = model((images + noise).flatten(0, 1))
    return found.reshape(*noise.shape[:2], -1)


def copies_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over copies; logits of shape (copies, count, classes)."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.repeat(logits.shape[0]))


def smoothed_loss(
    model: nn.Module, labels: torch.Tensor, noise: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """-log of the mean softmax at the label, per image: what attacks on a smoothed model raise (Salman et al. 2019, 5).

    The same noise serves every step of an attack.
    """

    def loss(images: torch.Tensor) -> torch.Tensor:
        shares = torch.log_softmax(logits_of(model, images, noise), -1)
        at_label = shares.gather(-1, labels.expand(noise.shape[0], -1).unsqueeze(-1)).squeeze(-1)
        return -(torch.logsumexp(at_label, 0) - torch.log(torch.tensor(float(noise.shape[0]))))

    return loss
