"""Norm bounds against the exact norm of the operator, written out as a matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.lipschitz.bound import ONE, ZERO, Estimate, UpperBound, down, up
from promptguard.lipschitz.conv import Geometry, conv_norm, gram_conv_norm
from promptguard.lipschitz.dense import dense_norm, gram_norm, power_iteration


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(kernel: torch.Tensor, size: tuple[int, int], geometry: Geometry) -> float:
    """The norm of the convolution as a matrix, one column per input pixel."""
    channels = kernel.shape[1] * geometry.groups
    columns = torch.eye(channels * math.prod(size), dtype=torch.float64).reshape(-1, channels, *size)
    padding = geometry.padding
    if geometry.circular:
        columns = functional.pad(columns, (padding[1], padding[1], padding[0], padding[0]), mode="circular")
        padding = (0, 0)
    made = functional.conv2d(
        columns, kernel.double(), None, geometry.stride, padding, geometry.dilation, geometry.groups
    )
    return float(torch.linalg.matrix_norm(made.flatten(1), 2))


# Bounds as numbers


@given(st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=6))
def test_products_and_sums_of_bounds_round_up(values: list[float]) -> None:
    product, total = ONE, ZERO
    for value in values:
        product, total = product.then(UpperBound.of(value)), total.plus(UpperBound.of(value))
    assert UpperBound.of(values[0]).value >= values[0]
    assert total.value >= math.fsum(values)
    assert total.value <= math.fsum(values) * (1 + 1e-9)
    assert product.log >= math.fsum(map(math.log, values)) - 1e-300


def test_a_deep_product_neither_overflows_nor_vanishes() -> None:
    deep = ONE
    for _ in range(5000):
        deep = deep.then(UpperBound.of(235.0))
    assert deep.value == math.inf
    for _ in range(5000):
        deep = deep.then(UpperBound.of(1 / 235))
    assert 1 <= deep.value < 1 + 1e-6


def test_bounds_at_the_edges() -> None:
    assert (ZERO.value, ONE.value) == (0.0, 1.0)
    assert UpperBound.of(0.0) == ZERO
    assert UpperBound.of(math.inf).plus(ONE).value == math.inf
    assert ZERO.then(UpperBound.of(math.inf)) == ZERO
    assert up(1.0) > 1.0 > down(1.0)
    assert (up(math.nan), down(math.nan)) == (math.inf, -math.inf)
    for value in (-1.0, math.nan):
        with pytest.raises(InvalidArgument):
            UpperBound.of(value)
    with pytest.raises(InvalidArgument):
        UpperBound(math.nan)


# Matrices


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    st.booleans(),
)
def test_dense_bounds_are_above_the_norm_and_near_it(m: int, n: int, seed: int, scale: float, low: bool) -> None:
    weight = draw(m, n, seed=seed)
    if low:
        weight = weight[:, :1] @ weight[:1]
    weight = weight * scale
    norm = float(torch.linalg.matrix_norm(weight.double(), 2))
    for bound in (dense_norm(weight), gram_norm(weight)):
        assert norm <= bound.value <= norm * (1 + 1e-7) + 1e-90


def test_dense_bounds_of_known_matrices() -> None:
    assert dense_norm(torch.diag(torch.tensor([3.0, 1.0]))).value == pytest.approx(3, rel=1e-12)
    assert dense_norm(torch.zeros(2, 3)) == ZERO
    assert gram_norm(torch.zeros(2, 3)).value < 1e-90
    orthogonal = torch.linalg.qr(draw(40, 40, seed=1).double())[0]
    assert 1 - 1e-12 < dense_norm(orthogonal).value < 1 + 1e-8
    batch = torch.stack((torch.eye(3), 5 * torch.eye(3)))
    assert dense_norm(batch).value == pytest.approx(5, rel=1e-12)
    assert dense_norm(1j * batch.to(torch.complex128)).value == pytest.approx(5, rel=1e-12)
    for wrong in (torch.full((2, 2), math.nan), torch.zeros(0, 2), torch.zeros(3)):
        with pytest.raises(InvalidArgument):
            dense_norm(wrong)


def test_a_wrong_guess_of_the_svd_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cholesky proves; the guess only says where to begin."""
    weight = draw(6, 6, seed=2)
    true = float(torch.linalg.matrix_norm(weight.double(), 2))
    real = torch.linalg.matrix_norm
    monkeypatch.setattr(torch.linalg, "matrix_norm", lambda *a, **k: real(*a, **k) * 0.5)
    assert dense_norm(weight).value >= true


def test_products_that_round_down_as_far_as_they_may_change_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(300, 4, seed=4)
    true = float(torch.linalg.matrix_norm(weight.double(), 2))
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: real(a, b) * (1 - a.shape[-1] * 2.0**-53))
    for bound in (dense_norm(weight), gram_norm(weight)):
        assert bound.value >= true * (1 - 1e-15)


def test_power_iteration_gives_an_estimate_that_no_bound_takes() -> None:
    found = power_iteration(draw(8, 8, seed=3), torch.ones(8), 100)
    assert isinstance(found, Estimate)
    assert not isinstance(found, UpperBound)
    with pytest.raises(AttributeError):
        ONE.then(found)  # type: ignore[arg-type]


# Convolutions

GEOMETRIES = st.builds(
    Geometry,
    stride=st.sampled_from([(1, 1), (2, 2), (3, 2), (1, 2)]),
    padding=st.sampled_from([(0, 0), (1, 1), (2, 1), (3, 4)]),
    dilation=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    groups=st.sampled_from([1, 2]),
    circular=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(GEOMETRIES, st.tuples(st.integers(1, 7), st.integers(1, 7)), st.sampled_from([(1, 1), (3, 3), (2, 3), (4, 1)]),
       st.sampled_from([(2, 2), (4, 2), (2, 6)]), st.integers(0, 2**31))  # fmt: skip
def test_convolution_bounds_are_above_the_norm(
    geometry: Geometry, size: tuple[int, int], sides: tuple[int, int], channels: tuple[int, int], seed: int
) -> None:
    kernel = draw(channels[1], channels[0] // geometry.groups, *sides, seed=seed)
    spans = [(n - 1) * d + 1 for n, d in zip(sides, geometry.dilation, strict=True)]
    assume(all(n + 2 * p >= k for n, p, k in zip(size, geometry.padding, spans, strict=True)))
    if geometry.circular:
        assume(all(p <= n for n, p in zip(size, geometry.padding, strict=True)))
        if any(2 * p > k - 1 for p, k in zip(geometry.padding, spans, strict=True)):
            with pytest.raises(UnsupportedThreat):
                conv_norm(kernel, size, geometry)
            return
    true = exact(kernel, size, geometry)
    bound = conv_norm(kernel, size, geometry).value
    assert bound >= true
    same = all(2 * p == k - 1 for p, k in zip(geometry.padding, spans, strict=True))
    if geometry.circular and same and geometry.stride == (1, 1):
        assert bound <= true * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(0, 2**31))
def test_gram_bounds_of_convolutions_hold_at_every_size(out: int, into: int, side: int, seed: int) -> None:
    kernel = draw(out, into, side, side, seed=seed)
    bound = gram_conv_norm(kernel).value
    large = conv_norm(kernel, (24, 24), Geometry(padding=(side // 2, side // 2))).value
    for n in (2, 5, 8):
        assert bound >= exact(kernel, (n, n), Geometry(padding=(side // 2, side // 2)))
    assert bound <= 2 * large


def test_bounds_of_known_kernels() -> None:
    kernel = torch.tensor([1.0, 2.0, 1.0]).reshape(1, 1, 1, 3)
    padded, circular = Geometry(padding=(0, 1)), Geometry(padding=(0, 1), circular=True)
    true = 2 + 2 * math.cos(math.pi / 9)
    assert exact(kernel, (1, 8), padded) == pytest.approx(true, rel=1e-12)
    assert true <= conv_norm(kernel, (1, 8), padded).value <= 4 + 1e-9
    assert conv_norm(kernel, (1, 8), circular).value == pytest.approx(4, rel=1e-12)
    assert gram_conv_norm(torch.zeros(1, 1, 3, 3)) == ZERO
    with pytest.raises(InvalidArgument):
        gram_conv_norm(torch.full((1, 1, 3, 3), math.inf))
    with pytest.raises(InvalidArgument):
        conv_norm(torch.zeros(3, 3), (8, 8), padded)


def test_a_stride_as_large_as_the_kernel_is_exact() -> None:
    kernel, geometry = draw(3, 2, 2, 2, seed=5), Geometry(stride=(2, 2))
    bound = conv_norm(kernel, (6, 6), geometry).value
    assert bound == pytest.approx(exact(kernel, (6, 6), geometry), rel=1e-9)
