"""Attacks on images: exact on linear models, and inside certificates without success."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from promptguard.attack.images import PGD, ImageAttack, OnGrid, SmoothedPGD, falsify_image, fgsm
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import InvalidArgument
from promptguard.threat import Threat
from promptguard.types import Certificate, Label, Verdict
from promptguard.vision.noise import GridGaussian
from promptguard.vision.training.gaussian import GaussianAugmentation
from promptguard.vision.training.loop import Schedule, train


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: list[float]) -> nn.Linear:
    """Logits (0, w . x)."""
    layer = nn.Linear(len(weight), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(len(weight)), torch.tensor(weight)]))
    return layer.eval()


WEIGHT = [3.0, -4.0, 0.5]


def test_fgsm_on_a_linear_model_moves_the_margin_by_eps_times_the_l1_norm() -> None:
    model, x = linear(WEIGHT), torch.tensor([[0.5, 0.1, 0.2]])
    moved = fgsm(model, x, torch.tensor([1]), 0.01, domain=None)
    change = (model(x) - model(moved))[0, 1].detach()
    assert number(change) == pytest.approx(0.01 * sum(map(abs, WEIGHT)), rel=1e-4)
    assert torch.equal(x, torch.tensor([[0.5, 0.1, 0.2]]))
    assert number((moved - x).abs().max()) <= 0.01 + 1e-7


def test_fgsm_stays_in_the_domain_and_leaves_the_mode_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), linear(WEIGHT)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = fgsm(model, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0]), 0.5)
    assert 0 <= number(moved.min()) <= number(moved.max()) <= 1
    assert all(module.training for module in (model, model[0]))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("attack", [PGD, partial(SmoothedPGD, sigma=0.1)])
def test_pgd_finds_the_exact_radius_of_a_linear_model(attack: Any) -> None:
    """The true radius is |margin| / |w|_2: by bisection, the attack succeeds exactly above it."""
    model, x = linear(WEIGHT), torch.tensor([[0.5, 0.1, 0.2]])
    true = number(model(x)[0, 1]) / sum(w * w for w in WEIGHT) ** 0.5
    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        moved = attack(model, restarts=1).run(x, torch.tensor([1]), middle, generator())
        assert number((moved - x).norm()) <= middle * (1 + 1e-5)
        low, high = (low, middle) if number(model(moved)[0, 1]) < 0 else (middle, high)
    assert low == pytest.approx(true, rel=1e-3)


def test_images_of_a_batch_are_attacked_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x, labels = torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])
    attack = PGD(model, restarts=1)
    together = attack.run(x, labels, 0.3, generator())
    alone = torch.cat([attack.run(x[i : i + 1], labels[i : i + 1], 0.3, generator()) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_restarts_keep_the_best_and_stay_in_ball_and_domain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x, labels = torch.rand(20, 6), torch.randint(3, (20,))
    losses = []
    for restarts in (1, 4):
        moved = PGD(model, steps=10, restarts=restarts, domain=(0.0, 1.0)).run(x, labels, 0.5, generator())
        assert number((moved - x).norm(dim=1).max()) <= 0.5 + 1e-5
        assert 0 <= number(moved.min()) <= number(moved.max()) <= 1
        losses.append(nn.functional.cross_entropy(model(moved), labels, reduction="none"))
    assert bool((losses[1] >= losses[0]).all())
    assert number((losses[0] - nn.functional.cross_entropy(model(x), labels, reduction="none")).min()) >= 0


# Inside certificates


@dataclass
class Claims:
    """A certifier of a linear model with an exact radius, times a factor."""

    model: nn.Linear
    factor: float = 1.0
    confidence: float = 1.0

    def certify(self, x: torch.Tensor) -> Verdict:
        margin = number(self.model(x[None])[0, 1])
        radius = self.factor * abs(margin) / number(self.model.weight[1].norm())
        label, threat = int(margin > 0), Threat("l2", radius, "image")
        proved = Certificate(label, threat, "claims", self.confidence, "digest")
        return Verdict(label, margin, 0.0, 1, 1, threat, proved)


@pytest.mark.parametrize("confidence", [1.0, 0.99])
def test_a_radius_that_is_too_large_is_found_out_and_a_true_one_is_not(confidence: float) -> None:
    model, x = linear(WEIGHT), torch.tensor([0.5, 0.1, 0.2])
    for factor, count in ((1.0, 0), (1.02, 2)):
        certifier = Claims(model, factor, confidence)
        attacks: list[ImageAttack] = [PGD(model), SmoothedPGD(model, 0.05)]
        found = falsify_image(certifier, x, certifier.certify(x), attacks, generator())
        assert len(found.counter_examples) == count
        assert found.attempts == 2
        assert found.to_dict()["counter_examples"] == count
        assert "tensor" not in repr(found)


@pytest.mark.parametrize("radius", [1e-3, 1e-5, 1e-7, 1e-9])
def test_balls_that_float32_hardly_tells_from_their_centre_are_attacked_without_leaving_them(radius: float) -> None:
    model = linear([30.0, -40.0, 5.0])
    x = torch.tensor([4.0, 3.0, 0.0]) + radius * 0.999 * model.weight[1].detach() / model.weight[1].detach().norm()
    threat = Threat("l2", radius, "image")
    verdict = Verdict(1, 0.0, 0.0, 1, 1, threat, Certificate(1, threat, "claims", 1.0, "digest"))
    attacks: list[ImageAttack] = [PGD(model, restarts=3), SmoothedPGD(model, 0.05, restarts=3)]
    assert falsify_image(Claims(model), x, verdict, attacks, generator()).attempts == 2


def test_merged_labels_are_attacked_through_the_class_that_is_named() -> None:
    model, x = linear(WEIGHT), torch.tensor([0.5, 0.1, 0.2])

    class Merged(Claims):
        def certify(self, x: torch.Tensor) -> Verdict:
            found = super().certify(x)
            label = Label.HARMFUL if found.label == 1 else Label.SAFE
            assert found.certificate is not None
            return replace(found, label=label, certificate=replace(found.certificate, label=label))

    for factor, count in ((1.0, 0), (1.02, 1)):
        certifier = Merged(model, factor)
        found = falsify_image(certifier, x, certifier.certify(x), [PGD(model)], generator(), label=1)
        assert len(found.counter_examples) == count


def test_an_abstention_refutes_a_deterministic_certificate_only() -> None:
    model, x = linear(WEIGHT), torch.tensor([0.5, 0.1, 0.2])

    class Shy(Claims):
        def certify(self, x: torch.Tensor) -> Verdict:
            found = super().certify(x)
            return found if found.label == 1 else replace(found, label=Label.ABSTAIN, certificate=None)

    for confidence, count in ((1.0, 1), (0.99, 0)):
        certifier = Shy(model, 1.1, confidence)
        found = falsify_image(certifier, x, certifier.certify(x), [PGD(model)], generator())
        assert (len(found.counter_examples), found.abstained) == (count, 1)


def test_what_cannot_be_attacked_is_refused_or_left() -> None:
    model, x = linear(WEIGHT), torch.tensor([0.5, 0.1, 0.2])
    verdict = Claims(model).certify(x)
    assert verdict.certificate is not None
    assert falsify_image(Claims(model), x, replace(verdict, certificate=None), [PGD(model)], generator()).attempts == 0
    text = replace(verdict, certificate=replace(verdict.certificate, threat=Threat("suffix", 3, "word")))
    merged = replace(verdict, certificate=replace(verdict.certificate, label=Label.HARMFUL))
    for wrong in (text, merged):
        with pytest.raises(InvalidArgument):
            falsify_image(Claims(model), x, wrong, [PGD(model)], generator())

    class Leaves:
        def run(self, images: torch.Tensor, labels: torch.Tensor, radius: float, generator: Any) -> torch.Tensor:
            return images + 10

    with pytest.raises(InvalidArgument, match="left the ball"):
        falsify_image(Claims(model), x, verdict, [Leaves()], generator())


@pytest.mark.parametrize(
    "call", [lambda m: PGD(m, steps=0), lambda m: SmoothedPGD(m, 0.0), lambda m: PGD(m, restarts=0)]
)
def test_arguments_that_mean_nothing(call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call(linear(WEIGHT))
    with pytest.raises(InvalidArgument):
        fgsm(linear(WEIGHT), torch.zeros(1, 3), torch.tensor([0]), -1.0)


# Digits


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    recipe = GaussianAugmentation(0.25)
    train(model, images[:1400], labels[:1400], recipe, generator=generator(), schedule=Schedule(epochs=12))
    return model, images[1400:], labels[1400:]


def test_attacks_inside_the_certificates_of_digits_fail(digits: Any) -> None:
    model, images, _ = digits
    certifier = GaussianSmoothing(model, 0.25, sampling=ImageSampling(samples=2000), rng=random.Random(0))
    attacks: list[ImageAttack] = [PGD(model, steps=8), SmoothedPGD(model, 0.25, steps=8)]
    attacked = 0
    for x in images[:15]:
        found = falsify_image(certifier, x, certifier.certify(x), attacks, generator())
        attacked += found.certificate is not None
        assert not found.counter_examples
    assert attacked > 10


def test_the_same_attacks_succeed_where_the_radius_is_stretched(digits: Any) -> None:
    model, images, _ = digits
    certifier = GaussianSmoothing(model, 0.25, sampling=ImageSampling(samples=2000), rng=random.Random(0))
    broken = 0
    for x in images[:10]:
        verdict = certifier.certify(x)
        if verdict.certificate is not None:
            budget = 2.5 * verdict.certificate.threat.budget
            stretched = replace(verdict.certificate, threat=replace(verdict.certificate.threat, budget=budget))
            attack = SmoothedPGD(model, 0.25, steps=20)
            found = falsify_image(certifier, x, replace(verdict, certificate=stretched), [attack], generator())
            broken += len(found.counter_examples)
    assert broken > 0


def test_attacks_on_the_grid_stay_on_it_and_fail(digits: Any) -> None:
    model, images, _ = digits
    noise = partial(GridGaussian, levels=16)
    certifier = GaussianSmoothing(model, 0.25, noise=noise, sampling=ImageSampling(samples=1000), rng=random.Random(0))
    attack = OnGrid(PGD(model, steps=8), 16)
    moved = attack.run(images[:4], torch.zeros(4, dtype=torch.int64), 1.0, generator())
    assert torch.equal(moved * 16, (moved * 16).round())
    assert 0.1 < number((moved - images[:4]).flatten(1).norm(dim=1).max()) <= 1.0
    for x in images[:5]:
        assert not falsify_image(certifier, x, certifier.certify(x), [attack], generator()).counter_examples
