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
from torch.nn.utils.parametrizations import spectral_norm

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


@pytest.mark.parametrize("image", [torch.float16, torch.bfloat16, torch.complex64])
def test_images_in_types_that_hold_no_even_grid_are_refused(image: torch.dtype) -> None:
    """In float16 a step may be .996 of 1/255: a move of so many steps is shorter than the certificate says."""
    with pytest.raises(InvalidArgument, match="float32"):
        GridGaussian(0.25).logits(Seen(), torch.zeros(1, 2, 2, dtype=image))


@pytest.mark.parametrize("value", [4.0 + 1 / 255, -5.0, 4 * 255 + 1, -(2**40)])
def test_images_far_from_the_grid_are_refused(value: float) -> None:
    """Steps of float32 get shorter the larger a number is, so `shrink` is of a range."""
    with pytest.raises(InvalidArgument):
        GridGaussian(0.25).logits(Seen(), torch.full((1, 2, 2), value))


@pytest.mark.parametrize("levels", [1, 16, 100, 255, 1000, 65535, 65536])
def test_no_step_between_stored_images_is_shorter_than_the_grid_s_by_more_than_shrink(levels: int) -> None:
    steps = np.arange(-4 * levels, 4 * levels + 1)
    stored = [(steps / levels).astype(kind) for kind in (np.float32, np.float64)]
    shortest = min(
        float(((b[1:].astype(np.longdouble) - a[:-1].astype(np.longdouble)) * levels).min())
        for a in stored
        for b in stored
    )
    shrink = GridGaussian(0.25, levels).shrink
    assert shrink < shortest
    assert shrink > 1 - 2.5 * (1 - shortest) - 2**-20
    assert shrink > (0.97 if levels > 1000 else 0.999)


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


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Backwards(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = -self[0](x)
        return found


class Reversed(nn.Flatten):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flip(1)


def hooked(part: int | None, before: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    where = model if part is None else model[part]
    if before:
        where.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    else:
        where.register_forward_hook(lambda module, args, out: -out)
    return model


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].forward = lambda x: x[:, :2]
    return model


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Doubled(4, 2)),
        nn.Sequential(nn.Flatten(), Doubled(4, 2)),
        Backwards(nn.Linear(4, 2)),
        nn.Sequential(Reversed(), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(0), nn.Linear(4, 2)),
        nn.Sequential(spectral_norm(nn.Linear(4, 2))),
        *(hooked(part, before) for part in (None, 0, 1) for before in (False, True)),
        replaced(),
    ],
)
def test_a_first_layer_that_does_something_else_is_refused(model: nn.Module) -> None:
    with pytest.raises(InvalidArgument, match="Sequential"):
        LinearGaussian(0.25).logits(model.eval(), torch.zeros(1, 4))


def test_a_linear_layer_without_flatten_needs_flat_images() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    LinearGaussian(0.25).logits(model, torch.zeros(1, 4))
    with pytest.raises(InvalidArgument, match="flat"):
        LinearGaussian(0.25).logits(model, torch.zeros(1, 1, 4))


def test_a_layer_that_is_used_twice_is_run_twice() -> None:
    halve = nn.AvgPool1d(2)
    model = nn.Sequential(nn.Linear(4, 8), halve, nn.Identity(), halve).eval()
    x = torch.rand(4)
    assert draws(LinearGaussian(1e-6), model, x, 3).shape == model(x[None].expand(3, -1)).shape == (3, 2)


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
