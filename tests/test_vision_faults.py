"""Faults that were planted by hand and that no other test saw: each test here fails with one of them."""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy.special import ndtr
from torch import nn

from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.analysis import Analysis, Place
from promptguard.lipschitz.attention import L2Attention, attention_constant
from promptguard.lipschitz.bound import UpperBound
from promptguard.lipschitz.local import local_pairs
from promptguard.lipschitz.network import constants
from promptguard.stats import lower_bound, upper_bound
from promptguard.types import Label
from promptguard.vision.noise import GridGaussian, Which
from promptguard.vision.runner_up import ClassPartition
from promptguard.vision.votes import Tally, digest


def tally(*counts: int) -> Tally:
    votes: Which = torch.tensor(counts).numpy()
    return Tally(votes, int(votes.sum()))


# Planted: every bound at alpha, not at its part of alpha.


def test_alpha_is_split_over_the_bounds_of_a_partition() -> None:
    selection, votes = tally(50, 30, 12, 8), tally(800, 120, 50, 30)
    assert ClassPartition.groups(0, selection) == [[1], [2, 3]]
    low, high = ClassPartition().shares(0, selection, votes, 0.03)
    assert low == lower_bound(800, 1000, 1 - 0.01)
    assert high == upper_bound(120, 1000, 1 - 0.01)


# Planted: groups made of the votes that prove.


def test_groups_come_from_the_selection_even_if_the_votes_fit_better() -> None:
    selection, votes = tally(50, 30, 12, 8), tally(500, 100, 200, 200)
    assert len(ClassPartition.groups(0, votes)) == 3
    assert ClassPartition().shares(0, selection, votes, 0.03)[1] == upper_bound(400, 1000, 1 - 0.01)


# Planted: steps of the grid clipped at a few standard deviations on their way to the model.


@pytest.mark.parametrize("limit", [2.0, 3.0])
def test_the_tails_of_noise_on_the_grid_reach_the_model(limit: float) -> None:
    """The model sees as much noise beyond some standard deviations, on either side, as the normal law has."""
    pixels, copies, noise = 64, 4000, GridGaussian(0.25, 255)
    draw = noise.logits(nn.Identity(), torch.zeros(1, pixels))
    seen = draw(torch.zeros(1, dtype=torch.int64).numpy(), copies, torch.Generator().manual_seed(0))
    # Steps beyond the limit, counted from the half before the first of them.
    first = int(limit * 0.25 * 255) + 1
    expected = copies * pixels * float(ndtr(-(first - 0.5) / (0.25 * 255)))
    for side in (seen, -seen):
        found = int((side * 255 > first - 0.5).sum())
        assert abs(found - expected) < 5 * expected**0.5


# Planted: merged classes by the mean of their logits, so that a likeliest class is outvoted by its own group.


@pytest.mark.parametrize(("harmful", "label"), [({1, 2}, Label.HARMFUL), ({0, 3}, Label.SAFE)])
def test_the_group_of_the_likeliest_class_gets_the_vote(harmful: set[int], label: Label) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([3.0, 5.0, -9.0, -9.0]).expand(len(x), -1)

    certifier = GaussianSmoothing(
        Constant().eval(), 0.25, harmful=harmful, sampling=ImageSampling(samples=20), rng=random.Random(0)
    )
    assert certifier.certify(torch.zeros(4)).label is label


# Planted: the rounding of the forward pass taken at the image alone, not at the larger ones on the ball.


def test_rounding_grows_with_the_ball() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)).eval().requires_grad_(False)
    found, x = constants(network, (256,)), torch.zeros(1, 256)
    logits = network(x)[0].double()
    rounding = 2 * math.sqrt(2) * found.whole.relative
    needed = float(LipschitzCertifier(network, (256,)).radii(x).radii[0]) * (float(found.pairs[0, 1]) + rounding)
    assert rounding > 1e-4 * float(found.pairs[0, 1])
    assert 0 < needed <= float((logits[0] - logits[1]).abs()) - 2 * math.sqrt(2) * found.whole.absolute


# Planted: any subclass of Sequential, known by its own account of itself, read as its modules in order.


def test_a_sequence_with_an_account_of_its_own_is_no_sequence() -> None:
    class Speaks(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in self:
                x = module(x)
            return 100 * x

        def analysis(self, place: Place) -> Analysis:
            return Analysis(UpperBound.of(1e6))

    with pytest.raises(UnsupportedThreat, match=r"plain torch\.nn\.Sequential"):
        constants(Speaks(nn.Linear(2, 2)).eval(), (2,))


# Planted: a digest without the shapes of tensors.


def test_digests_tell_shapes_apart() -> None:
    class Holds(nn.Module):
        table: torch.Tensor

        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(6.0).reshape(shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :2] + self.table[0, -1]

    assert digest(Holds(2, 3)) == digest(Holds(2, 3)) != digest(Holds(3, 2))


# Planted: units that are on at the image, but not on the whole ball, merged with the next layer.


def net(first: list[list[float]], bias: list[float], second: list[list[float]]) -> nn.Sequential:
    one, two = nn.Linear(len(first[0]), len(first)), nn.Linear(len(first), len(second), bias=False)
    with torch.no_grad():
        network = nn.Sequential(one, nn.ReLU(), two).double().eval().requires_grad_(False)
        one.weight.copy_(torch.tensor(first, dtype=torch.float64))
        one.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        two.weight.copy_(torch.tensor(second, dtype=torch.float64))
    return network


def test_a_unit_that_may_go_off_on_the_ball_is_not_merged() -> None:
    """relu(x + 10) - relu(x + 1/2) is constant near 0, and has slope 1 below -1/2."""
    network = net([[1.0], [1.0]], [10.0, 0.5], [[1.0, -1.0], [0.0, 0.0]])
    x = torch.zeros(1, dtype=torch.float64)
    assert float(local_pairs(network, x, 0.4, 0)[1]) < 1e-9
    assert float(local_pairs(network, x, 1.0, 0)[1]) >= 1


# Planted: the rounding of merged matrices forgotten.


@pytest.mark.parametrize("turned", [False, True])
def test_merged_matrices_that_cancel_keep_what_rounding_may_have_lost(turned: bool) -> None:
    """(1 + e)^2 - (1 + 2 e) is e^2, which float64 does not see for e = 2^-30."""
    rows = [[1 + 2.0**-30], [1.0]]
    weights = [1 + 2.0**-30, -(1 + 2.0**-29)]
    if turned:
        rows, weights = rows[::-1], weights[::-1]
    network = net(rows, [10.0, 10.0], [weights, [0.0, 0.0]])
    assert float(local_pairs(network, torch.zeros(1, dtype=torch.float64), 1.0, 0)[1]) >= 2.0**-60


# Planted: the constant of attention for two tokens, whatever their number.


@pytest.mark.parametrize("tokens", [2, 5, 40])
def test_the_constant_of_attention_is_that_of_the_number_of_its_tokens(tokens: int) -> None:
    layer = L2Attention(4).eval().requires_grad_(False)
    for part in (layer.query, layer.out):
        part.weight.copy_(torch.eye(4))
    found = layer.analysis(Place((tokens, 4), (tokens, 4), 2.0**-24)).lipschitz.value
    assert found == pytest.approx(attention_constant(tokens), rel=1e-9)
    assert found >= attention_constant(tokens)


# Planted: votes within the guard band forgotten by `predict`, and its test one-sided, at twice the level.


class Signs(nn.Module):
    """Class 0 above a limit; below it the other class, or no sure one."""

    def __init__(self, limit: float, other: float) -> None:
        super().__init__()
        self.limit, self.other = limit, other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = (x.flatten(1)[:, 0] > self.limit).float()
        return torch.stack([above, (1 - above) * self.other], 1)


def predictions(model: nn.Module, alpha: float, samples: int, runs: int) -> list[int | Label | None]:
    certifier = GaussianSmoothing(model.eval(), 1.0, sampling=ImageSampling(alpha=alpha), rng=random.Random(0))
    return [certifier.predict(torch.zeros(1), samples) for _ in range(runs)]


def test_unsure_votes_stand_against_a_predicted_class() -> None:
    assert predictions(Signs(-0.13, 0.0), 0.001, 100, 10) == [None] * 10  # 55 of 100 votes, 45 unsure
    assert predictions(Signs(-3.0, 0.0), 0.001, 100, 10) == [0] * 10


def test_of_two_classes_that_are_as_likely_one_is_named_at_most_alpha_of_the_time() -> None:
    """4 of 5 votes have a one-sided p-value of 0.19 and would be found in 31 % of all runs, either class; 5 in 6 %."""
    found = predictions(Signs(0.0, 1.0), 0.3, 5, 400)
    assert sum(label is not None for label in found) <= 0.15 * 400
