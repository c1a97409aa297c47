"""Layers to train: free parameters in, weights of a known constant out. `export` turns them into what is certified.

Dense orthogonal weights are torch's own: `torch.nn.utils.parametrizations.orthogonal(linear, orthogonal_map=...)` with
"cayley" or "matrix_exp". The classes that end in `Weight` are parametrisations for
`torch.nn.utils.parametrize.register_parametrization(linear_or_conv, "weight", ...)`. Nothing here is trusted: training
rounds, and constants are recomputed from what was exported.
"""

from __future__ import annotations

import math
from typing import Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from promptguard.lipschitz.modules import (
    Descent,
    FourierConv,
    Sandwich,
    SkewTaylor,
    by_frequency,
    descend,
    exponential,
)

_NORM = 2.0  # of A in a trained exponential: 12 terms then leave out less than 2e-6
_SIZE = (8, 8)  # an image to estimate that norm at; certificates take the real size


@runtime_checkable
class Trainable(Protocol):
    """A layer with parameters that become a module to certify; by its theorem it is 1-Lipschitz while it trains."""

    def export(self) -> nn.Module:
        """The same map with its weights written out."""
        ...


class SpectralWeight(nn.Module):
    """W / ||W||, with the norm of a matrix, or of a kernel on images of `size` (zero padding, stride 1)."""

    def __init__(self, size: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.size = size

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Of the weight's own shape."""
        return weight / largest(weight, self.size)


class AlmostOrthogonalWeight(nn.Module):
    """W diag(sum_j |W'W|_ij)^(-1/2) (Prach and Lampert 2022, AOL); for kernels sums run over places as well."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Of the weight's own shape."""
        if weight.dim() == 2:
            return weight * (weight.T @ weight).abs().sum(1).clamp(min=1e-12).rsqrt()
        first = weight.transpose(0, 1)
        gram = functional.conv2d(first, first, padding=(weight.shape[2] - 1, weight.shape[3] - 1))
        return weight * gram.abs().sum(dim=(1, 2, 3)).clamp(min=1e-12).rsqrt().reshape(1, -1, 1, 1)


class UnitRowsWeight(nn.Module):
    """Rows of norm 1, for a last layer: its logits are 1-Lipschitz each, and cannot grow to please the loss.

    Pairs of such logits differ by up to twice as much; certificates take the distance of their rows.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Of the weight's own shape, (out, in)."""
        return functional.normalize(weight, dim=1)


class PlusIdentityWeight(nn.Module):
    """K + identity: the linear residual block x + conv(x) as one kernel (Hu et al. 2023, LiResNet). Not 1-Lipschitz."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Of shape (channels, channels, k, k), k odd."""
        return weight + nn.init.dirac_(torch.empty_like(weight))


def largest(weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The norm of a matrix, or of a kernel on the torus that holds images of `size`; to train with."""
    if weight.dim() == 2:
        norm: torch.Tensor = torch.linalg.matrix_norm(weight, 2)
        return norm
    grid = (size[0] + weight.shape[2] - 1, size[1] + weight.shape[3] - 1)
    norms: torch.Tensor = torch.linalg.matrix_norm(torch.fft.rfft2(weight, s=grid).permute(2, 3, 0, 1), 2)
    return norms.amax()


class LargestStep(nn.Module):
    """Steps 2 / ||B||^2 (Meunier et al. 2022, CPL), at the size of the image that runs."""

    def __init__(self, size: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.size = size

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Of shape (hidden,)."""
        return (2 / largest(weight, self.size) ** 2).expand(weight.shape[0])


class RowSteps(nn.Module):
    """Steps 2 / T_i, T_i = sum_j |B B'|_ij q_j / q_i with trained q = exp(.) (Araujo et al. 2023, SLL)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.log_q = nn.Parameter(torch.zeros(hidden))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Of shape (hidden,)."""
        q = self.log_q.exp()
        if weight.dim() == 2:
            gram = (weight @ weight.T).abs()
        else:
            pad = (weight.shape[2] - 1, weight.shape[3] - 1)
            gram = functional.conv2d(weight, weight, padding=pad).abs().sum(dim=(2, 3))
        return 2 / ((gram * q).sum(1) / q).clamp(min=1e-12)


class Potential(nn.Module):
    """x - B' diag(steps) relu(B x + b), to train: CPL with `LargestStep`, SLL with `RowSteps`.

    Args:
        shape: of B: (hidden, width), or (hidden, channels, k, k) with odd k.
        steps: from B to steps that make the layer 1-Lipschitz.
        generator: of the initial weights.
    """

    def __init__(self, shape: tuple[int, ...], steps: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:])))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the input's shape."""
        return descend(x, self.weight, self.bias, self.steps(self.weight))

    def export(self) -> Descent:
        """With its steps written out."""
        return Descent(self.weight, self.bias, self.steps(self.weight))


class SandwichLayer(nn.Module):
    """sqrt(2) A' Psi relu(sqrt(2) Psi^-1 B x + b) with AA' + BB' = I by Cayley (Wang and Manchester 2023).

    Args:
        inputs: width of x.
        outputs: width of the result and of the hidden layer.
        generator: of the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        shape = (inputs + outputs, outputs)
        self.free = nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(shape[0]))
        self.log_psi = nn.Parameter(torch.zeros(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two matrices, of shapes (outputs, inputs) and (outputs, outputs)."""
        square, rest = self.free[: self.free.shape[1]], self.free[self.free.shape[1] :]
        skew = square - square.T + rest.T @ rest
        eye = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        first = torch.linalg.solve(eye + skew, eye - skew)  # A'; with B' below its columns are orthonormal
        second = torch.linalg.solve(eye + skew, rest, left=False) * -2
        psi = self.log_psi.exp()
        return math.sqrt(2) * second.T / psi[:, None], math.sqrt(2) * first * psi

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, inputs) to (batch, outputs)."""
        inner, outer = self.matrices()
        return functional.linear(functional.relu(functional.linear(x, inner, self.bias)), outer)

    def export(self) -> Sandwich:
        """With its matrices written out."""
        inner, outer = self.matrices()
        return Sandwich(inner, self.bias, outer, self.log_psi.exp())


class SkewConv(nn.Module):
    """The exponential of a skew convolution, zeros around the image (Singla and Feizi 2021, SOC).

    Args:
        channels: of input and output.
        generator: of the initial weights.
        side: of the kernel, odd.
        terms: of the series.
    """

    def __init__(self, channels: int, generator: torch.Generator, side: int = 3, terms: int = 12) -> None:
        super().__init__()
        free = torch.randn(channels, channels, side, side, generator=generator) / (2 * side * math.sqrt(channels))
        self.free = nn.Parameter(free)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.terms = terms

    def kernel(self) -> torch.Tensor:
        """M - M', exactly skew in floating point too, scaled to a norm for which the series is short."""
        skew = self.free - self.free.transpose(0, 1).flip(-1, -2)
        return skew * (_NORM / largest(skew, _SIZE).clamp(min=_NORM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the input's shape."""
        return exponential(x, self.kernel(), self.terms) + self.bias.reshape(-1, 1, 1)

    def export(self) -> SkewTaylor:
        """With its kernel written out."""
        return SkewTaylor(self.kernel(), self.bias, self.terms)


class CayleyConv(nn.Module):
    """(I - A)(I + A)^-1 for a skew circular convolution A, by frequency (Trockman and Kolter 2021).

    Args:
        channels: of input and output.
        size: height and width of the images.
        generator: of the initial weights.
        side: of the kernel.
    """

    def __init__(self, channels: int, size: tuple[int, int], generator: torch.Generator, side: int = 3) -> None:
        super().__init__()
        free = torch.randn(channels, channels, side, side, generator=generator) / (side * math.sqrt(channels))
        self.free = nn.Parameter(free)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.size = size

    def spectrum(self) -> torch.Tensor:
        """Unitary matrices, of shape (height, width // 2 + 1, channels, channels)."""
        waves = torch.fft.rfft2(self.free, s=self.size).permute(2, 3, 0, 1)
        skew = waves - waves.mH
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        return cast(torch.Tensor, torch.linalg.solve(eye + skew, eye - skew))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the input's shape."""
        return by_frequency(x, self.spectrum()) + self.bias.reshape(-1, 1, 1)

    def export(self) -> FourierConv:
        """With its spectrum written out."""
        return FourierConv(self.spectrum(), self.bias, self.size)
