"""The numbers of torch's own modules: one function and one line for each kind.

Kinds are matched exactly: a subclass may compute something else. Modules that are missing here and have no `analysis`
are refused, and so is what has no finite constant: dot-product attention (Kim et al. 2021, *The Lipschitz Constant of
Self-Attention*, theorem 3.1), layer normalisation without a floor on the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.analysis import TINY, Analysis, Bounded, Place
from promptguard.lipschitz.bound import UpperBound, up
from promptguard.lipschitz.conv import Geometry
from promptguard.lipschitz.linear import convolution, diagonal, length, matrix
from promptguard.lipschitz.modules import Residual

Rule = Callable[[Any, Place], Analysis]
_LIBRARY = 32  # relative error of an elementary function, in units; common libraries stay below 4


def analyse(module: nn.Module, place: Place) -> Analysis:
    """The numbers of one module.

    Raises:
        UnsupportedThreat: nothing is proven of such a module.
    """
    rule = _rule(module)
    return rule(module, place) if rule else cast(Bounded, module).analysis(place)


def recognised(module: nn.Module) -> None:
    """Refuse a module of which nothing is proven.

    Raises:
        UnsupportedThreat: of an unknown type, or changed by hooks.
    """
    _rule(module)


def _rule(module: nn.Module) -> Rule | None:
    """Its rule; None for modules that speak for themselves."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise UnsupportedThreat(
            f"this {type(module).__name__} has hooks or a forward of its own, which may do anything"
        )
    rule = RULES.get(type(module))
    if rule is None and not isinstance(module, Bounded):
        raise UnsupportedThreat(
            f"no Lipschitz constant is proven of {type(module).__name__}: use modules of promptguard.lipschitz, "
            "Linear, Conv2d, poolings and elementwise activations; export parametrised ones with `plain` first"
        )
    return rule


def chain(modules: nn.Sequential, place: Place) -> Analysis:
    """One module after another; shapes are found by running a zero input through them."""
    total, x = Analysis(), None
    for module in modules:
        if x is None:
            x = torch.zeros(1, *place.input, dtype=_kind(place))
            x = x.to(next((p.device for p in _tensors(modules)), x.device))
        recognised(module)  # what is refused need not take a tensor
        with torch.no_grad():
            after = module(x)
        total = total.then(analyse(module, Place(tuple(x.shape[1:]), tuple(after.shape[1:]), place.unit)))
        x = after
    return total


def _kind(place: Place) -> torch.dtype:
    """The type that a network computes in there."""
    return torch.float32 if place.unit > 2.0**-30 else torch.float64


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _linear(module: nn.Linear, place: Place) -> Analysis:
    return matrix(module.weight, module.bias, place)


def _conv(module: nn.Conv2d, place: Place) -> Analysis:
    if module.padding_mode not in ("zeros", "circular"):
        raise UnsupportedThreat(f"{module.padding_mode} padding repeats pixels: use zeros or circular padding")
    if isinstance(module.padding, str):
        raise UnsupportedThreat("padding given by a word is not supported: give the number of pixels")
    circular = module.padding_mode == "circular"
    geometry = Geometry(_pair(module.stride), _pair(module.padding), _pair(module.dilation), module.groups, circular)
    return convolution(module.weight, module.bias, place, geometry)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, place: Place) -> Analysis:
    if module.training or module.running_var is None or module.running_mean is None:
        raise UnsupportedThreat("batch normalisation is certified in eval mode with running statistics only")
    scale = (module.running_var.double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    shift = module.running_mean.double() * scale
    bias = shift if module.bias is None else shift.abs() + module.bias.detach().double().abs()
    offset = length(bias, math.prod(place.input[1:]))
    found = diagonal(scale * (1 + 2.0**-40), place)
    # It runs as (x - mean) * root * weight + bias or with factors computed before; all of them may underflow.
    variance = module.running_var.double() + module.eps
    if not bool((variance >= TINY).all()):
        raise UnsupportedThreat("batch normalisation by a variance of almost nothing has no rounding bound")
    root, mean, weight, shift_by = (
        1 + (0.0 if t is None else float(t.detach().double().abs().amax()))
        for t in (variance.rsqrt(), module.running_mean, module.weight, module.bias)
    )
    return Analysis(
        found.lipschitz,
        offset,
        up(8 * found.relative + 16 * TINY * root * weight),
        up(16 * place.unit * offset + root * mean * weight * place.lost(16)),
        up(root * weight),
        up(root * weight * mean + shift_by + float(variance.amax())),
    )


def _average(module: nn.AvgPool2d, place: Place) -> Analysis:
    size, stride = _pair(module.kernel_size), _pair(module.stride)
    if module.divisor_override is not None:
        raise UnsupportedThreat("average pooling with its own divisor is not supported")
    count, norm = math.prod(size), math.sqrt(_overlap(size, stride) / math.prod(size))
    padded = bool(sum(_pair(module.padding))) and not module.count_include_pad
    bound = UpperBound.of(up(norm * (math.sqrt(count) if padded or module.ceil_mode else 1.0)))
    relative = up(place.gamma(count + 1) * bound.value)
    return Analysis(bound, 0.0, relative, place.lost(count, bound.value), float(count))


def _maximum(module: nn.MaxPool2d, place: Place) -> Analysis:
    if module.return_indices:
        raise UnsupportedThreat("max pooling that returns indices is not supported")
    if any(d > 1 and p for d, p in zip(_pair(module.dilation), _pair(module.padding), strict=True)):
        raise UnsupportedThreat("max pooling with dilation and padding may have windows of nothing but padding")
    dilated = tuple((n - 1) * d + 1 for n, d in zip(_pair(module.kernel_size), _pair(module.dilation), strict=True))
    bound = UpperBound.of(up(math.sqrt(_overlap(dilated, _pair(module.stride)))))
    return Analysis(bound, absolute=place.lost(0, bound.value))


def _overlap(size: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Windows that a pixel is in, at most."""
    return math.prod(-(-n // s) for n, s in zip(size, stride, strict=True))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _unchanged(module: nn.Module, place: Place) -> Analysis:
    del module
    return Analysis(absolute=place.lost(0))


def _flatten(module: nn.Flatten, place: Place) -> Analysis:
    if module.start_dim != 1:
        raise UnsupportedThreat("Flatten must keep the batch: use start_dim=1")
    return _unchanged(module, place)


def _leaky(module: nn.LeakyReLU, place: Place) -> Analysis:
    if not math.isfinite(module.negative_slope):
        raise UnsupportedThreat("the slope of LeakyReLU must be finite")
    slope = max(1.0, abs(module.negative_slope))
    return diagonal(torch.tensor([slope], dtype=torch.float64), place)


def _smooth(lipschitz: float, at_zero: float = 0.0) -> Rule:
    """An elementwise function of this constant, computed by a library."""

    def rule(module: nn.Module, place: Place) -> Analysis:
        del module
        offset = up(at_zero * math.sqrt(math.prod(place.input)))
        error = _LIBRARY * place.unit
        bound = UpperBound.of(lipschitz)
        absolute = up(error * offset + place.lost(_LIBRARY))
        return Analysis(bound, offset, up(error * bound.value), absolute, level=1.0)

    return rule


def _residual(module: Residual, place: Place) -> Analysis:
    branch = module.branch if isinstance(module.branch, nn.Sequential) else nn.Sequential(module.branch)
    found = chain(branch, place)
    device = next((t.device for t in _tensors(branch)), None)
    with torch.no_grad():
        after = branch(torch.zeros(1, *place.input, dtype=_kind(place), device=device))
    if tuple(after.shape[1:]) != place.input:  # else one of the two would be repeated
        raise UnsupportedThreat("the branch of a residual block must keep the shape of its input")
    return Analysis().beside(found, place)


RULES: dict[type[nn.Module], Rule] = {
    nn.Sequential: chain,
    Residual: _residual,
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _average,
    nn.MaxPool2d: _maximum,
    nn.Flatten: _flatten,
    nn.Identity: _unchanged,
    nn.Dropout: _unchanged,  # in eval mode, which is checked for the whole network
    nn.ZeroPad2d: _unchanged,
    nn.ZeroPad1d: _unchanged,
    nn.ReLU: _unchanged,
    nn.LeakyReLU: _leaky,
    nn.Tanh: _smooth(1.0),
    nn.Sigmoid: _smooth(0.25, 0.5),
}
