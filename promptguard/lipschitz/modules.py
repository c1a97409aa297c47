"""Modules that run in certified networks, each with a theorem about the weights that it holds.

Trained layers (`promptguard.lipschitz.layers`) become these and plain `Linear` and `Conv2d` on export. Constants are
never declared: `analysis` recomputes them. Throughout, D is a diagonal with entries in [0, 1]: the slopes of ReLU
between two points, so that a difference of outputs is J times the difference of inputs.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.lipschitz.analysis import TINY, Analysis, Place
from promptguard.lipschitz.bound import ONE, ZERO, UpperBound, up
from promptguard.lipschitz.conv import Geometry
from promptguard.lipschitz.dense import dense_norm
from promptguard.lipschitz.linear import convolution, diagonal, length, matrix, unrounded


class MaxMin(nn.Module):
    """(a, b) -> (max(a, b), min(a, b)) on the two halves of the channels (Anil et al. 2019, GroupSort2).

    A permutation of its input, so 1-Lipschitz and without rounding. `torch.sort` gives the same at many times the cost.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, channels, ...), channels even."""
        first, second = x.chunk(2, 1)
        if torch.is_grad_enabled() or x.shape[1] % 2:
            return torch.cat((torch.maximum(first, second), torch.minimum(first, second)), 1)
        found = torch.empty_like(x)  # `cat` would copy both halves; autograd takes no place to write to
        torch.maximum(first, second, out=found[:, : first.shape[1]])
        torch.minimum(first, second, out=found[:, first.shape[1] :])
        return found

    def analysis(self, place: Place) -> Analysis:
        """The numbers of a permutation."""
        if place.input[0] % 2:
            raise UnsupportedThreat("MaxMin needs an even number of channels")
        return Analysis(absolute=place.lost(0))


class Descent(nn.Module):
    """x -> x - B' diag(steps) relu(B x + b), the layer that CPL, SLL and AOL's residual form share.

    Theorem. Let S = diag(steps) >= 0 and rho >= ||S^(1/2) B||^2 / 2. Then it is max(1, 2 rho - 1)-Lipschitz.

    Proof. J = I - B'SD B with S D = S^(1/2) D S^(1/2). Let C = S^(1/2) B, so J = I - C'D C is symmetric, its
    eigenvalues between 1 - ||C||^2 and 1. (Meunier et al. 2022 have steps 2 / ||B||^2; Araujo et al. 2023 steps
    2 / T_i with T_i = sum_j |B B'|_ij q_j / q_i, for which C'C <= 2 I.)

    Args:
        weight: B, of shape (hidden, width), or (hidden, channels, k, k) with odd k for images, zeros around them.
        bias: b, of shape (hidden,).
        steps: of shape (hidden,), not negative.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    steps: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, steps: torch.Tensor) -> None:
        super().__init__()
        if not bool((steps >= 0).all()) or weight.dim() not in (2, 4):
            raise InvalidArgument("Descent needs steps >= 0 and a weight of two or four dimensions")
        for name, value in (("weight", weight), ("bias", bias), ("steps", steps)):
            self.register_buffer(name, value.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, width) or (batch, channels, height, width)."""
        return descend(x, self.weight, self.bias, self.steps)

    def analysis(self, place: Place) -> Analysis:
        """See the theorem."""
        hidden = (len(self.bias), *place.input[1:])
        there, back = Place(place.input, hidden, place.unit), Place(hidden, place.input, place.unit)
        # Rounding errors are relative to each hidden unit, so units may be scaled: S^(1/2) B on both sides, steps of 1.
        roots = self.steps.double().sqrt()
        scaled, bias = self.weight.double() * roots.reshape(-1, *[1] * (self.weight.dim() - 1)), self.bias * roots
        if self.weight.dim() == 2:
            inner, outer = matrix(scaled, bias, there), matrix(scaled.T, None, back)
        else:
            inner = convolution(scaled, bias, there, _same(scaled))
            outer = convolution(scaled.transpose(0, 1).flip(-1, -2), None, back, _same(scaled))
        norm = inner.lipschitz
        turned = self.weight.transpose(0, 1)
        bare = unrounded(self.weight, self.bias, there).then(diagonal(self.steps, Place(hidden, hidden, 0.0)))
        branch = (
            inner.then(diagonal(torch.ones(1), back)).then(outer).unscaled(bare.then(unrounded(turned, None, back)))
        )
        summed = Analysis().beside(branch, place)
        return summed.proven(UpperBound.of(max(1.0, up(up(norm.value**2) - 1))))


def descend(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """What `Descent` computes, for training as well."""
    if weight.dim() == 2:
        return torch.addmm(x, functional.relu(functional.linear(x, weight, bias)) * steps, weight, alpha=-1)
    pad = weight.shape[-1] // 2
    hidden = functional.relu(functional.conv2d(x, weight, bias, padding=pad)) * steps.reshape(-1, 1, 1)
    return x - functional.conv_transpose2d(hidden, weight, padding=pad)


def _same(kernel: torch.Tensor) -> Geometry:
    if kernel.shape[-1] % 2 == 0 or kernel.shape[-2] != kernel.shape[-1]:
        raise InvalidArgument("a kernel must be square with an odd side, so that an image keeps its size")
    return Geometry(padding=(kernel.shape[-1] // 2,) * 2)


class Sandwich(nn.Module):
    """x -> V relu(U x + b), with scales that bound both matrices at once (Wang and Manchester 2023, section 3).

    Theorem. For every vector psi > 0 it is rho-Lipschitz with rho = ||[V' / psi, psi U]||^2 / 2, psi scaling rows.

    Proof. Let p = V'y / psi and q = psi U x for unit vectors y, x. Then y'Jx = p'Dq, at most the sum of the positive
    p_i q_i, which are at most (p_i + q_i)^2 / 4. So y'Jx <= |p + q|^2 / 4 = |[V' / psi, psi U] (y, x)|^2 / 4, and
    |(y, x)|^2 = 2. The layer of the paper, sqrt(2) A' Psi relu(sqrt(2) Psi^-1 B x + b) with AA' + BB' = I, has rho = 1.

    Args:
        inner: U, of shape (hidden, in).
        bias: b, of shape (hidden,).
        outer: V, of shape (out, hidden).
        psi: of shape (hidden,), positive; any other only loosens the bound.
    """

    inner: torch.Tensor
    bias: torch.Tensor
    outer: torch.Tensor
    psi: torch.Tensor

    def __init__(self, inner: torch.Tensor, bias: torch.Tensor, outer: torch.Tensor, psi: torch.Tensor) -> None:
        super().__init__()
        if not bool((psi > 0).all()):
            raise InvalidArgument("psi must be positive")
        for name, value in (("inner", inner), ("bias", bias), ("outer", outer), ("psi", psi)):
            self.register_buffer(name, value.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, in) to (batch, out)."""
        return functional.linear(functional.relu(functional.linear(x, self.inner, self.bias)), self.outer)

    def analysis(self, place: Place) -> Analysis:
        """See the theorem."""
        hidden = (len(self.bias),)
        psi = self.psi.double()
        inner, outer = self.inner.double() * psi[:, None], self.outer.double() / psi
        # Rounding errors are relative to each hidden unit, so they too may be bounded with scaled units.
        there, back = Place(place.input, hidden, place.unit), Place(hidden, place.output, place.unit)
        first = matrix(inner, self.bias * psi, there)
        bare = unrounded(self.inner, self.bias, there).then(unrounded(self.outer, None, back))
        both = first.then(matrix(outer, None, back)).unscaled(bare)
        joint = dense_norm(torch.cat((outer.T, inner), 1))
        return both.proven(joint.then(joint).then(UpperBound.of(0.5)))


class Residual(nn.Module):
    """x -> x + branch(x): (1 + L)-Lipschitz when the branch is L-Lipschitz."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum."""
        return x + cast(torch.Tensor, self.branch(x))


class SkewTaylor(nn.Module):
    """x -> sum of A^j x / j! for j <= terms: the exponential of a skew convolution A (Singla and Feizi 2021, SOC).

    Theorem. A with K[o, i, y, x] = -K[i, o, -y, -x] and zero padding is a skew-symmetric matrix, so exp(A) is
    orthogonal, and the sum is off by at most the rest of the exponential series at ||A||. The rest is part of the
    constant: five terms at norm 2.1 overshoot by 5e-3.

    Args:
        kernel: K, of shape (channels, channels, k, k), k odd.
        bias: of shape (channels,).
        terms: highest power.
    """

    kernel: torch.Tensor
    bias: torch.Tensor

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor, terms: int = 12) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.terms = terms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, channels, height, width)."""
        return exponential(x, self.kernel, self.terms) + self.bias.reshape(-1, 1, 1)

    def analysis(self, place: Place) -> Analysis:
        """See the theorem; a kernel that is not exactly skew is refused."""
        if not torch.equal(self.kernel, -self.kernel.transpose(0, 1).flip(-1, -2)):
            raise UnsupportedThreat("the kernel of this exponential is not skew-symmetric")
        step = convolution(self.kernel, None, place, _same(self.kernel))
        term = total = Analysis()
        for power in range(1, self.terms + 1):
            term = term.then(step).then(diagonal(torch.tensor([1 / power], dtype=torch.float64), place))
            total = total.beside(term, place)
        # The rest of the series is at most |A|^(terms + 1) / (terms + 1)! * exp(|A|).
        tail = term.lipschitz.then(step.lipschitz).then(UpperBound(step.lipschitz.value))
        rest = tail.then(UpperBound.of(up(1 / (self.terms + 1))))
        offset = length(self.bias, math.prod(place.output[-2:]))
        return total.proven(ONE.plus(rest)).beside(Analysis(ZERO, offset, level=offset), place)

    def extra_repr(self) -> str:
        """What is no tensor."""
        return f"terms={self.terms}"


def exponential(x: torch.Tensor, kernel: torch.Tensor, terms: int) -> torch.Tensor:
    """The first terms of exp(A) x, for training as well."""
    term = total = x
    for power in range(1, terms + 1):
        term = functional.conv2d(term, kernel, padding=kernel.shape[-1] // 2) / power
        total = total + term
    return total


class FourierConv(nn.Module):
    """A circular convolution given by one matrix per frequency of a real image of fixed size.

    Theorem. It is max ||W_f||-Lipschitz: the transform is a multiple of an isometry, and taking real parts, which the
    inverse does where a frequency is its own conjugate, shortens.

    Args:
        spectrum: complex, of shape (height, width // 2 + 1, out, in).
        bias: of shape (out,).
        size: height and width of the images.
    """

    spectrum: torch.Tensor
    bias: torch.Tensor

    def __init__(self, spectrum: torch.Tensor, bias: torch.Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("spectrum", torch.view_as_real(spectrum.detach()).clone())
        self.register_buffer("bias", bias.detach().clone())
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, channels, height, width)."""
        return by_frequency(x, torch.view_as_complex(self.spectrum)) + self.bias.reshape(-1, 1, 1)

    def analysis(self, place: Place) -> Analysis:
        """See the theorem. A transform of N points is taken to be off by 32 log2(N) u of its norm (Higham, 24.2)."""
        if place.input[-2:] != self.size:
            raise UnsupportedThreat(f"these frequencies are those of images of {self.size[0]} x {self.size[1]}")
        complex_ = torch.view_as_complex(self.spectrum)
        norm = dense_norm(complex_.to(torch.complex128))
        points = math.prod(self.size)
        transform = 64 * (math.log2(points) + 1) * place.unit
        spread = dense_norm(complex_.abs()).value
        offset = length(self.bias, points)
        relative = transform * norm.value + 4 * place.gamma(2 * complex_.shape[-1]) * spread
        # Sums over all points and channels, there and back; both transforms may add before they divide.
        room = 64 * points**2 * complex_.shape[-1] * complex_.shape[-2] * (1 + spread)
        found = Analysis(norm, 0.0, up(2 * relative + TINY * room), up(TINY * room), up(room))
        return found.beside(Analysis(ZERO, offset, level=offset), place)

    def extra_repr(self) -> str:
        """What is no tensor."""
        return f"size={self.size}"


def by_frequency(x: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    """What `FourierConv` computes, without bias, for training as well."""
    waves = torch.fft.rfft2(x)
    mixed: Any = torch.einsum("hwoi,bihw->bohw", spectrum, waves)
    return cast(torch.Tensor, torch.fft.irfft2(mixed, s=x.shape[-2:]))
