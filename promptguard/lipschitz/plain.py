"""Networks of other libraries as plain torch, so that their constants can be recomputed.

Libraries of Lipschitz layers declare constants; some are wrong in released versions (a layer with mirrored borders, a
coefficient that is stored and never applied). `plain` reads the weights that a layer runs with, whatever
parametrisation made them, and builds the plain layer; the certificate is about what it builds. No such library is
needed: layers are known by the torch classes they derive from, activations by what they do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.analysis import Analysis, Place
from promptguard.lipschitz.modules import MaxMin
from promptguard.lipschitz.rules import RULES

_CLOSE = 1e-5


class MaxMinPairs(nn.Module):
    """(x1, x2, x3, ...) -> (min(x1, x2), max(x1, x2), ...): neighbouring channels in pairs, ascending."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, channels, ...), channels even."""
        first, second = x[:, ::2], x[:, 1::2]
        return torch.stack((torch.minimum(first, second), torch.maximum(first, second)), 2).flatten(1, 2)

    def analysis(self, place: Place) -> Analysis:
        """The numbers of a permutation."""
        return Analysis(absolute=place.lost(0))


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.Identity, nn.ReLU, MaxMin, MaxMinPairs)


def plain(network: nn.Sequential, shape: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """A plain network that computes what `network` does, on random inputs at least.

    Args:
        network: modules in order; put into eval mode for it, and left alone otherwise.
        shape: of one input.
        generator: of the inputs that both are compared on.

    Raises:
        UnsupportedThreat: a module that is no layer or activation known here, or another result.
    """
    source = copy.deepcopy(network).eval().requires_grad_(False)
    x = torch.randn(32, *shape, generator=generator)
    found, value = [], x
    for module in _leaves(source):
        after = module(value)
        found.append(_match(module, value, after))
        value = after
    built = nn.Sequential(*found).eval().requires_grad_(False)
    if not torch.allclose(source(x), built(x), rtol=_CLOSE, atol=_CLOSE):
        raise UnsupportedThreat("the network does more than its modules in order: it cannot be written as plain layers")
    return built


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _leaves(child)
        else:
            yield child


def _match(module: nn.Module, x: torch.Tensor, after: torch.Tensor) -> nn.Module:
    """The plain module that maps x to `after`."""
    if type(module) in RULES:
        return module
    makers = [lambda: plain_layer(module)] if isinstance(module, nn.Linear | nn.Conv2d) else list(ACTIVATIONS)
    for make in makers:
        candidate = make()
        try:
            same = torch.allclose(candidate(x), after, rtol=_CLOSE, atol=_CLOSE)
        except RuntimeError:  # shapes that do not fit: another activation
            continue
        if same:
            return candidate
    raise UnsupportedThreat(f"{type(module).__name__} is no layer or activation that is known here")


def plain_layer(module: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """A plain layer with the weights that this one runs with now, whatever parametrises them."""
    bias = module.bias is not None
    made: nn.Linear | nn.Conv2d
    if isinstance(module, nn.Linear):
        made = nn.Linear(module.in_features, module.out_features, bias=bias)
    else:
        kernel, stride, dilation = (_two(size) for size in (module.kernel_size, module.stride, module.dilation))
        padding = module.padding if isinstance(module.padding, str) else _two(module.padding)
        made = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            kernel,
            stride,
            padding,
            dilation,
            module.groups,
            bias,
            module.padding_mode,
        )
    made = made.to(module.weight)
    made.load_state_dict({"weight": module.weight} | ({"bias": module.bias} if bias else {}))
    return made


def _two(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]
