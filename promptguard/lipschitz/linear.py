"""The four numbers of linear maps: matrices, convolutions, diagonals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from promptguard.lipschitz.analysis import Analysis, Place
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
    return Analysis(dense_norm(weight), offset, up(gamma * spread), up(gamma * offset))


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
    return Analysis(conv_norm(kernel, size, geometry), offset, up(gamma * spread), up(gamma * offset))


def diagonal(scale: torch.Tensor, place: Place) -> Analysis:
    """The map from x to scale * x."""
    largest = float(scale.detach().double().abs().amax())
    return Analysis(UpperBound.of(largest), 0.0, up(2 * place.unit * largest), 0.0)
