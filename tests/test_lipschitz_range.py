"""Lipschitz certificates where numbers overflow or vanish, and digests of what is no tensor."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.analysis import LARGEST, Analysis, Place
from promptguard.lipschitz.attention import L2Attention
from promptguard.lipschitz.modules import Descent, FourierConv, MaxMin, Residual, Sandwich, SkewTaylor
from promptguard.lipschitz.plain import MaxMinPairs
from promptguard.lipschitz.rules import analyse, chain

UNIT = 2.0**-24


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chained(*weights: float, head: float, lead: float) -> nn.Sequential:
    """Multiplies a number by each weight in turn; the second logit is that times `head`, the first is `lead`."""
    layers = [nn.Linear(1, 1, bias=False) for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    last = nn.Linear(1, 2)
    last.load_state_dict({"weight": torch.tensor([[0.0], [head]]), "bias": torch.tensor([lead, 0.0])})
    return nn.Sequential(*layers, last).eval().requires_grad_(False)


def skew(seed: int = 0) -> torch.Tensor:
    kernel = 0.2 * draw(2, 2, 3, 3, seed=seed)
    return kernel - kernel.transpose(0, 1).flip(-1, -2)


# Overflow


@pytest.mark.parametrize("local", [False, True])
def test_a_radius_ends_before_numbers_overflow(local: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval().requires_grad_(False)
    next(network.parameters()).mul_(20)
    network[2].load_state_dict({"weight": torch.zeros(2, 8), "bias": torch.tensor([0.0, 1e6])})
    certifier = LipschitzCertifier(network, (4,), local=local)
    found = certifier.certify(torch.ones(4))
    assert found.certificate is not None
    assert 1e30 < found.certificate.threat.budget < 1e37
    far = torch.full((4,), found.certificate.threat.budget / 2)
    assert certifier.certify(far).label == found.label == 1
    beyond = torch.full((4,), 3e38)
    assert bool(network(beyond[None]).isnan().all())
    assert certifier.certify(beyond).certificate is None
    assert LipschitzCertifier(network, (4,), 3e36, local=local).certify(torch.ones(4)).certificate is None


def test_numbers_on_the_way_count_even_if_later_layers_shrink_them() -> None:
    x = torch.tensor([1.1])
    assert LipschitzCertifier(chained(3e38, head=1e-38, lead=10.0), (1,)).certify(x).certificate is None
    assert LipschitzCertifier(chained(3e8, head=1e-8, lead=10.0), (1,)).certify(x).certificate is not None


def test_products_with_the_bias_alone_may_overflow() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)).eval().requires_grad_(False)
    network[0].load_state_dict({"weight": torch.zeros(1, 1), "bias": torch.tensor([1e30])})
    network[1].load_state_dict({"weight": torch.tensor([[1e-30], [1e9]]), "bias": torch.zeros(2)})
    assert LipschitzCertifier(network, (1,)).certify(torch.zeros(1)).certificate is None


MODULES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 4), (4,)),
    (nn.Conv2d(2, 3, 3, padding=1), (2, 4, 4)),
    (nn.AvgPool2d(2), (2, 4, 4)),
    (nn.MaxPool2d(2), (2, 4, 4)),
    (nn.BatchNorm2d(2), (2, 4, 4)),
    (nn.LeakyReLU(-3.0), (4,)),
    (nn.Tanh(), (4,)),
    (nn.Sigmoid(), (4,)),
    (nn.ReLU(), (4,)),
    (MaxMin(), (4,)),
    (MaxMinPairs(), (4,)),
    (Residual(nn.Linear(4, 4)), (4,)),
    (Descent(100 * draw(5, 4), draw(5), 1e3 * torch.ones(5)), (4,)),
    (Descent(draw(5, 2, 3, 3), draw(5), torch.ones(5)), (2, 4, 4)),
    (Sandwich(1e3 * draw(5, 4), draw(5), 1e-3 * draw(3, 5, seed=1), torch.full((5,), 1e-3)), (4,)),
    (SkewTaylor(skew(), draw(2), 5), (2, 4, 4)),
    (FourierConv(torch.randn(4, 3, 2, 2, dtype=torch.complex64), draw(2), (4, 4)), (2, 4, 4)),
    (L2Attention(4, 2), (3, 4)),
]


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda value: type(value).__name__)
def test_no_module_overflows_below_its_bound(module: nn.Module, shape: tuple[int, ...]) -> None:
    network = nn.Sequential(copy.deepcopy(module)).eval().requires_grad_(False)
    found = chain(network, Place(shape, (), UNIT))
    assert found.swing >= 1
    assert found.absolute > 0
    largest = (LARGEST - found.level) / found.swing
    assert largest > 1e3
    spikes = torch.eye(math.prod(shape))
    x = torch.cat((spikes, -spikes, torch.full((1, len(spikes)), len(spikes) ** -0.5), draw(8, len(spikes))))
    x = nn.functional.normalize(x, dim=1).reshape(-1, *shape) * largest * (1 - 1e-6)
    assert bool(network(x).isfinite().all())
    assert float(network(x).abs().max()) <= 2 * (found.swing * largest + found.level)


def test_compositions_and_sums_carry_the_largest_number() -> None:
    small, large = Analysis(swing=3.0, level=1.0), Analysis(offset=2.0, absolute=0.5, swing=5.0, level=4.0)
    after = large.then(small)
    assert after.swing == pytest.approx(5)
    assert after.level == pytest.approx(1 + 3 * 2.5)
    both = small.beside(large, Place((4,), (4,), UNIT))
    assert both.swing == pytest.approx(8)
    assert both.level == pytest.approx(5)


# Underflow


def test_what_underflow_loses_is_amplified_by_later_layers() -> None:
    network = chained(1e-25, 1e-20, 1e30, head=1e18, lead=0.5)
    inside, outside = torch.tensor([0.7006486]), torch.tensor([0.70065])
    assert int(network(inside[None]).argmax()) != int(network(outside[None]).argmax())
    assert LipschitzCertifier(network, (1,)).certify(inside).certificate is None


def test_a_layer_with_scaled_units_loses_what_its_own_weights_lose() -> None:
    """The hidden unit is denormal; the factor after it, which scaling would hide, makes that visible."""
    weight, steps = torch.tensor([[1e-25]]), torch.tensor([1e38])
    found = Descent(weight, torch.zeros(1), steps).analysis(Place((1,), (1,), UNIT))
    assert found.absolute > 1e-25 * 1e38 * 2.0**-149
    outer = torch.tensor([[1e30]])
    made = Sandwich(weight, torch.zeros(1), outer, torch.tensor([1e27])).analysis(Place((1,), (1,), UNIT))
    assert made.absolute > 1e30 * 2.0**-149


def test_normalisation_by_nothing_is_refused() -> None:
    norm = nn.BatchNorm1d(1, eps=0.0).eval()
    norm.running_var = torch.tensor([1e-40])
    with pytest.raises(UnsupportedThreat):
        analyse(norm, Place((1,), (1,), UNIT))


# What is refused


def test_windows_of_padding_alone_are_refused() -> None:
    place = Place((1, 1, 1), (1, 1, 1), UNIT)
    pool = nn.MaxPool2d(2, padding=1, dilation=2)
    assert bool(pool(torch.zeros(1, 1, 1, 1)).isinf().all())
    with pytest.raises(UnsupportedThreat):
        analyse(pool, place)
    assert analyse(nn.MaxPool2d(2, padding=(1, 0), dilation=(1, 2)), place).lipschitz.value < math.inf


def test_branches_that_are_repeated_are_refused() -> None:
    """x + branch(x) with one number for four entries: its constant counts twice."""
    for branch in (nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 1))):
        with pytest.raises(UnsupportedThreat):
            analyse(Residual(branch).eval(), Place((4,), (4,), UNIT))


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_slopes_that_are_no_numbers_are_refused(slope: float) -> None:
    with pytest.raises(UnsupportedThreat):
        analyse(nn.LeakyReLU(slope), Place((4,), (4,), UNIT))


# Digests


def digests(modules: list[nn.Module], shape: tuple[int, ...]) -> set[str]:
    """Of networks that differ in these modules, all other tensors the same."""
    found = set()
    for module in modules:
        with torch.no_grad():
            width = nn.Flatten()(module.eval()(torch.zeros(1, *shape))).shape[1]
        head = nn.Linear(width, 2)
        head.load_state_dict({"weight": torch.ones(2, width), "bias": torch.zeros(2)})
        found.add(LipschitzCertifier(nn.Sequential(module, nn.Flatten(), head).eval(), shape).digest)
    return found


def test_digests_tell_constants_apart() -> None:
    one, two = L2Attention(4, 1), L2Attention(4, 2)
    two.load_state_dict(one.state_dict())
    assert len(digests([one, two], (3, 4))) == 2
    assert len(digests([SkewTaylor(skew(), torch.zeros(2), terms) for terms in (2, 12)], (2, 4, 4))) == 2
    pools: list[nn.Module] = [nn.AvgPool2d(2, padding=1, count_include_pad=count) for count in (False, True)]
    assert len(digests(pools, (1, 4, 4))) == 2


def test_modules_say_their_constants() -> None:
    assert "heads=2" in repr(L2Attention(4, 2))
    assert "terms=5" in repr(SkewTaylor(skew(), torch.zeros(2), 5))
    spectrum = torch.zeros(4, 3, 2, 2, dtype=torch.complex64)
    assert "size=(4, 4)" in repr(FourierConv(spectrum, torch.zeros(2), (4, 4)))


def test_digests_cover_buffers_that_are_not_saved() -> None:
    networks = [Shifted(value) for value in (0.0, 1.0)]
    assert len(digests([*networks], (4,))) == 2


class Shifted(nn.Module):
    """x + a number that `state_dict` leaves out."""

    shift: torch.Tensor

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([shift]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift

    def analysis(self, place: Place) -> Analysis:
        return Analysis(offset=4.0, level=4.0).beside(Analysis(), place)
