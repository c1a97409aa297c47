"""Constants of layers and networks against exact Jacobians, random pairs, and closed forms; export; losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrize import register_parametrization

from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.lipschitz.analysis import Place
from promptguard.lipschitz.attention import L2Attention, attention_constant
from promptguard.lipschitz.layers import (
    AlmostOrthogonalWeight,
    CayleyConv,
    LargestStep,
    PlusIdentityWeight,
    Potential,
    RowSteps,
    SandwichLayer,
    SkewConv,
    SpectralWeight,
    UnitRowsWeight,
)
from promptguard.lipschitz.modules import Descent, FourierConv, MaxMin, Residual, Sandwich, SkewTaylor
from promptguard.lipschitz.network import constants
from promptguard.lipschitz.plain import plain
from promptguard.lipschitz.rules import chain
from promptguard.lipschitz.training import EmmaLoss, GloRoLoss, MarginLoss, Recipe, export, fit

UNIT = 2.0**-24
IMAGE = (2, 5, 5)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conv(parametrisation: nn.Module) -> nn.Module:
    return register_parametrization(nn.Conv2d(2, 2, 3, padding=1), "weight", parametrisation)


def linear(parametrisation: nn.Module) -> nn.Module:
    return register_parametrization(nn.Linear(6, 5), "weight", parametrisation)


# Layers to train, with the shape of their inputs. All but the last are 1-Lipschitz by their theorems.
LAYERS: dict[str, tuple[Callable[[torch.Generator], nn.Module], tuple[int, ...]]] = {
    "spectral": (lambda g: linear(SpectralWeight()), (6,)),
    "AOL": (lambda g: linear(AlmostOrthogonalWeight()), (6,)),
    "Cayley": (lambda g: orthogonal(nn.Linear(6, 4), orthogonal_map="cayley"), (6,)),
    "exponential": (lambda g: orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp"), (6,)),
    "CPL": (lambda g: Potential((7, 6), LargestStep(), g), (6,)),
    "SLL": (lambda g: Potential((9, 6), RowSteps(9), g), (6,)),
    "Sandwich": (lambda g: SandwichLayer(6, 4, g), (6,)),
    "spectral conv": (lambda g: conv(SpectralWeight(IMAGE[1:])), IMAGE),
    "AOL conv": (lambda g: conv(AlmostOrthogonalWeight()), IMAGE),
    "SOC": (lambda g: SkewConv(2, g), IMAGE),
    "Cayley conv": (lambda g: CayleyConv(2, (5, 5), g), IMAGE),
    "CPL conv": (lambda g: Potential((3, 2, 3, 3), LargestStep(IMAGE[1:]), g), IMAGE),
    "SLL conv": (lambda g: Potential((3, 2, 3, 3), RowSteps(3), g), IMAGE),
    "LiResNet": (lambda g: conv(PlusIdentityWeight()), IMAGE),
}


def trained(name: str, seed: int) -> tuple[nn.Module, nn.Sequential, tuple[int, ...]]:
    """A layer with random parameters, and what it exports."""
    make, shape = LAYERS[name]
    torch.manual_seed(seed)
    layer = make(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for at, parameter in enumerate(layer.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=seed + at))
    return layer, export(nn.Sequential(layer)), shape


derivative: Any = torch.autograd.functional.jacobian


def jacobian(module: nn.Module, x: torch.Tensor) -> float:
    """The exact norm of the derivative at x, in float64 and less what that rounds."""
    exact = copy.deepcopy(module).double()
    made = derivative(lambda v: exact(v[None])[0].flatten(), x.double())
    return float(torch.linalg.matrix_norm(made.reshape(made.shape[0], -1), 2)) * (1 - 1e-13)


@pytest.mark.parametrize("name", LAYERS)
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**20))
def test_constants_of_exported_layers_hold(name: str, seed: int) -> None:
    layer, plain, shape = trained(name, seed)
    bound = chain(plain, Place(shape, (), UNIT)).lipschitz.value
    if name != "LiResNet":
        assert bound <= 1 + 1e-4
    x = 3 * draw(4, *shape, seed=seed)
    assert torch.allclose(layer.eval()(x), plain(x), atol=1e-4)
    assert all(jacobian(plain, one) <= bound for one in x)
    exact = copy.deepcopy(plain).double()
    for scale in (1e-3, 1.0):
        y = x + scale * draw(4, *shape, seed=seed + 1)
        moved = (exact(x.double()) - exact(y.double())).flatten(1).norm(dim=1)
        assert bool((moved <= bound * (x - y).double().flatten(1).norm(dim=1) * (1 + 1e-12)).all())


@pytest.mark.parametrize("name", LAYERS)
def test_rounding_and_offsets_are_bounded(name: str) -> None:
    """What runs in float32 differs from float64 on the same weights by no more than the analysis says."""
    for seed in range(4):
        _, plain, shape = trained(name, seed)
        found = chain(plain, Place(shape, (), UNIT))
        exact = copy.deepcopy(plain).double()
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        assert float(exact(zero).norm()) <= found.offset * (1 + 1e-9)
        for scale in (1e-3, 1.0, 100.0):
            x = scale * draw(16, *shape, seed=seed)
            error = (plain(x).double() - exact(x.double())).flatten(1).norm(dim=1)
            allowed = found.relative * x.double().flatten(1).norm(dim=1) + found.absolute
            assert bool((error <= allowed).all())
            assert float((error / allowed).max()) > 1e-4  # not vacuous


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"LiResNet", "AOL", "AOL conv"}))
def test_constants_are_recomputed_from_the_weights_that_run(name: str) -> None:
    """No layer declares that it is 1-Lipschitz: with other weights the bound follows."""
    _, plain, shape = trained(name, 1)
    for tensor in [*plain.parameters(), *plain.buffers()]:
        tensor.data.mul_(3)
    bound = chain(plain, Place(shape, (), UNIT)).lipschitz.value
    assert bound > 2
    assert all(jacobian(plain, one) <= bound for one in 3 * draw(4, *shape))


# Closed forms


def test_descent_is_exact_when_all_units_are_active() -> None:
    weight = draw(5, 4)
    values = torch.linalg.svdvals(weight.double())
    for step in (0.5, 3.0):
        steps = torch.full((5,), step / float(values[0] ** 2))
        layer = Descent(weight, torch.full((5,), 1e3), steps)
        true = max(1.0, step - 1) if step > 1 else 1.0
        found = layer.analysis(Place((4,), (4,), UNIT)).lipschitz.value
        assert true * (1 - 1e-6) <= found <= true * (1 + 1e-6)  # the step itself was rounded to float32
        slopes = (1 - step * (values / values[0]) ** 2).abs()
        assert jacobian(layer, draw(4)) == pytest.approx(float(slopes.max()), rel=1e-6)


def test_sandwich_bounds_both_matrices_at_once() -> None:
    """The product of the two norms is twice as large."""
    _, plain, shape = trained("Sandwich", 3)
    layer = plain[0]
    assert isinstance(layer, Sandwich)
    found = layer.analysis(Place(shape, (4,), UNIT)).lipschitz.value
    norms = [float(torch.linalg.matrix_norm(m, 2)) for m in (layer.inner, layer.outer)]
    assert found < 1.0001 < 1.2 < math.prod(norms)
    worse = Sandwich(layer.inner, layer.bias, layer.outer, layer.psi * 1.5)
    assert found < worse.analysis(Place(shape, (4,), UNIT)).lipschitz.value


def test_units_of_uneven_size_do_not_blow_up_the_rounding_bound() -> None:
    scale = torch.tensor([1e-3, 1.0, 1e3, 30.0])
    weight, place = draw(4, 4), Place((4,), (4,), UNIT)
    even = Descent(weight, torch.ones(4), torch.ones(4)).analysis(place)
    uneven = Descent(weight * scale[:, None], scale, 1 / scale**2).analysis(place)
    assert uneven.relative == pytest.approx(even.relative, rel=1e-3)
    inner, outer = draw(4, 4, seed=1), draw(4, 4, seed=2)
    even = Sandwich(inner, torch.ones(4), outer, torch.ones(4)).analysis(place)
    uneven = Sandwich(inner / scale[:, None], 1 / scale, outer * scale, scale).analysis(place)
    assert uneven.relative == pytest.approx(even.relative, rel=1e-3)


def test_all_ones_almost_orthogonal() -> None:
    assert float(torch.linalg.matrix_norm(AlmostOrthogonalWeight()(torch.ones(5, 4)), 2)) == pytest.approx(1)
    basis = torch.linalg.qr(draw(5, 3))[0]
    assert torch.allclose(AlmostOrthogonalWeight()(2 * basis), basis, atol=1e-6)


def test_rows_of_norm_1_are_not_a_matrix_of_norm_1() -> None:
    head = register_parametrization(nn.Linear(2, 3), "weight", UnitRowsWeight())
    next(head.parametrizations.parameters()).data.copy_(torch.tensor([[2.0, 0.0], [-3.0, 0.0], [1.0, 1.0]]))  # type: ignore[union-attr]
    plain_head = export(nn.Sequential(head))
    rows = plain_head.state_dict()["0.weight"]
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))
    found = constants(plain_head, (2,))
    assert float(found.pairs[0, 1]) == pytest.approx(2)
    assert found.whole.lipschitz.value > 1.5


def test_cayley_of_a_2x2_skew_matrix() -> None:
    layer = CayleyConv(2, (1, 1), torch.Generator().manual_seed(0), side=1)
    a = 0.7
    layer.free.data.copy_(torch.tensor([[0.0, a], [0.0, 0.0]]).reshape(2, 2, 1, 1))
    expected = torch.tensor([[1 - a * a, -2 * a], [2 * a, 1 - a * a]]) / (1 + a * a)
    assert torch.allclose(layer.spectrum()[0, 0].real, expected, atol=1e-6)


def test_short_exponential_series_are_charged_for_what_they_leave_out() -> None:
    skew = torch.tensor([[0.0, 2.1], [-2.1, 0.0]]).reshape(2, 2, 1, 1)
    for terms, most in ((6, 1.5), (12, 1.0001)):
        layer = SkewTaylor(skew, torch.zeros(2), terms)
        found = layer.analysis(Place((2, 1, 1), (2, 1, 1), UNIT)).lipschitz.value
        assert 1 - 1e-4 <= jacobian(layer, draw(2, 1, 1)) <= found < most
    assert jacobian(SkewTaylor(skew, torch.zeros(2), 6), draw(2, 1, 1)) > 1.03
    with pytest.raises(UnsupportedThreat):
        SkewTaylor(skew.abs(), torch.zeros(2)).analysis(Place((2, 1, 1), (2, 1, 1), UNIT))


def test_a_residual_block_folds_into_one_kernel() -> None:
    block = conv(PlusIdentityWeight())
    next(block.parametrizations.parameters()).data.zero_()  # type: ignore[union-attr]
    plain = export(nn.Sequential(block))
    assert chain(plain, Place(IMAGE, (), UNIT)).lipschitz.value == pytest.approx(1, abs=1e-9)
    branch = Residual(nn.Linear(4, 4, bias=False)).eval()
    whole = chain(nn.Sequential(branch), Place((4,), (4,), UNIT)).lipschitz.value
    assert jacobian(branch, draw(4)) <= whole
    norm = float(torch.linalg.matrix_norm(branch.state_dict()["branch.weight"], 2))
    assert whole == pytest.approx(1 + norm, rel=1e-5)


def test_maxmin_permutes() -> None:
    x = draw(3, 6, 2)
    assert torch.equal(MaxMin()(x).sort(1).values, x.sort(1).values)
    assert torch.equal(MaxMin()(x)[:, :3], torch.maximum(x[:, :3], x[:, 3:]))
    for images in (x, draw(4, 6, 2, 3).to(memory_format=torch.channels_last), draw(3, 12, 2)[:, ::2], draw(0, 6)):
        before = images.clone()
        with torch.inference_mode():
            found = MaxMin()(images)
        assert torch.equal(found, MaxMin()(images))
        assert torch.equal(images, before)
    assert jacobian(MaxMin(), draw(6)) == pytest.approx(1)
    with pytest.raises(UnsupportedThreat):
        MaxMin().analysis(Place((3,), (3,), UNIT))


# Torch's own modules


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**20), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.sampled_from([0, 1]), st.booleans()
)
def test_pooling_and_normalisation(seed: int, kernel: int, stride: int, padding: int, average: bool) -> None:
    padding = min(padding, kernel // 2)
    pool = (nn.AvgPool2d if average else nn.MaxPool2d)(kernel, stride, padding)
    norm = nn.BatchNorm2d(2)
    norm(draw(8, *IMAGE, seed=seed))
    norm.weight.data.copy_(draw(2, seed=seed))
    network = nn.Sequential(norm, nn.Tanh(), pool, nn.LeakyReLU(-1.5), nn.Sigmoid()).eval().requires_grad_(False)
    found = chain(network, Place(IMAGE, (), UNIT))
    exact = copy.deepcopy(network).double()
    assert float(exact(torch.zeros(1, *IMAGE, dtype=torch.float64)).norm()) <= found.offset
    for x in draw(3, *IMAGE, seed=seed):
        assert jacobian(network, x) <= found.lipschitz.value
        assert float((network(x[None]).double() - exact(x[None].double())).norm()) <= (
            found.relative * float(x.norm()) + found.absolute
        )


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 1), (3, 3)])
def test_windows_of_poolings_overlap(kernel: int, stride: int) -> None:
    spike = torch.zeros(1, 7, 7)
    spike[0, 2, 2] = 1  # in as many windows as a pixel can be
    largest, mean = nn.MaxPool2d(kernel, stride), nn.AvgPool2d(kernel, stride)
    place = Place((1, 7, 7), (), UNIT)
    windows = -(-kernel // stride)
    assert chain(nn.Sequential(largest), place).lipschitz.value == pytest.approx(windows)
    assert jacobian(largest, spike + 1e-3 * draw(1, 7, 7)) == pytest.approx(windows)
    assert jacobian(mean, spike) <= chain(nn.Sequential(mean), place).lipschitz.value <= windows / kernel * (1 + 1e-9)


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(4, 1),
        nn.TransformerEncoderLayer(4, 1),
        nn.LayerNorm(4),
        nn.GELU(),
        nn.Softplus(),
        nn.Flatten(0),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.AvgPool2d(2, divisor_override=1),
        nn.BatchNorm2d(1, track_running_stats=False),
        type("Mine", (nn.Linear,), {})(4, 4),
    ],
    ids=lambda module: type(module).__name__ + str(getattr(module, "padding_mode", "")),
)
def test_what_has_no_proof_is_refused(module: nn.Module) -> None:
    from promptguard.lipschitz.rules import analyse

    with pytest.raises(UnsupportedThreat):
        analyse(module.eval(), Place((1, 4, 4), (1, 4, 4), UNIT))


def test_frequencies_belong_to_one_size() -> None:
    layer = CayleyConv(2, (5, 5), torch.Generator().manual_seed(0)).export()
    assert isinstance(layer, FourierConv)
    with pytest.raises(UnsupportedThreat):
        layer.analysis(Place((2, 6, 6), (2, 6, 6), UNIT))


# Attention by distance


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**20), st.integers(1, 6), st.sampled_from([1, 2]), st.sampled_from([0.1, 1.0, 5.0]))
def test_attention_by_distance_has_its_constant(seed: int, tokens: int, heads: int, scale: float) -> None:
    torch.manual_seed(seed)
    layer = L2Attention(4, heads).eval().requires_grad_(False)
    found = layer.analysis(Place((tokens, 4), (tokens, 4), UNIT))
    exact = copy.deepcopy(layer).double()
    for x in scale * draw(3, tokens, 4, seed=seed):
        assert jacobian(layer, x) <= found.lipschitz.value
        error = float((layer(x[None]).double() - exact(x[None].double())).norm())
        assert error <= found.relative * float(x.norm()) + found.absolute


def test_constants_of_attention_by_hand() -> None:
    assert attention_constant(1) == pytest.approx(1)
    two = 0.2784645427610738  # c e^(c + 1) = 1
    assert attention_constant(2) == pytest.approx(math.sqrt(2) * (1 + 2 * two) + 2 * two)
    assert attention_constant(64) < math.sqrt(64) * (4 * 2.63 + 1)  # Kim et al.


def test_dot_product_attention_has_none() -> None:
    """For tokens (0, s, -s) in one dimension the derivative grows as s squared."""

    def attend(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.T, -1) @ x

    for s in (1.0, 10.0, 100.0):
        x = torch.tensor([[0.0], [s], [-s]], dtype=torch.float64)
        made = derivative(attend, x)[0, 0, 0, 0]
        assert float(made) == pytest.approx(1 / 3 + 2 * s * s / 3)
    with pytest.raises(InvalidArgument):
        L2Attention(4, 3)


# Networks of other libraries


class Declared(nn.Linear):
    """A layer of a library: its own class, its own way to make weights, a constant that it does not keep."""

    lipschitz = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight * 2, self.bias)


class Halved(nn.Sequential):
    """More than its modules in order: a coefficient for the whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return 0.5 * x


class Sorts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), -1, 2).sort(2).values.flatten(1)


def test_networks_of_other_libraries_are_read_and_compared() -> None:
    g = torch.Generator().manual_seed(0)
    spectral = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 2, 3, padding=1))
    network = nn.Sequential(
        nn.Sequential(spectral, nn.ReLU()), nn.Flatten(), nn.Linear(18, 6), Sorts(), nn.Linear(6, 3)
    )
    read = plain(network.eval(), (1, 3, 3), g)
    found = constants(read, (1, 3, 3)).whole.lipschitz.value
    assert all(jacobian(read, x) <= found for x in draw(3, 1, 3, 3))
    assert not torch.nn.utils.parametrize.is_parametrized(read[0])
    for wrong in (Declared(4, 4), nn.Sequential(nn.LayerNorm(4)), nn.Softmax(1)):
        with pytest.raises(UnsupportedThreat):
            plain(nn.Sequential(wrong), (4,), g)

    with pytest.raises(UnsupportedThreat, match="more than its modules"):
        plain(Halved(nn.Linear(4, 2)), (4,), g)
    with pytest.raises(UnsupportedThreat):
        plain(nn.Sequential(Halved(nn.Linear(4, 2))), (4,), g)


def test_torchlip_constants_are_recomputed() -> None:
    torchlip = pytest.importorskip("deel.torchlip")
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    network = torchlip.Sequential(torchlip.SpectralLinear(6, 6), torchlip.SpectralLinear(6, 6), k_coef_lip=0.5)
    found = constants(plain(network.eval(), (6,), g), (6,)).whole.lipschitz.value
    assert found == pytest.approx(1, abs=1e-2)  # the coefficient of the whole is stored and not applied
    mirrored = torchlip.SpectralConv2d(1, 1, 3, padding=1, padding_mode="reflect")
    with pytest.raises(UnsupportedThreat, match="reflect"):
        constants(plain(nn.Sequential(mirrored, nn.Flatten()).eval(), (1, 4, 4), g), (1, 4, 4))


# Training


def blobs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(192) % 3
    return torch.eye(4)[y] * 2 + 0.3 * draw(192, 4, seed=seed), y


@pytest.mark.parametrize("loss", [MarginLoss(), GloRoLoss(), EmmaLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kind", ["plain", "CPL"])
def test_recipes_train_certified_networks(loss: MarginLoss, kind: str) -> None:
    x, y = blobs()
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    body = (
        [nn.Linear(4, 8), nn.ReLU()] if kind == "plain" else [nn.ZeroPad1d((0, 4)), Potential((8, 8), LargestStep(), g)]
    )
    network = fit(nn.Sequential(*body, nn.Linear(8, 3)), x, y, Recipe(loss, epochs=20, batch=32), g)
    found = constants(network, (4,))
    logits = network(x).double()
    label = logits.argmax(1)
    margins = (logits.gather(1, label[:, None]) - logits) / found.pairs[label].clamp(min=1e-9)
    radius = margins.scatter(1, label[:, None], math.inf).amin(1)
    assert float(((label == y) & (radius > 0.4)).double().mean()) > 0.8
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_losses_by_hand() -> None:
    logits, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    pairs = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    raised = MarginLoss(0.25, 1.0)(logits, labels, pairs)
    assert float(raised) == pytest.approx(math.log(1 + math.exp(-0.5)))
    assert float(MarginLoss(0.0, 1.0)(logits, labels, pairs)) == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert float(EmmaLoss(0.25, 1.0)(logits, labels, pairs)) == pytest.approx(float(raised))
    assert float(EmmaLoss(9.0, 1.0)(logits, labels, pairs)) == pytest.approx(
        math.log(2)
    )  # no further than the boundary
    assert float(EmmaLoss(9.0, 1.0)(-logits, labels, pairs)) == pytest.approx(math.log(1 + math.e))
    expected = math.log(1 + math.exp(-1.0) + math.exp(-0.5))
    assert float(GloRoLoss(0.25, 1.0)(logits, labels, pairs)) == pytest.approx(expected)


def test_training_needs_a_batch_and_a_head() -> None:
    x, y = blobs()
    g = torch.Generator().manual_seed(0)
    for network, n in ((nn.Sequential(nn.Linear(4, 3)), 10), (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), 192)):
        with pytest.raises(InvalidArgument):
            fit(network, x[:n], y[:n], Recipe(), g)
