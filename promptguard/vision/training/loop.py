"""A plain training loop: shuffled batches, AdamW, one cycle of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from promptguard.errors import InvalidArgument
from promptguard.vision.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the images.
        batch_size: images of a step.
        rate: largest learning rate.
        decay: weight decay.
        shifts: pixels by which an image may be moved in each of its last two dimensions; 0 is none.

    Raises:
        InvalidArgument: an attribute outside its range.
    """

    epochs: int = 60
    batch_size: int = 128
    rate: float = 3e-3
    decay: float = 1e-4
    shifts: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or not self.rate > 0 or self.decay < 0 or self.shifts < 0:
            raise InvalidArgument("a schedule needs epochs, a batch size and a rate above 0, and no negative number")


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    schedule: Schedule | None = None,
) -> nn.Module:
    """Train a model in place, and leave it in eval mode.

    Args:
        model: batches of images to logits.
        images: (count, ...), float32, on the model's device.
        labels: (count,), class indices.
        recipe: the loss.
        generator: of the order of images and of all noise.
        schedule: how long and how fast.

    Returns:
        The model.
    """
    schedule = schedule or Schedule()
    steps = -(-len(images) // schedule.batch_size) * schedule.epochs
    optimiser = torch.optim.AdamW(model.parameters(), schedule.rate, weight_decay=schedule.decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.rate, total_steps=steps + 1)
    model.train()
    for _ in range(schedule.epochs):
        order = torch.randperm(len(images), generator=generator, device=images.device)
        for some in torch.split(order, schedule.batch_size):
            batch = _shifted(images[some], schedule.shifts, generator)
            optimiser.zero_grad(set_to_none=True)
            recipe.loss(model, batch, labels[some], generator).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rate.step()
    return model.eval()


def _shifted(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `most` pixels, with what its border holds left empty."""
    if not most:
        return images
    high, wide = images.shape[-2:]
    padded = nn.functional.pad(images, [most] * 4)
    moves = torch.randint(2 * most + 1, (2, len(images)), generator=generator, device=images.device)
    rows = moves[0].reshape(-1, 1, 1, 1) + torch.arange(high, device=images.device).reshape(-1, 1)
    columns = moves[1].reshape(-1, 1, 1, 1) + torch.arange(wide, device=images.device)
    each = torch.arange(len(images), device=images.device).reshape(-1, 1, 1, 1)
    channels = torch.arange(images.shape[1], device=images.device).reshape(1, -1, 1, 1)
    return padded[each, channels, rows, columns]
