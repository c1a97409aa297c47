"""Recipes: each loss obeys the law that defines it, and each trains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from promptguard.errors import InvalidArgument
from promptguard.registry import lookup
from promptguard.vision.ascent import ascend, evaluating, within
from promptguard.vision.models import Ensemble
from promptguard.vision.training import RECIPES
from promptguard.vision.training.adversarial import AdversarialTraining
from promptguard.vision.training.consistency import Consistency
from promptguard.vision.training.drt import DiversityRegularised, margins
from promptguard.vision.training.gaussian import GaussianAugmentation
from promptguard.vision.training.loop import Schedule, _shifted, train
from promptguard.vision.training.macer import Macer
from promptguard.vision.training.recipe import logits_of, noise_for, smoothed_loss
from promptguard.vision.training.smoothadv import SmoothAdv
from promptguard.vision.training.smoothmix import SmoothMix


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, inputs: int = 6, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, classes))


X, Y = torch.rand(12, 6, generator=generator(1)), torch.arange(12) % 3


def test_without_noise_augmentation_is_cross_entropy() -> None:
    model = network()
    found = GaussianAugmentation(0.0, 3).loss(model, X, Y, generator())
    assert torch.allclose(found, functional.cross_entropy(model(X), Y))
    noise = noise_for(X, 0.5, 2, generator())
    wanted = (functional.cross_entropy(model(X + noise[0]), Y) + functional.cross_entropy(model(X + noise[1]), Y)) / 2
    assert torch.allclose(GaussianAugmentation(0.5, 2).loss(model, X, Y, generator()), wanted)
    assert number(noise_for(torch.zeros(1000, 10), 0.5, 4, generator()).std()) == pytest.approx(0.5, rel=0.02)


def test_the_smoothed_loss_is_minus_log_of_the_mean_softmax() -> None:
    model, noise = network(), noise_for(X, 0.5, 4, generator())
    mean = torch.softmax(logits_of(model, X, noise), -1).mean(0)
    assert torch.allclose(smoothed_loss(model, Y, noise)(X), -mean[torch.arange(12), Y].log(), atol=1e-6)


def test_smoothadv_without_a_radius_is_augmentation_and_with_one_is_harder() -> None:
    model = network()
    plain = GaussianAugmentation(0.25, 4).loss(model, X, Y, generator())
    assert torch.allclose(SmoothAdv(0.25, 0.0, 4).loss(model, X, Y, generator()), plain, atol=1e-6)
    assert bool(SmoothAdv(0.25, 0.5, 4).loss(model, X, Y, generator()) > plain)


def test_copies_that_agree_diverge_by_nothing() -> None:
    logits = torch.randn(5, 3, generator=generator())
    divergence, entropy = Consistency.terms(logits.expand(4, -1, -1))
    assert number(divergence) == pytest.approx(0, abs=1e-6)
    each = torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
    assert number(entropy) == pytest.approx(number(each.mean()), rel=1e-4)
    apart, _ = Consistency.terms(torch.randn(4, 5, 3, generator=generator()))
    assert number(apart) > 0.05


def test_the_divergence_is_from_the_mean_to_each() -> None:
    logits = torch.randn(2, 1, 3, generator=generator())
    p, q = torch.softmax(logits, -1)[:, 0]
    mean = (p + q) / 2
    wanted = ((mean * (mean / p).log()).sum() + (mean * (mean / q).log()).sum()) / 2
    assert number(Consistency.terms(logits)[0]) == pytest.approx(number(wanted), rel=1e-4)


def test_the_soft_radius_is_cohens() -> None:
    shares = torch.special.ndtr(torch.tensor([0.5, -0.5]))
    assert number(Macer.radius(shares[:1], shares[1:], 0.25)) == pytest.approx(0.125, rel=1e-4)
    assert math.isfinite(number(Macer.radius(torch.ones(1), torch.zeros(1), 1.0)))


def test_macer_hinges_only_on_images_that_are_right_and_near() -> None:
    right = nn.Linear(1, 2)
    with torch.no_grad():
        right.weight.copy_(torch.tensor([[-0.1], [0.1]]))
        right.bias.zero_()
    x = torch.ones(4, 1)
    for label, more in ((1, True), (0, False)):
        y = torch.full((4,), label)
        with_hinge, without = (Macer(0.1, weight, copies=4).loss(right, x, y, generator()) for weight in (4.0, 0.0))
        assert (number(with_hinge) > number(without) + 1e-3) == more
    with torch.no_grad():
        right.weight.mul_(1e6)  # shares of exactly 0 and 1
    loss = Macer(0.1, copies=4).loss(right, x, torch.ones(4, dtype=torch.int64), generator())
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(number(loss))
    assert right.weight.grad is not None
    assert bool(torch.isfinite(right.weight.grad).all())


def test_a_mix_with_a_share_of_nothing_is_the_image_and_its_smoothed_label() -> None:
    soft = torch.softmax(torch.randn(12, 3, generator=generator()), -1)
    mixed, label = SmoothMix.mix(X, X + 1, soft, torch.zeros(12))
    assert torch.equal(mixed, X)
    assert torch.equal(label, soft)
    mixed, label = SmoothMix.mix(X, X + 1, soft, torch.full((12,), 0.5))
    assert torch.allclose(mixed, X + 0.5)
    assert torch.allclose(label, soft / 2 + 1 / 6)
    assert torch.allclose(label.sum(1), torch.ones(12))
    model = network()
    plain = GaussianAugmentation(0.25, 2).loss(model, X, Y, generator())
    assert torch.allclose(SmoothMix(0.25, weight=0.0).loss(model, X, Y, generator()), plain, atol=1e-6)


def test_diversity_of_opposed_members_is_nothing_and_of_equal_ones_twice_the_slope() -> None:
    noised = torch.zeros(3, 2, requires_grad=True)
    slope = torch.tensor([3.0, 4.0])
    up, down = noised @ slope + 1, 1 - noised @ slope
    opposed, margin = DiversityRegularised.terms(noised, [up, down])
    assert number(opposed) == pytest.approx(0, abs=1e-5)
    assert number(margin) == pytest.approx(2)
    equal, _ = DiversityRegularised.terms(noised, [up, noised @ slope + 1])
    assert number(equal) == pytest.approx(10)
    wrong, none = DiversityRegularised.terms(noised, [up, down - 2])
    assert (number(wrong), number(none)) == (0, 0)


def test_diversity_is_for_ensembles() -> None:
    with pytest.raises(InvalidArgument, match="Ensemble"):
        DiversityRegularised(0.25).loss(network(), X, Y, generator())
    single = Ensemble([network()])
    plain = GaussianAugmentation(0.25).loss(single, X, Y, generator())
    assert torch.allclose(DiversityRegularised(0.25).loss(single, X, Y, generator()), plain, atol=1e-6)
    assert torch.allclose(margins(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])), torch.tensor([1.0]))


def test_adversarial_training_of_a_linear_model_shifts_the_margin_by_the_radius_times_the_norm() -> None:
    model = nn.Linear(2, 2)
    x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([1])
    gap = model.weight[1] - model.weight[0]
    logits = model(x)[0]
    margin = logits[1] - logits[0] - 0.3 * gap.norm()
    found = AdversarialTraining(0.3, domain=None).loss(model, x, y, generator())
    assert number(found) == pytest.approx(number(functional.softplus(-margin)), rel=1e-4)


def test_attacks_in_training_move_no_batch_statistics() -> None:
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(norm, network()).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        ascend(lambda x: model(x).sum(1), X, radius=1.0, step=0.1, steps=2)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 0


def test_projection() -> None:
    centre = torch.zeros(2, 3)
    moved = within(torch.tensor([[3.0, 4.0, 0.0], [0.1, 0.0, 0.0]]), centre, 1.0)
    assert torch.allclose(moved, torch.tensor([[0.6, 0.8, 0.0], [0.1, 0.0, 0.0]]))
    assert torch.equal(within(centre, centre, 0.0), centre)


def test_shifts_move_whole_images_and_leave_the_rest_empty() -> None:
    image = torch.zeros(200, 1, 5, 5)
    image[:, 0, 2, 2] = 1
    moved = _shifted(image, 1, generator())
    assert torch.equal(moved.flatten(1).sum(1), torch.ones(200))
    assert set(moved.sum(0)[0].nonzero().flatten().tolist()) == {1, 2, 3}
    assert _shifted(image, 0, generator()) is image


# Training


def blobs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 6) * 2
    return centres[labels] + 0.2 * torch.randn(count, 6, generator=generator(2)), labels


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns(name: str) -> None:
    settings: dict[str, Any] = {"radius": 0.2} if name == "adversarial" else {"sigma": 0.3}
    recipe = lookup(RECIPES, "promptguard.vision.training", name, "recipe")(**settings)
    model = Ensemble([network(0), network(1)]) if name == "drt" else network()
    images, labels = blobs(240)
    before = [p.detach().clone() for p in model.parameters()]
    trained = train(model, images, labels, recipe, generator=generator(), schedule=Schedule(epochs=25, batch_size=40))
    assert trained is model
    assert not model.training
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    noised = images + 0.3 * torch.randn(images.shape, generator=generator(3))
    assert number((model(noised).argmax(1) == labels).float().mean()) > 0.8


def test_training_is_a_function_of_its_generator() -> None:
    images, labels = blobs(60)
    found = []
    for seed in (0, 0, 1):
        model = network()
        train(model, images, labels, GaussianAugmentation(0.3), generator=generator(seed), schedule=Schedule(epochs=2))
        found.append(torch.cat([p.flatten() for p in model.parameters()]).detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: GaussianAugmentation(-1.0),
        lambda: GaussianAugmentation(0.1, 0),
        lambda: SmoothAdv(0.1, -1.0),
        lambda: Consistency(0.1, math.nan),
        lambda: Macer(0.1, copies=0),
        lambda: SmoothMix(0.1, step=-1.0),
        lambda: DiversityRegularised(0.1, -1.0),
        lambda: AdversarialTraining(0.1, 0),
        lambda: Schedule(epochs=0),
        lambda: Schedule(rate=0.0),
    ],
)
def test_arguments_that_mean_nothing(call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call()
