"""Spectral norms of two-dimensional convolutions at the size of the actual image, from above.

A convolution with stride s is one with stride 1 on the s^2 phases of its input; dilation is a kernel with zeros in it;
groups are blocks of a diagonal. What is left, stride 1, is diagonalised by the Fourier transform:

* zero padding: the output is part of the full convolution of the image with zeros around it, which a torus of side
  n + k - 1 holds without wrapping round. The largest norm over the frequencies of *that* torus is an upper bound,
  whatever the padding. A torus of side n is not (the norm with zero padding can be larger than the circular one), and
  one of side k even less so.
* circular padding on a torus of side n: exact when the output has the size of the input.

The transform is a sum of k^2 terms per entry, computed in float64; its rounding error is bounded entry by entry.
`gram_conv_norm` gives a bound for images of any size. Sources: Sedghi et al. 2019 (circular), Delattre et al. 2024,
*Spectral Norm of Convolutional Layers with Circular and Zero Paddings* (Gram iteration with zero padding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.lipschitz.bound import UpperBound, up
from promptguard.lipschitz.dense import dense_norm

_U = 2.0**-53
_TINY = 1e-200
_ENTRIES = 2**22  # of the symbol, held at once


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel is applied.

    Attributes:
        stride: by axis.
        padding: by axis.
        dilation: by axis.
        groups: of channels.
        circular: padded by wrapping round instead of with zeros.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    circular: bool = False


def conv_norm(kernel: torch.Tensor, size: Sequence[int], geometry: Geometry) -> UpperBound:
    """An upper bound for the operator norm of a convolution on images of `size`.

    Args:
        kernel: of shape (out, in / groups, height, width).
        size: height and width of the input.
        geometry: stride, padding, dilation, groups.

    Raises:
        UnsupportedThreat: circular padding that repeats outputs, so that the torus says nothing.
        InvalidArgument: entries that are not finite, or shapes that do not fit.
    """
    if kernel.dim() != 4 or len(size) != 2 or kernel.shape[0] % geometry.groups:
        raise InvalidArgument("a convolution needs a kernel (out, in, height, width) and an image (height, width)")
    dense = _dilated(kernel.detach().to("cpu", torch.float64), geometry.dilation)
    spans = dense.shape[-2:]
    if geometry.circular:
        if any(2 * pad > span - 1 for pad, span in zip(geometry.padding, spans, strict=True)):
            raise UnsupportedThreat("circular padding beyond the kernel repeats outputs: pad by (kernel - 1) / 2")
        grid = list(size)  # a stride only drops outputs
    else:
        dense = _phases(dense, geometry.stride)
        sides = [-(-n // s) + 1 if s > 1 else n for n, s in zip(size, geometry.stride, strict=True)]
        grid = [n + k - 1 for n, k in zip(sides, dense.shape[-2:], strict=True)]
    blocks = dense.reshape(geometry.groups, -1, *dense.shape[1:])
    largest = UpperBound.of(0.0)
    for block in blocks:
        found = _torus_norm(block, grid)
        largest = found if found.log > largest.log else largest
    return largest


def gram_conv_norm(kernel: torch.Tensor, iterations: int = 3) -> UpperBound:
    """An upper bound for a convolution with stride 1 and zero padding, on images of any size, without frequencies.

    The kernel is convolved with its own adjoint, then with itself; a self-adjoint operator's norm is at most the
    largest absolute sum over the inputs of an output. Rounding is bounded by sums of absolute values.

    Args:
        kernel: of shape (out, in, height, width).
        iterations: squarings; the side of the kernel doubles with each, its cost grows sixteenfold.
    """
    current = kernel.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(current).all()):
        raise InvalidArgument("a norm needs a kernel with finite entries")
    adjoint = current.transpose(0, 1).flip(-1, -2)
    scales, errors = [], []
    for turn in range(iterations + 1):
        scale = _absolute(current) if turn else max(_absolute(current), _absolute(adjoint))
        if scale == 0:
            return UpperBound.of(0.0)
        scales.append(math.floor(math.log2(scale)) + 1)
        current, adjoint = current / 2.0 ** scales[-1], adjoint / 2.0 ** scales[-1]
        errors.append(8 * _U * (current[0].numel() + 2) * up(_absolute(current) * _absolute(adjoint)) + _TINY)
        current = _convolved(adjoint, current)
        adjoint = current
    bound = up(_absolute(current))
    for log, error in zip(reversed(scales), reversed(errors), strict=True):
        bound = up(up(math.sqrt(up(bound + error))) * 2.0**log)
    return UpperBound.of(bound)


def _absolute(kernel: torch.Tensor) -> float:
    """The largest absolute sum of an output over all its inputs, rounded up."""
    return float(kernel.abs().sum(dim=(1, 2, 3)).amax()) * (1 + 2 * _U * (kernel[0].numel() + 2))


def _convolved(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The kernel of applying `right`, then `left`."""
    height, width = left.shape[-2:]
    moved = functional.conv2d(right.transpose(0, 1), left.flip(-1, -2), padding=(height - 1, width - 1))
    return moved.transpose(0, 1)


def _dilated(kernel: torch.Tensor, dilation: tuple[int, int]) -> torch.Tensor:
    spans = [(n - 1) * d + 1 for n, d in zip(kernel.shape[-2:], dilation, strict=True)]
    found = kernel.new_zeros(*kernel.shape[:2], *spans)
    found[..., :: dilation[0], :: dilation[1]] = kernel
    return found


def _phases(kernel: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """The kernel of stride 1 on the phases of the input: (out, in * s * s, height / s, width / s)."""
    down, across = stride
    height, width = (-(-n // s) * s for n, s in zip(kernel.shape[-2:], stride, strict=True))
    padded = functional.pad(kernel, (0, width - kernel.shape[-1], 0, height - kernel.shape[-2]))
    cut = padded.reshape(*kernel.shape[:2], height // down, down, width // across, across)
    return cut.permute(0, 1, 3, 5, 2, 4).reshape(kernel.shape[0], -1, height // down, width // across)


def _torus_norm(kernel: torch.Tensor, grid: Sequence[int]) -> UpperBound:
    """The largest norm over the frequencies of a torus; a real kernel's frequencies come in conjugate pairs."""
    vertical, horizontal = (_waves(n, k) for n, k in zip(grid, kernel.shape[-2:], strict=True))
    horizontal = horizontal[: grid[1] // 2 + 1]
    rows = max(1, _ENTRIES // (kernel.shape[0] * kernel.shape[1] * len(horizontal)))
    partial = torch.einsum("oiyx,vx->oiyv", kernel.to(horizontal.dtype), horizontal)
    largest = UpperBound.of(0.0)
    for start in range(0, grid[0], rows):
        symbol = torch.einsum("oiyv,wy->wvoi", partial, vertical[start : start + rows])
        found = dense_norm(symbol)
        largest = found if found.log > largest.log else largest
    # Each entry is off by at most this: two sums of products, with factors that are off by 2^-48 (see `_waves`).
    terms = kernel.shape[-1] + kernel.shape[-2]
    sums = kernel.abs().sum(dim=(2, 3)) * (8 * _U * (terms + 2) + 2.0**-46)
    error = float(torch.linalg.matrix_norm(sums)) * (1 + 1e-9) + _TINY
    return largest.plus(UpperBound.of(error)) if error > _TINY else largest


def _waves(side: int, length: int) -> torch.Tensor:
    """exp(-2 pi i f t / side) for every frequency f and t < length.

    The angle's fraction is reduced in whole numbers, so it is below 2 pi and each factor is off by less than 2^-48.
    """
    turns = torch.outer(torch.arange(side), torch.arange(length)) % side
    angle = turns.to(torch.float64) * (-2 * math.pi / side)
    return torch.complex(angle.cos(), angle.sin())
