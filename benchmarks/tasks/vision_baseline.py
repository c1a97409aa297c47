"""What `benchmarks.tasks.vision` measures on: digits, networks, and the procedure of Cohen et al. 2019."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.datasets import load_digits
from torch import nn

from promptguard.stats import lower_bound
from promptguard.vision.training.loop import Schedule, train
from promptguard.vision.training.recipe import Recipe

ALPHA, SELECTION, BATCH = 0.001, 100, 1000
Split = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def digits(seed: int) -> Split:
    """Images and labels to train on, and to certify."""
    found = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    mine, others = order[:1400], order[1400:]
    return images[mine], labels[mine], images[others], labels[others]


def mlp(inputs: int, width: int, depth: int = 1) -> nn.Sequential:
    """A perceptron of ten classes with hidden layers of one width."""
    inner = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), *inner, nn.Linear(width, 10)).eval()


def trained(split: Split, model: nn.Module, recipe: Recipe, seed: int, epochs: int) -> nn.Module:
    """A network trained on a split."""
    generator = torch.Generator().manual_seed(seed)
    return train(model, split[0], split[1], recipe, generator=generator, schedule=Schedule(epochs=epochs))


def rounds(ways: Mapping[str, Callable[[], object]], count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Processor time in seconds of each way, in so many rounds in turn, after a tenth as many that are not counted."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(-(count // 10), count):
        for way, call in ways.items():
            start = time.process_time_ns()
            call()
            if turn >= 0:
                times[way].append((time.process_time_ns() - start) / 1e9)
    return {way: np.array(found) for way, found in times.items()}


class Block(nn.Module):
    """Two convolutions with a skip connection, as in ResNet-20 for images of 32 pixels (He et al. 2016, 4.2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The next features."""
        skip = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, 0, self.extra])
        return torch.relu(self.body(x) + skip)


def resnet20() -> nn.Module:
    """An untrained ResNet-20 for images of 3x32x32: the cost of a forward pass does not depend on the weights."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b) for a, b in pairwise(widths)]
    head = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*head, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


# The procedure of Cohen et al.


def counted(classes: torch.Tensor) -> np.ndarray[Any, Any]:
    """Votes by class, one by one."""
    found = np.zeros(10, dtype=int)
    for one in classes.numpy():
        found[one] += 1
    return found


def binned(classes: torch.Tensor) -> np.ndarray[Any, Any]:
    """Votes by class, at once."""
    return np.bincount(classes.numpy(), minlength=10)


@torch.no_grad()
def votes(model: nn.Module, x: torch.Tensor, n: int, count: Callable[..., Any], *, sigma: float = 0.25) -> Any:
    """SampleUnderNoise: votes by class under fresh noise."""
    found = np.zeros(10, dtype=int)
    for start in range(0, n, BATCH):
        copies = x.repeat((min(BATCH, n - start), *[1] * x.ndim))
        found += count(model(copies + torch.randn_like(copies) * sigma).argmax(1))
    return found


def cohen(model: nn.Module, x: torch.Tensor, n: int, count: Callable[..., Any], *, sigma: float = 0.25) -> Any:
    """Certify: the class, and its radius or a number below 0."""
    chosen = int(votes(model, x, SELECTION, count, sigma=sigma).argmax())
    low = lower_bound(int(votes(model, x, n, count, sigma=sigma)[chosen]), n, 1 - ALPHA)
    return chosen, float(sigma * norm.ppf(low)) if low > 0.5 else -1.0
