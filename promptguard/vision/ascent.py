"""Projected gradient ascent in l2: the step that attacks and adversarial training share (Madry et al. 2018).

x <- project(x + step * g / |g|). All losses are per image, so images of one batch do not see each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import nn

Loss: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
_TINY = 1e-12


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the former modes after: batch statistics must not be moved by an attack's images."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def norms(batch: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each image, in float64, shaped to be broadcast: (count, 1, ..., 1)."""
    found: torch.Tensor = torch.linalg.vector_norm(batch.double().flatten(1), dim=1)
    return found.reshape(-1, *[1] * (batch.ndim - 1))


def gradient(loss: Loss, x: torch.Tensor) -> torch.Tensor:
    """Derivative of each image's loss by the image.

    Args:
        loss: a batch of images to one number each.
        x: images (count, ...); not changed.
    """
    with torch.enable_grad():
        moved = x.detach().clone().requires_grad_(True)
        (found,) = torch.autograd.grad(loss(moved).sum(), moved)
    return found


def within(x: torch.Tensor, centre: torch.Tensor, radius: float) -> torch.Tensor:
    """The nearest points in the l2 balls around `centre`."""
    if math.isinf(radius):
        return x
    moved = x.double() - centre.double()
    return (centre.double() + moved * (radius / norms(moved).clamp_min(_TINY)).clamp(max=1.0)).to(x.dtype)


def ascend(
    loss: Loss,
    x: torch.Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    start: torch.Tensor | None = None,
    domain: tuple[float, float] | None = None,
) -> list[torch.Tensor]:
    """Iterates of projected gradient ascent, `start` first.

    Args:
        loss: a batch of images to one number each, to be raised.
        x: centres of the balls (count, ...).
        radius: of the balls, may be infinite.
        step: length of a step.
        steps: how many.
        start: where to begin; default x.
        domain: least and largest value of a pixel; None is no limit. Clipping keeps the point in the ball if the
            centre is in the domain.
    """
    moved = x if start is None else start
    found = [moved]
    for _ in range(steps):
        direction = gradient(loss, moved)
        moved = within(moved + step * (direction / (norms(direction) + _TINY)).to(x.dtype), x, radius)
        if domain is not None:
            moved = moved.clamp(*domain)
        found.append(moved)
    return found
