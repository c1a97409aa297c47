"""Noise on images: each kind has the law that the theorem needs, or says how far it is from it."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import nn

from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import InvalidArgument
from promptguard.types import Label
from promptguard.vision.noise import Gaussian, GridGaussian, LinearGaussian
from promptguard.vision.votes import Voter


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ONE = np.zeros(1, dtype=np.int64)


def draws(
    noise: Any, model: nn.Module, x: torch.Tensor, count: int, stream: torch.Generator | None = None
) -> torch.Tensor:
    """Logits of noised copies of one image."""
    found: torch.Tensor = noise.logits(model, x.unsqueeze(0))(ONE, count, stream or generator())
    return found.detach()


class Seen(nn.Module):
    """Gives its input back as logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_gaussian_noise_has_the_standard_deviation_that_it_is_given_in_the_units_of_the_image() -> None:
    x = torch.full((1, 4, 4), 0.5)
    drawn = draws(Gaussian(0.25), Seen(), x, 20_000)
    assert drawn.shape == (20_000, 16)
    assert float(drawn.std()) == pytest.approx(0.25, rel=0.01)
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.005)
    covariance = torch.cov((drawn - 0.5).T)
    assert float((covariance - 0.25**2 * torch.eye(16)).abs().max()) < 0.004


# The grid


@pytest.mark.parametrize(("sigma", "levels"), [(0.25, 16), (0.25, 255), (1.0, 255), (0.02, 16)])
def test_the_law_on_the_grid_is_within_the_slack_of_the_ideal_one(sigma: float, levels: int) -> None:
    noise = GridGaussian(sigma, levels)
    thresholds = noise._thresholds.numpy()
    most = noise._most
    assert len(thresholds) == 2 * most
    law = np.diff(np.concatenate([[0], thresholds, [2**53]])) / 2.0**53  # each a difference of whole numbers
    steps = np.arange(-most, most + 1)
    near = np.abs(steps)  # the tail side of each cell, where no digits are lost
    ideal = ndtr((0.5 - near) / (sigma * levels)) - ndtr((-0.5 - near) / (sigma * levels))
    assert law.min() >= 0
    assert abs(law - ideal).sum() / 2 <= noise.slack(1)
    assert noise.slack(784) == pytest.approx(784 * noise.slack(1))
    assert noise.slack(3 * 224 * 224) < 1e-6


def test_draws_on_the_grid_follow_that_law() -> None:
    noise = GridGaussian(0.25, 16)  # 4 steps
    drawn = 16 * draws(noise, Seen(), torch.zeros(4, dtype=torch.int64), 50_000).numpy()
    for step in range(-8, 9):
        ideal = float(ndtr((step + 0.5) / 4) - ndtr((step - 0.5) / 4))
        assert np.mean(drawn == step) == pytest.approx(ideal, abs=5 * math.sqrt(ideal / 200_000))


def test_the_model_sees_whole_numbers_of_steps() -> None:
    x = torch.randint(17, (1, 8, 8), generator=generator())
    for image in (x, x.to(torch.uint8), x / 16):
        drawn = draws(GridGaussian(0.25, 16), Seen(), image, 50)
        assert torch.equal(torch.round(drawn * 16), drawn * 16)
        assert drawn.dtype == torch.float32
        assert torch.equal(drawn, draws(GridGaussian(0.25, 16), Seen(), x, 50))


def test_images_off_the_grid_are_refused() -> None:
    for value in (0.1, 0.5 + 1e-6, math.nan, math.inf):
        with pytest.raises(InvalidArgument):
            GridGaussian(0.25, 16).logits(Seen(), torch.full((1, 2, 2), value))
    levels = torch.arange(256)
    for image in (levels / 255, levels.float() / 255, (levels.double() / 255).float()):
        GridGaussian(0.25).logits(Seen(), image)  # every way to write 8 bits as a fraction


class Fine(nn.Module):
    """Class 1 iff every pixel is a multiple of 2^-24: what rounding x + e leaves visible of x (trap T6)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x.double().flatten(1) * 2**24
        one = (scaled == scaled.round()).all(1).float()
        return torch.stack([1 - one, one], 1)


def test_the_floating_point_attack_works_on_float_noise_and_not_on_the_grid() -> None:
    sampling = ImageSampling(samples=1000)
    white = torch.ones(1, 28, 28)
    near = torch.full_like(white, 1 - 2 / 255)
    distance = float((white - near).norm())
    assert distance == pytest.approx(0.220, abs=1e-3)
    floats = GaussianSmoothing(Fine().eval(), 0.5, sampling=sampling, rng=random.Random(0))
    certified, other = floats.certify(white), floats.certify(near)
    assert certified.certificate is not None
    assert certified.certificate.threat.budget > 1
    assert {certified.label, other.label} == {0, 1}  # a false certificate: the assumption says "as if in real numbers"
    assert "as if" in " ".join(certified.certificate.assumes)
    exact = GaussianSmoothing(Fine().eval(), 0.5, noise=GridGaussian, sampling=sampling, rng=random.Random(0))
    labels = {exact.certify((whole * torch.ones(1, 28, 28)).long()).label for whole in (255, 253, 254, 250)}
    assert len(labels - {Label.ABSTAIN}) == 1


# A linear first layer


def network(inputs: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 5)).eval()


@pytest.mark.parametrize(("inputs", "width"), [(64, 8), (9, 20), (16, 16)])
def test_the_first_layers_response_has_the_law_of_noise_on_the_image(inputs: int, width: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, width)
    model = nn.Sequential(layer, nn.Identity()).eval()
    x = torch.rand(inputs)
    drawn = draws(LinearGaussian(0.5), model, x, 40_000)
    with torch.no_grad():
        assert torch.allclose(drawn.mean(0), layer(x), atol=0.02)
        wanted = 0.25 * layer.weight @ layer.weight.T
    assert float((torch.cov(drawn.T) - wanted).abs().max()) < 0.04 * float(wanted.max())


def test_the_first_layer_is_read_again_when_its_weights_change() -> None:
    model = network(64, 8)
    noise, x = LinearGaussian(0.25), torch.rand(1, 8, 8)
    before = draws(noise, model, x, 20_000).std()
    next(model.parameters()).data.mul_(10)  # a write that no version counter sees
    after = draws(noise, model, x, 20_000).std()
    assert float(after / before) > 2.5


def test_noise_is_fresh_for_every_image_and_certifier() -> None:
    first = network(64, 8)[1:2]
    noise, stream = LinearGaussian(0.25), generator()
    drawn = [draws(noise, first, torch.zeros(64), 4000, stream) for _ in range(2)]
    a, b = ((one - one.mean(0)).flatten() for one in drawn)
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.05
    sampling = ImageSampling(samples=500)
    scores = {
        GaussianSmoothing(network(64, 8), 5.0, sampling=sampling).certify(torch.zeros(1, 8, 8)).score for _ in "ab"
    }
    certifier = GaussianSmoothing(network(64, 8), 5.0, sampling=sampling)
    scores |= {certifier.certify(torch.zeros(1, 8, 8)).score for _ in "abcd"}
    assert len(scores) > 2


@pytest.mark.parametrize("noise", [Gaussian, LinearGaussian, partial(GridGaussian, levels=16)])
def test_all_kinds_agree_on_the_share_of_votes(noise: Any) -> None:
    model = network(64, 8)
    x = torch.randint(17, (1, 8, 8), generator=generator(1)) / 16
    voter = Voter(model, noise(0.5), harmful=None, batch_size=1000, guard_band=1e-4)
    shares = voter.count(voter.of(x[None]), ONE, 40_000, generator())[0] / 40_000
    plain = Voter(model, Gaussian(0.5), harmful=None, batch_size=777, guard_band=1e-4)
    wanted = plain.count(plain.of(x[None]), ONE, 40_000, generator(5))[0] / 40_000
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(shares, wanted, atol=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Gaussian(0.0),
        lambda: Gaussian(math.nan),
        lambda: GridGaussian(0.25, 0),
        lambda: GridGaussian(0.25, True),
        lambda: LinearGaussian(-1.0),
        lambda: LinearGaussian(0.25).logits(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 4)),
        lambda: LinearGaussian(0.25).logits(nn.Linear(4, 2), torch.zeros(1, 4)),
        lambda: Gaussian(0.25).logits(Seen(), torch.zeros(4, dtype=torch.uint8)),
        lambda: Gaussian(0.25).logits(Seen(), torch.full((4,), math.nan)),
        lambda: Gaussian(0.25).logits(Seen(), torch.zeros(0)),
    ],
)
def test_arguments_that_mean_nothing(call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call()
