"""Attacks on trained Lipschitz networks: no success inside certificates, some inside balls that are a little larger."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from promptguard.attack.images import PGD, ImageAttack, falsify_image, fgsm
from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.lipschitz.layers import LargestStep, Potential
from promptguard.lipschitz.modules import MaxMin
from promptguard.lipschitz.training import MarginLoss, Recipe, fit


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Signs:
    """FGSM as an attack in l2: a step along the signs whose length is the radius."""

    model: nn.Module

    def run(self, images: torch.Tensor, labels: torch.Tensor, radius: float, generator: Any) -> torch.Tensor:
        return fgsm(self.model, images, labels, radius / math.sqrt(images[0].numel()), domain=None)


@pytest.fixture(scope="module", params=["Cayley", "CPL"])
def lipschitz(request: Any) -> tuple[nn.Sequential, torch.Tensor]:
    """A trained network, where adversarial images are not far outside the balls, and images it has not seen."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    torch.manual_seed(0)
    layers: list[nn.Module] = [Potential((64, 64), LargestStep(), generator())]
    if request.param == "Cayley":
        layers = [orthogonal(nn.Linear(64, 64), orthogonal_map="cayley"), MaxMin()]
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
    recipe = Recipe(MarginLoss(0.4, 0.2), epochs=8)
    return fit(network, images[:1400], labels[:1400], recipe, generator()), images[1400:1425]


def test_attacks_inside_the_certificates_of_lipschitz_networks_fail(lipschitz: Any) -> None:
    """With a constant that is a fifth too small some succeed: the next test."""
    network, images = lipschitz
    certifier = LipschitzCertifier(network, (1, 8, 8))
    attacks: list[ImageAttack] = [PGD(network), Signs(network)]
    results = [falsify_image(certifier, x, certifier.certify(x), attacks, generator()) for x in images]
    assert sum(found.attempts for found in results) >= 2 * 24
    assert not any(found.counter_examples for found in results)


def test_they_succeed_inside_the_balls_of_a_constant_that_is_a_fifth_too_small(lipschitz: Any) -> None:
    network, images = lipschitz
    certifier, broken = LipschitzCertifier(network, (1, 8, 8)), 0
    for x in images:
        verdict = certifier.certify(x)
        assert verdict.certificate is not None
        threat = replace(verdict.certificate.threat, budget=verdict.certificate.threat.budget / 0.8)
        wrong = replace(verdict, certificate=replace(verdict.certificate, threat=threat))
        broken += len(falsify_image(certifier, x, wrong, [PGD(network)], generator()).counter_examples)
    assert broken >= 3


def test_radii_and_labels_of_a_batch_may_go_into_an_attack(lipschitz: Any) -> None:
    """All images at once, each in the ball that is proven of it."""
    network, images = lipschitz
    found = LipschitzCertifier(network, (1, 8, 8)).radii(images)
    radius = float(found.radii.min())
    moved = PGD(network).run(images, found.labels, radius, generator())
    assert torch.equal(network(moved).argmax(1), found.labels)
