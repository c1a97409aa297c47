"""Certificates of Lipschitz networks: exact radii where they are known, attacks inside balls, traps of others."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.lipschitz.bound import Estimate
from promptguard.lipschitz.conv import Geometry, conv_norm
from promptguard.lipschitz.dense import dense_norm, gram_norm, power_iteration
from promptguard.lipschitz.layers import LargestStep, Potential
from promptguard.lipschitz.local import local_pairs
from promptguard.lipschitz.modules import MaxMin
from promptguard.lipschitz.network import constants
from promptguard.lipschitz.training import Recipe, export, fit
from promptguard.types import Certifier


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


def affine_radius(network: nn.Linear, x: torch.Tensor) -> float:
    """The exact distance to the nearest other class of a linear classifier."""
    weight, logits = network.weight.detach().double(), network(x).detach().double()
    top = int(logits.argmax())
    others = [b for b in range(len(weight)) if b != top]
    return min(float((logits[top] - logits[b]) / (weight[top] - weight[b]).norm()) for b in others)


def relu_net(seed: int, sizes: tuple[int, ...] = (5, 8, 6, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for at, (into, out) in enumerate(pairwise(sizes)):
        weight = draw(out, into, seed=seed + at) / math.sqrt(into)
        layers += [linear(weight, 0.3 * draw(out, seed=seed + 50 + at)), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def attacked(network: nn.Sequential, x: torch.Tensor, label: int, radius: float, steps: int = 20) -> bool:
    """Does projected gradient ascent towards each other class change the label within the closed ball?"""
    for target in [b for b in range(network(x[None]).shape[1]) if b != label]:
        for restart in range(2):
            moved = x + radius * restart * functional.normalize(draw(*x.shape, seed=target).flatten(), dim=0).view_as(x)
            for _ in range(steps):
                point = moved.detach().requires_grad_(True)
                logits = network(point[None])[0]
                (slope,) = torch.autograd.grad(logits[target] - logits[label], point)
                step = moved + 0.5 * radius * slope / slope.norm().clamp(min=1e-12)
                change = (step - x).double()
                change *= min(1.0, radius * (1 - 1e-7) / max(float(change.norm()), 1e-30))
                moved = (x.double() + change).to(x.dtype)
                if (
                    float((moved.double() - x.double()).norm()) <= radius
                    and int(network(moved[None]).argmax()) != label
                ):
                    return True
    return False


# Exact radii


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.integers(2, 10), st.sampled_from([torch.float32, torch.float64]))
def test_linear_classifiers_get_their_exact_radius_less_rounding(seed: int, classes: int, kind: torch.dtype) -> None:
    head = linear(draw(classes, 6, seed=seed), draw(classes, seed=seed + 1)).to(kind)
    x = draw(6, seed=seed + 2).to(kind)
    verdict = LipschitzCertifier(nn.Sequential(head).eval(), (6,)).certify(x)
    true = affine_radius(head, x)
    assert verdict.score <= true
    assert verdict.score >= true * (1 - 1e-5) - (1e-4 if kind is torch.float32 else 1e-12)
    assert verdict.label == int(head(x).argmax())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**20), st.booleans())
def test_no_attack_succeeds_inside_a_certified_ball(seed: int, local: bool) -> None:
    network, x = relu_net(seed), draw(5, seed=seed + 9)
    verdict = LipschitzCertifier(network, (5,), local=local).certify(x)
    if verdict.certificate is not None:
        assert not attacked(network, x, int(verdict.label), verdict.certificate.threat.budget)


def test_the_attack_of_these_tests_finds_what_is_beyond() -> None:
    head = linear(draw(4, 6))
    x = draw(6, seed=1)
    radius, label = affine_radius(head, x), int(head(x).argmax())
    assert attacked(nn.Sequential(head), x, label, radius * 1.001)
    assert not attacked(nn.Sequential(head), x, label, radius * 0.999)


# The certifier


def test_a_certificate_says_what_was_proven() -> None:
    layer = Potential((4, 4), LargestStep(), torch.Generator().manual_seed(0))
    network = export(nn.Sequential(nn.Flatten(), layer, linear(torch.eye(4))))
    certifier: Certifier[torch.Tensor] = LipschitzCertifier(network, (1, 2, 2))
    verdict = certifier.certify(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]))
    found = verdict.certificate
    assert found is not None
    assert (found.label, found.confidence, found.method) == (verdict.label, 1.0, "lipschitz")
    assert (found.threat.kind, found.threat.unit, found.threat.budget) == ("l2", "image", verdict.score)
    assert len(found.filter) == 64
    assert "stays in class" in found.sentence()
    assert any("rounding" in line for line in found.assumes)


def test_asking_for_a_radius() -> None:
    network, x = nn.Sequential(linear(torch.eye(2))).eval(), torch.tensor([2.0, 0.0])
    true = math.sqrt(2)
    held = LipschitzCertifier(network, (2,), 1.4).certify(x)
    assert held.certificate is not None
    assert (held.certificate.threat.budget, held.threshold) == (1.4, 1.4)
    assert LipschitzCertifier(network, (2,), true).certify(x).certificate is None  # on the boundary itself
    assert LipschitzCertifier(network, (2,), 1.5).certify(x).certificate is None
    tie = LipschitzCertifier(network, (2,)).certify(torch.tensor([1.0, 1.0]))
    assert (tie.certificate, tie.score) == (None, 0.0)


def test_batches_and_single_inputs_agree() -> None:
    certifier, batch = LipschitzCertifier(relu_net(3), (5,)), draw(20, 5)
    found = certifier.radii(batch)
    single = [certifier.certify(x) for x in batch]
    assert [v.label for v in single] == found.labels.tolist()
    assert [v.score for v in single] == pytest.approx(found.radii.tolist(), rel=1e-4, abs=1e-5)


def test_wrong_arguments() -> None:
    network = relu_net(0)
    for radius in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidArgument):
            LipschitzCertifier(network, (5,), radius)
    certifier = LipschitzCertifier(network, (5,))
    for x in (torch.zeros(4), torch.zeros(5, dtype=torch.float64), torch.full((5,), math.nan)):
        with pytest.raises(InvalidArgument):
            certifier.certify(x)
    assert certifier.radii(torch.full((1, 5), math.inf)).radii.tolist() == [0.0]
    with pytest.raises(InvalidArgument):
        constants(nn.Sequential(nn.Linear(3, 1)).eval(), (3,))
    for module in (copy.deepcopy(network).half(), nn.Sequential(network[0], copy.deepcopy(network[1:]).double())):
        with pytest.raises(UnsupportedThreat):
            constants(module.eval(), (5,))


def test_digests_name_the_function() -> None:
    network = relu_net(0)
    changed = copy.deepcopy(network)
    next(changed.parameters()).data[0] += 1
    digests = {LipschitzCertifier(n, (5,)).digest for n in (network, changed, copy.deepcopy(network).double())}
    assert len(digests) == 3
    assert LipschitzCertifier(copy.deepcopy(network), (5,)).digest in digests


def test_filters_on_embeddings_go_through_the_same_door() -> None:
    """Moves of three word vectors: each goes through the same map, then their mean is classified."""
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    verdict = LipschitzCertifier(network, (3, 4), unit="embedding").certify(draw(3, 4))
    assert verdict.certificate is not None
    assert "embedding" in verdict.certificate.sentence()
    assert not attacked(network, draw(3, 4), int(verdict.label), verdict.score)


# Local bounds


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.sampled_from([0.01, 0.1, 0.5, 2.0]))
def test_local_constants_hold_on_the_ball(seed: int, radius: float) -> None:
    network, x = relu_net(seed), draw(5, seed=seed)
    exact = copy.deepcopy(network).double()
    bound = local_pairs(network, x, radius, 1)
    points = (
        x.double() + radius * functional.normalize(draw(60, 5, seed=seed).double(), dim=1) * torch.rand(60, 1).double()
    )
    logits = exact(points)
    lead = logits[:, 1:2] - logits
    moved = (lead[:, None] - lead[None]).abs()
    apart = torch.cdist(points, points)[..., None]
    assert bool((moved <= bound * apart * (1 + 1e-7) + 1e-9).all())
    assert bool((bound <= constants(network, (5,)).pairs[1] * (1 + 1e-9)).all()) or radius > 0


def test_local_constants_are_exact_where_no_unit_switches() -> None:
    first, second = draw(6, 4), draw(3, 6, seed=1)
    bias = torch.tensor([50.0, -50, 50, -50, 50, -50])
    network = nn.Sequential(linear(first, bias), nn.ReLU(), linear(second)).eval()
    product = second.double() @ torch.diag((bias > 0).double()) @ first.double()
    expected = (product[0] - product).norm(dim=1)
    assert torch.allclose(local_pairs(network, draw(4), 1.0, 0), expected, rtol=1e-9)
    whole = LipschitzCertifier(network, (4,)).certify(draw(4)).score
    near = LipschitzCertifier(network, (4,), local=True).certify(draw(4)).score
    assert near > 1.1 * whole
    assert LipschitzCertifier(network, (4,), near, local=True).certify(draw(4)).certificate is not None
    for wrong in (
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    ):
        with pytest.raises(UnsupportedThreat):
            LipschitzCertifier(wrong.eval(), (4,), local=True)


@pytest.mark.parametrize(("sign", "radius", "bound"), [(1.0, 0.9, 0.0), (1.0, 1.1, 10.0), (-1.0, 0.9, 10.0)])
def test_a_unit_is_dropped_only_if_it_stays_off_on_the_whole_ball(sign: float, radius: float, bound: float) -> None:
    first = linear(torch.tensor([[1.0]]), torch.tensor([-sign]))
    network = nn.Sequential(first, nn.ReLU(), linear(torch.tensor([[10.0], [0.0]]))).eval()
    found = local_pairs(network, torch.zeros(1), radius, 0)
    assert found.tolist() == pytest.approx([0.0, bound], abs=1e-9)


# Real images


def test_digits_are_certified_and_no_attack_contradicts() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [Potential((64, 64), LargestStep(), generator) for _ in range(2)]
    network = fit(nn.Sequential(*layers, nn.Linear(64, 10)), x[:1400], y[:1400], Recipe(epochs=6), generator)
    found = LipschitzCertifier(network, (64,)).radii(x[1400:])
    right = found.labels == y[1400:]
    assert float((right & (found.radii >= 0.25)).double().mean()) > 0.7
    for at in range(0, 100, 20):
        radius = float(found.radii[at])
        assert not radius or not attacked(network, x[1400 + at], int(found.labels[at]), radius, steps=5)


# Traps: what published code gets wrong


def test_t1_power_iteration_is_below_the_norm_and_gram_iteration_is_not() -> None:
    for seed in range(10):
        weight = draw(64, 64, seed=seed)
        true = float(torch.linalg.matrix_norm(weight.double(), 2))
        for count in (1, 5, 10):
            assert power_iteration(weight, draw(64, seed=99), count).value < true
        found = [gram_norm(weight, count).value for count in (1, 4, 8)]
        assert true <= found[2] <= found[1] <= found[0]
        assert found[2] < 1.01 * true


def test_t1_an_unlucky_start_gives_zero() -> None:
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert power_iteration(weight, torch.ones(2), 100) == Estimate(0.0)
    assert dense_norm(weight).value == pytest.approx(2, rel=1e-9)
    assert dense_norm(weight).value >= 2


def test_t1_one_step_norms_claim_points_that_are_misclassified() -> None:
    """A two-class chain of matrices: the exact radius is known, the claim by power iteration is beyond it."""
    beyond = 0
    for seed in range(20):
        first, second = draw(6, 6, seed=seed), draw(2, 6, seed=seed + 100)
        network = nn.Sequential(linear(first), linear(second)).eval()
        x = draw(6, seed=seed + 200)
        gap = (second[0] - second[1]).double()
        margin = abs(float(gap @ first.double() @ x.double()))
        true = margin / float((gap @ first.double()).norm())
        start = functional.normalize(draw(6, seed=seed + 300), dim=0)
        claimed = margin / (float(gap.norm()) * float((first @ start).norm()))
        beyond += claimed > true
        assert LipschitzCertifier(network, (6,)).certify(x).score <= true
    assert beyond > 5


def test_t1_constants_follow_the_weights_not_a_cache() -> None:
    network = relu_net(0)
    certifier, x = LipschitzCertifier(network, (5,)), draw(5)
    before = certifier.certify(x)
    next(network.parameters()).data.mul_(50)
    assert certifier.certify(x) == before  # it owns its copy
    assert constants(network, (5,)).whole.lipschitz.value > 40 * constants(relu_net(0), (5,)).whole.lipschitz.value


def test_t2_bounds_hold_where_float32_falls_below() -> None:
    fell = 0
    for seed in range(30):
        weight = torch.outer(draw(40, seed=seed), draw(40, seed=seed + 1))
        true = float(torch.linalg.matrix_norm(weight.double(), 2))
        square = weight.T @ weight
        scale = square.norm()
        rough = float(((square / scale) @ (square / scale)).norm().sqrt() * scale) ** 0.5
        fell += rough < true
        assert gram_norm(weight).value >= true
        assert dense_norm(weight).value >= true
    assert fell > 3


def test_t3_zero_padding_can_exceed_the_circular_norm_of_the_same_side() -> None:
    exceeded = 0
    for seed in (1, 70, 154, 200, 331):
        kernel = draw(1, 1, 3, 3, seed=seed)
        columns = torch.eye(25, dtype=torch.float64).reshape(25, 1, 5, 5)
        true = float(torch.linalg.matrix_norm(functional.conv2d(columns, kernel.double(), padding=1).flatten(1), 2))
        exceeded += true > conv_norm(kernel, (5, 5), Geometry(padding=(1, 1), circular=True)).value
        assert true <= conv_norm(kernel, (5, 5), Geometry(padding=(1, 1))).value
    assert exceeded == 4


def test_t3_a_grid_of_the_kernels_size_is_too_small() -> None:
    below = 0
    for seed in range(20):
        kernel = draw(2, 2, 3, 3, seed=seed)
        small = float(torch.linalg.matrix_norm(torch.fft.fft2(kernel.double()).permute(2, 3, 0, 1), 2).amax())
        columns = torch.eye(2 * 64, dtype=torch.float64).reshape(-1, 2, 8, 8)
        true = float(torch.linalg.matrix_norm(functional.conv2d(columns, kernel.double(), padding=1).flatten(1), 2))
        below += small < true
        assert true <= conv_norm(kernel, (8, 8), Geometry(padding=(1, 1))).value
    assert below > 10


def test_t3_a_constant_of_one_image_size_is_not_used_for_another() -> None:
    layer = Potential((8, 1, 3, 3), LargestStep((1, 1)), torch.Generator().manual_seed(0))
    layer.weight.data.copy_(draw(8, 1, 3, 3, seed=5))
    trunk = export(nn.Sequential(layer, nn.Flatten()))
    assert constants(trunk, (1, 8, 8)).whole.lipschitz.value > 1.5  # its steps are those of an image of one pixel
    certifier = LipschitzCertifier(trunk, (1, 8, 8))
    with pytest.raises(InvalidArgument):
        certifier.radii(torch.zeros(1, 1, 4, 16))


def test_t3_reshaped_kernels_and_mirrored_borders_are_not_operators() -> None:
    box = torch.ones(1, 1, 3, 3) / 3
    assert float(torch.linalg.matrix_norm(box.reshape(1, -1), 2)) == pytest.approx(1)
    assert conv_norm(box, (32, 32), Geometry(padding=(1, 1))).value > 2.9
    mirrored = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    with pytest.raises(UnsupportedThreat, match="reflect"):
        constants(nn.Sequential(mirrored, nn.Flatten(), nn.Linear(16, 2)).eval(), (1, 4, 4))


def test_t4_logits_that_are_each_1_lipschitz_do_not_get_sqrt2() -> None:
    """Logits (x1, -x1) at x1 = 1: the margin is 2, the true radius 1, margin / sqrt(2) is 1.41."""
    network = nn.Sequential(linear(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))).eval()
    x = torch.tensor([1.0, 0.0])
    for modules in (network, nn.Sequential(*network, nn.Identity()).eval()):  # with and without a linear last layer
        assert 0.99 < LipschitzCertifier(modules, (2,)).certify(x).score <= 1


def test_t4_pairs_are_exact_where_the_joint_constant_is_not() -> None:
    weight = draw(10, 8)
    head, x = linear(weight), draw(8, seed=4)
    pairwise = LipschitzCertifier(nn.Sequential(head).eval(), (8,)).certify(x).score
    joint = LipschitzCertifier(nn.Sequential(head, nn.Identity()).eval(), (8,)).certify(x).score
    assert affine_radius(head, x) == pytest.approx(pairwise, rel=1e-3)
    assert joint < 0.9 * pairwise


def test_t5_radii_are_rounded_down() -> None:
    network, x = nn.Sequential(linear(torch.tensor([[3.0], [0.0]]))).eval(), torch.tensor([1.0])
    assert LipschitzCertifier(network, (1,)).certify(x).score < 1.0
    above = LipschitzCertifier(copy.deepcopy(network).double(), (1,)).certify(x.double()).score
    assert 1 - 1e-9 < above < 1.0


def test_t6_rounding_of_the_forward_pass_is_taken_off() -> None:
    """Large biases cancel: the running network's margin is rounding error, and nothing may be certified."""
    big = torch.tensor([2.0**24, 0.0])
    network = nn.Sequential(linear(torch.eye(2), big), linear(torch.eye(2), -big)).eval().requires_grad_(False)
    x = torch.tensor([0.9, 0.4])
    exact = copy.deepcopy(network).double()(x.double()[None])[0]
    assert float(network(x[None])[0, 0]) != pytest.approx(float(exact[0]), abs=0.05)
    assert LipschitzCertifier(network, (2,)).certify(x).certificate is None
    assert LipschitzCertifier(copy.deepcopy(network).double(), (2,)).certify(x.double()).score > 0.3


def test_t10_training_mode_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    for wrong in (
        network,
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 2)).eval().train(),
    ):
        with pytest.raises(InvalidArgument, match="eval"):
            constants(wrong, (4,))
    assert constants(network.eval(), (4,)).whole.lipschitz.value > 0


def test_t11_the_slack_covers_what_batches_change() -> None:
    network = nn.Sequential(nn.Linear(200, 100), MaxMin(), nn.Linear(100, 3)).eval()
    whole, x = constants(network, (200,)).whole, draw(64, 200)
    alone = torch.cat([network(one[None]) for one in x])
    moved = (alone - network(x)).double().norm(dim=1)
    assert bool((moved <= 2 * (whole.relative * x.double().norm(dim=1) + whole.absolute)).all())


def test_networks_that_do_more_than_their_modules_are_refused() -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in self:
                x = module(x)
            return 100 * x

    hooked, replaced = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, args, out: 100 * out)
    replaced.forward = lambda x: 100 * x  # type: ignore[method-assign,assignment]
    whole = nn.Sequential(nn.Linear(2, 2)).eval()
    whole.register_forward_pre_hook(lambda module, args: (100 * args[0],))
    for network in (Scaled(nn.Linear(2, 2)), nn.Sequential(hooked), nn.Sequential(replaced), whole):
        with pytest.raises(UnsupportedThreat):
            constants(network.eval(), (2,))


def test_dot_product_attention_is_refused() -> None:
    with pytest.raises(UnsupportedThreat, match="MultiheadAttention"):
        LipschitzCertifier(nn.Sequential(nn.MultiheadAttention(4, 1), nn.Linear(4, 2)).eval(), (3, 4))
