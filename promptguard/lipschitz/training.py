"""Training for certified accuracy: losses on pairwise margins, one recipe, export.

Constants in here are differentiable estimates. A certificate recomputes them: see `promptguard.lipschitz.network`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from promptguard.errors import InvalidArgument
from promptguard.lipschitz.layers import PlusIdentityWeight, Trainable, largest
from promptguard.lipschitz.plain import plain_layer

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class MarginLoss:
    """Cross-entropy after every wrong logit was raised by what it can gain within `radius`.

    With orthogonal heads this is the offset margin of Singla et al. 2022 and Prach and Lampert 2022.

    Attributes:
        radius: that is trained for; larger than the one that counts.
        temperature: divides the logits, which 1-Lipschitz networks keep small.
    """

    radius: float = 0.5
    temperature: float = 0.1

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Of logits (batch, classes), labels (batch,) and pairwise constants (classes, classes)."""
        return functional.cross_entropy((logits + self.radius * pairs[labels]) / self.temperature, labels)


@dataclass(frozen=True, slots=True)
class GloRoLoss:
    """Cross-entropy with one more logit, that of "not certified at `radius`" (Leino et al. 2021, equation 3).

    Attributes:
        radius: that is trained for.
        temperature: divides the logits.
    """

    radius: float = 0.5
    temperature: float = 0.1

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Of logits (batch, classes), labels (batch,) and pairwise constants (classes, classes)."""
        top = logits.argmax(1)
        rivals = (logits + self.radius * pairs[top]).scatter(1, top[:, None], -torch.inf)
        extended = torch.cat((logits, rivals.amax(1, keepdim=True)), 1)
        return functional.cross_entropy(extended / self.temperature, labels)


@dataclass(frozen=True, slots=True)
class EmmaLoss:
    """`MarginLoss` with a radius of its own for each input and rival, the one in reach (Hu et al. 2023, EMMA).

    Attributes:
        radius: the largest that is trained for.
        temperature: divides the logits.
    """

    radius: float = 0.5
    temperature: float = 0.1

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Of logits (batch, classes), labels (batch,) and pairwise constants (classes, classes)."""
        gaps = pairs[labels]
        lead = logits.gather(1, labels[:, None]) - logits
        radius = (lead / gaps.clamp(min=1e-9)).clamp(0, self.radius).detach()
        return functional.cross_entropy((logits + radius * gaps) / self.temperature, labels)


def free_layers(network: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[nn.Module, tuple[int, int]]]:
    """The layers before the last whose norm training has to watch, each with the size of the images that reach it.

    Args:
        network: in order.
        shape: of one input.
    """
    found: list[tuple[nn.Module, tuple[int, int]]] = []
    x = next(network.parameters()).new_zeros(1, *shape)
    with torch.no_grad():
        for module in list(network)[:-1]:
            if isinstance(module, nn.Linear | nn.Conv2d) and _free(module):
                found.append((module, (x.shape[-2], x.shape[-1]) if x.dim() == 4 else (1, 1)))
            x = module(x)
    return found


def estimated_pairs(head: nn.Linear, free: Sequence[tuple[nn.Module, tuple[int, int]]]) -> torch.Tensor:
    """Differentiable pairwise constants: norms of the free layers, 1 for others, times distances of the head's rows.

    Args:
        head: the last layer.
        free: from `free_layers`.
    """
    log = head.weight.new_zeros(())
    for module, size in free:
        log = log + largest(cast(torch.Tensor, module.weight), size).log()
    gaps = (head.weight[:, None] - head.weight[None]).square().sum(-1)
    return log.exp() * (gaps + torch.eye(len(gaps), dtype=gaps.dtype, device=gaps.device) * 1e-12).sqrt()


def _free(module: nn.Module) -> bool:
    """Is its weight not held at norm 1 by a parametrisation?"""
    if not parametrize.is_parametrized(module, "weight"):
        return True
    held = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return any(isinstance(part, PlusIdentityWeight) for part in cast(nn.ModuleList, held))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        loss: of logits, labels and pairwise constants.
        epochs: passes over the data.
        batch: inputs a step.
        rate: the largest learning rate of Adam's one cycle.
    """

    loss: Loss = MarginLoss()
    epochs: int = 60
    batch: int = 64
    rate: float = 0.01


def fit(
    network: nn.Sequential, x: torch.Tensor, y: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> nn.Sequential:
    """Train a network in place and export it.

    Args:
        network: ends with Linear.
        x: inputs, of shape (n, ...).
        y: int64 of shape (n,).
        recipe: how.
        generator: of the order of the inputs.

    Returns:
        What `export` makes of it.

    Raises:
        InvalidArgument: fewer inputs than a batch, or another last module.
    """
    steps = len(x) // recipe.batch
    head = network[-1]
    if not steps or not isinstance(head, nn.Linear):
        raise InvalidArgument("training needs at least one batch of inputs, and a network that ends with Linear")
    free = free_layers(network, tuple(x.shape[1:]))
    network.train()
    adam = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.rate, total_steps=recipe.epochs * steps + 1)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)[: steps * recipe.batch]
        for chosen in order.reshape(steps, recipe.batch):
            with parametrize.cached():
                loss = recipe.loss(network(x[chosen]), y[chosen], estimated_pairs(head, free))
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            cycle.step()
    return export(network)


def export(network: nn.Sequential) -> nn.Sequential:
    """The network in eval mode with every weight written out: plain torch and `promptguard.lipschitz.modules`.

    Weights are computed in float64 and rounded once, to the type of the network, which is left as it is.

    Raises:
        InvalidArgument: a parametrisation of something else than the weight of a Linear or Conv2d.
    """
    kind = next(network.parameters()).dtype
    plain = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for name, module in list(plain.named_modules()):
            parent, _, child = name.rpartition(".")
            if isinstance(module, Trainable):
                setattr(plain.get_submodule(parent), child, module.export())
            elif parametrize.is_parametrized(module):
                if not isinstance(module, nn.Linear | nn.Conv2d):
                    raise InvalidArgument(f"a parametrised {type(module).__name__} cannot be exported")
                # Removing the parametrisation instead would break every copy of the layer.
                setattr(plain.get_submodule(parent), child, plain_layer(module))
    return plain.to(kind).eval().requires_grad_(False)
