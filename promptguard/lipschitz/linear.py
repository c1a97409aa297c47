"""The numbers of linear maps: matrices, convolutions, diagonals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from promptguard.lipschitz.analysis import TINY, Analysis, Place
from promptguard.lipschitz.bound import UpperBound, up
from promptguard.lipschitz.conv import Geometry, conv_norm
from promptguard.lipschitz.dense import dense_norm


def length(vector: torch.Tensor | None, copies: int = 1) -> float:
    """The Euclidean norm of a vector that is repeated, rounded up; 0 for none."""
    if vector is None:
        return 0.0
    return up(float(torch.linalg.vector_norm(vector.detach().double())) * math.sqrt(copies) * (1 + 1e-12))


def matrix(weight: torch.Tensor, bias: torch.Tensor | None, place: Place) -> Analysis:
    """The map from x to weight x + bias, on the last axis of the input.

    Args:
        weight: of shape (out, in).
        bias: of shape (out,).
        place: its input may have leading axes, along which the map is repeated.
    """
    gamma = place.gamma(weight.shape[1])
    offset = length(bias, math.prod(place.input[:-1]))
    spread = dense_norm(weight.abs()).value
    return _linear(weight, bias, place, Analysis(dense_norm(weight), offset, gamma * spread, gamma * offset), spread)


def convolution(kernel: torch.Tensor, bias: torch.Tensor | None, place: Place, geometry: Geometry) -> Analysis:
    """A convolution on (channels, height, width).

    Args:
        kernel: of shape (out, in / groups, height, width).
        bias: of shape (out,).
        place: where it stands.
        geometry: how the kernel is applied.
    """
    size: Sequence[int] = place.input[-2:]
    gamma = place.gamma(kernel[0].numel())
    offset = length(bias, math.prod(place.output[-2:]))
    spread = conv_norm(kernel.abs(), size, geometry).value
    found = Analysis(conv_norm(kernel, size, geometry), offset, gamma * spread, gamma * offset)
    return _linear(kernel, bias, place, found, spread)


def unrounded(weight: torch.Tensor, bias: torch.Tensor | None, place: Place) -> Analysis:
    """A matrix, or a convolution of stride 1 that keeps the size, where nothing rounds but numbers may underflow.

    For maps whose rounding is bounded after scaling hidden units, which changes neither underflow nor overflow. The
    norm is that of Schur's test: the root of the largest absolute sums over a row and over a column.
    """
    spread = up(math.sqrt(_sums(weight)) * math.sqrt(_sums(weight.transpose(0, 1))))
    offset = length(bias, math.prod(place.output[1:]))
    return _linear(weight, bias, place, Analysis(UpperBound.of(spread), offset), spread)


def _linear(
    weight: torch.Tensor, bias: torch.Tensor | None, place: Place, rounded: Analysis, spread: float
) -> Analysis:
    """With underflow, also of the weights, and with the largest numbers on the way."""
    entries = math.sqrt(math.prod(place.input)) * math.sqrt(math.prod(place.output))
    return Analysis(
        rounded.lipschitz,
        rounded.offset,
        up(rounded.relative + 4 * TINY * entries),
        up(rounded.absolute + place.lost(weight[0].numel(), spread)),
        max(1.0, _sums(weight)),
        0.0 if bias is None else up(float(bias.detach().double().abs().amax())),
    )


def _sums(weight: torch.Tensor) -> float:
    """The largest absolute sum over the inputs of an output, rounded up."""
    return up(float(weight.detach().double().abs().flatten(1).sum(1).amax()) * (1 + 1e-9))


def diagonal(scale: torch.Tensor, place: Place) -> Analysis:
    """The map from x to scale * x."""
    largest = float(scale.detach().double().abs().amax())
    relative = up(2 * place.unit * largest + TINY)
    return Analysis(UpperBound.of(largest), 0.0, relative, place.lost(0, largest), max(1.0, largest))
