"""Base classifiers: normalisation, pretrained ones, ensembles, denoisers, and the selection between certifiers."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.types import Certificate, Label, Verdict
from promptguard.vision.denoise import Denoised, DiffusionDenoiser, timestep
from promptguard.vision.models import Consensus, Ensemble, Normalised, PretrainedClassifier
from promptguard.vision.selection import CertifiedSelection
from promptguard.vision.training.gaussian import GaussianAugmentation
from promptguard.vision.training.loop import Schedule, train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalisation_is_by_channel() -> None:
    model = Normalised(nn.Flatten(), [0.5, 0.25], [0.5, 2.0])
    x = torch.rand(3, 2, 4, 4)
    wanted = torch.stack([(x[:, 0] - 0.5) / 0.5, (x[:, 1] - 0.25) / 2], 1).flatten(1)
    assert torch.allclose(model(x), wanted)
    for mean, std in (([0.5], [0.0]), ([], []), ([0.5], [1.0, 1.0])):
        with pytest.raises(InvalidArgument):
            Normalised(nn.Flatten(), mean, std)


def vit(size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"image_size": size, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **settings)
    model: nn.Module = ViTForImageClassification(config)
    return model.eval()


PROCESSOR = SimpleNamespace(image_mean=[0.5], image_std=[0.5])


def test_a_pretrained_classifier_resizes_and_normalises_inside() -> None:
    model = vit(16)
    whole = PretrainedClassifier(model, PROCESSOR, (16, 16)).eval()
    x = torch.rand(3, 1, 8, 8)
    resized = nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    assert torch.allclose(whole(x), model(pixel_values=(resized - 0.5) / 0.5).logits, atol=1e-5)
    same = torch.rand(3, 1, 16, 16)
    assert torch.allclose(whole(same), PretrainedClassifier(model, PROCESSOR)(same))


def test_a_vision_transformer_behind_a_denoiser_is_certified() -> None:
    whole = PretrainedClassifier(vit(), PROCESSOR).eval()
    sampling = ImageSampling(samples=300)
    x = torch.rand(1, 8, 8)
    found = []
    for model in (whole, Denoised(nn.Identity(), whole).eval()):
        found.append(GaussianSmoothing(model, 0.05, sampling=sampling, rng=random.Random(0)).certify(x))
    assert found[0].score == found[1].score  # a denoiser that does nothing: Cohen et al.
    assert (found[0].label, found[0].threat) == (found[1].label, found[1].threat)


# Ensembles


def members(count: int) -> list[nn.Module]:
    torch.manual_seed(1)
    return [nn.Sequential(nn.Linear(6, 4)).eval() for _ in range(count)]


def test_an_ensemble_of_one_is_its_member_and_of_more_the_mean() -> None:
    some, x = members(3), torch.rand(9, 6)
    assert torch.equal(Ensemble(some[:1])(x), some[0](x))
    assert torch.allclose(Ensemble(some)(x), (some[0](x) + some[1](x) + some[2](x)) / 3)
    with pytest.raises(InvalidArgument):
        Ensemble([])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_members_that_agree_decide_and_else_all_do(k: int) -> None:
    some, x = members(5), torch.randn(200, 6)
    found = Consensus(some, k)(x)
    each = torch.stack([member(x) for member in some])
    votes = each.argmax(2)
    agree = (votes[:k] == votes[0]).all(0)
    assert torch.equal(found.argmax(1)[agree], votes[0][agree])
    assert torch.allclose(found[~agree], each.mean(0)[~agree], atol=1e-6)
    assert torch.allclose(found, torch.cat([Consensus(some, k)(one[None]) for one in x]), atol=1e-6)
    assert k == 1 or bool((~agree).any())
    for wrong in (0, 6):
        with pytest.raises(InvalidArgument):
            Consensus(some, wrong)


# Diffusion


def scheduler(kind: str = "epsilon") -> Any:
    """A linear schedule, as diffusers' has it."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    return SimpleNamespace(alphas_cumprod=alphas, config=SimpleNamespace(prediction_type=kind))


@pytest.mark.parametrize("sigma", [0.05, 0.25, 0.5, 1.0])
def test_the_step_is_the_first_with_as_much_noise(sigma: float) -> None:
    alphas = scheduler().alphas_cumprod.double()
    step = timestep(alphas, sigma)
    noise = torch.sqrt((1 - alphas) / alphas)
    assert noise[step] >= 2 * sigma > noise[step - 1]
    with pytest.raises(InvalidArgument):
        timestep(alphas, 1000.0)


class Knows(nn.Module):
    """Answers with what a perfect network would, for a known clean image in [-1, 1]."""

    def __init__(self, clean: torch.Tensor, alpha: float, kind: str, extra: bool) -> None:
        super().__init__()
        self.clean, self.alpha, self.kind, self.extra = clean, alpha, kind, extra
        self.steps: list[int] = []

    def forward(self, noised: torch.Tensor, steps: torch.Tensor) -> Any:
        self.steps += steps.tolist()
        a = self.alpha
        noise = (noised - math.sqrt(a) * self.clean) / math.sqrt(1 - a)
        right = {
            "epsilon": noise,
            "sample": self.clean,
            "v_prediction": math.sqrt(a) * noise - math.sqrt(1 - a) * self.clean,
        }
        out = right[self.kind].expand_as(noised)
        return SimpleNamespace(sample=torch.cat([out, out + 7], 1)) if self.extra else out


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("extra", [False, True])
def test_a_network_that_knows_gives_the_clean_image_in_one_shot(kind: str, extra: bool) -> None:
    clean = torch.rand(1, 3, 4, 4)
    schedule = scheduler(kind)
    step = timestep(schedule.alphas_cumprod, 0.5)
    network = Knows(2 * clean - 1, float(schedule.alphas_cumprod[step]), kind, extra)
    noised = clean + 0.5 * torch.randn(5, 3, 4, 4)
    assert torch.allclose(DiffusionDenoiser(network, schedule, 0.5)(noised), clean.expand(5, -1, -1, -1), atol=1e-4)
    assert network.steps == [step] * 5


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="epsilon"):
        DiffusionDenoiser(nn.Identity(), scheduler("flow"), 0.5)


class Unet(nn.Module):
    """A denoiser of 8x8 images, small enough to be trained in a test; reads no step."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))

    def forward(self, noised: torch.Tensor, steps: torch.Tensor) -> Any:
        del steps
        return SimpleNamespace(sample=self.body(noised).reshape(noised.shape))


def test_a_trained_diffusion_denoiser_makes_a_classifier_that_never_saw_noise_certifiable() -> None:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    sigma, stream = 0.5, generator()
    torch.manual_seed(0)
    classifier: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    plain, schedule = GaussianAugmentation(0.0), Schedule(epochs=12)
    train(classifier, images[:1400], labels[:1400], plain, generator=stream, schedule=schedule)
    network = Unet()
    denoiser = DiffusionDenoiser(network, scheduler("sample"), sigma)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(500):
        batch = images[torch.randint(1400, (128,), generator=stream)]
        noised = batch + sigma * torch.randn(batch.shape, generator=stream)
        optimiser.zero_grad()
        (denoiser(noised) - batch).square().mean().backward()
        optimiser.step()

    def certified(model: nn.Module) -> int:
        made = GaussianSmoothing(
            model.eval(), sigma, radius=0.2, sampling=ImageSampling(samples=1000), rng=random.Random(0)
        )
        found = [made.certify(x) for x in images[1400:1440]]
        return sum(v.certificate is not None and v.label == int(y) for v, y in zip(found, labels[1400:], strict=False))

    assert certified(Denoised(denoiser, classifier)) >= certified(classifier) + 5


# Selection (ACES)


@dataclass
class Fixed:
    """A verdict with a radius, whatever the image."""

    label: int | Label
    radius: float | None
    confidence: float = 0.999
    unit: str = "image"

    def certify(self, x: torch.Tensor) -> Verdict:
        threat = Threat("l2", self.radius or 0.0, self.unit)
        proved = None
        if self.radius is not None:
            proved = Certificate(self.label, threat, "fixed", self.confidence, "digest", ("one",))
        return Verdict(self.label, 0.9, 0.5, 10, 20, threat, proved)


X = torch.zeros(4)


@pytest.mark.parametrize(
    ("choice", "answer", "wanted"), [(0.3, 0.5, 0.3), (0.5, 0.3, 0.3), (None, 0.5, None), (0.5, None, None)]
)
def test_the_radius_of_a_selection_is_the_smaller_one(
    choice: float | None, answer: float | None, wanted: float | None
) -> None:
    verdict = CertifiedSelection(Fixed(1, choice), Fixed(7, answer), Fixed(8, 9.0)).certify(X)
    assert (verdict.label, verdict.calls, verdict.checks) == (7, 20, 40)
    assert (verdict.certificate.threat.budget if verdict.certificate else None) == wanted
    assert len(verdict.certificates) == (wanted is not None)  # no part's certificate passes for the whole's
    if verdict.certificate:
        assert verdict.certificate.label == 7
        assert verdict.certificate.confidence == pytest.approx(0.998)


def test_the_selector_decides_and_must_not_abstain() -> None:
    parts = Fixed(7, 0.5), Fixed(8, 0.5)
    assert CertifiedSelection(Fixed(0, 0.3), *parts).certify(X).label == 8
    assert CertifiedSelection(Fixed(Label.HARMFUL, 0.3), *parts, chosen=Label.HARMFUL).certify(X).label == 7
    abstains = CertifiedSelection(Fixed(Label.ABSTAIN, None), *parts).certify(X)
    assert (abstains.label, abstains.certificates) == (Label.ABSTAIN, ())


def test_an_attack_on_the_selector_alone_is_within_no_certificate() -> None:
    """Half-spaces: the selector flips at distance .2, the certified model at 1, the core model says the other class."""

    class Plane:
        def __init__(self, at: float) -> None:
            self.at = at

        def certify(self, x: torch.Tensor) -> Verdict:
            distance = self.at - float(x[0])
            return Fixed(int(distance > 0), abs(distance), 1.0).certify(x)

    whole = CertifiedSelection(Plane(0.2), Plane(1.0), Fixed(0, 5.0))
    verdict = whole.certify(X)
    assert verdict.label == 1
    assert verdict.certificate is not None
    budget = verdict.certificate.threat.budget
    for move in torch.linspace(-0.99, 0.99, 41):
        assert whole.certify(torch.tensor([float(move) * budget, 0, 0, 0])).label == 1
    assert whole.certify(torch.tensor([0.3, 0, 0, 0])).label == 0


def test_the_threat_of_a_selection_is_the_smaller_one_not_the_answering_model_s() -> None:
    far, near = Fixed(7, 0.5), Fixed(1, 0.3)
    assert CertifiedSelection(near, far, far).certify(X).threat == Threat("l2", 0.3, "image")
    assert CertifiedSelection(Fixed(1, None), far, far).certify(X).threat == Threat("l2", 0.0, "image")
    assert CertifiedSelection(Fixed(Label.ABSTAIN, 0.3), far, far).certify(X).threat is None

    class Threatless:
        def certify(self, x: torch.Tensor) -> Verdict:
            return replace(far.certify(x), threat=None, certificate=None)

    assert CertifiedSelection(near, Threatless(), far).certify(X).threat is None


@pytest.mark.parametrize("which", [(True, False), (False, True), (False, False)])
def test_a_part_that_may_abstain_or_is_degraded_makes_the_whole_so(which: tuple[bool, bool]) -> None:
    class Timed(Fixed):
        timed = False

        def certify(self, x: torch.Tensor) -> Verdict:
            found = super().certify(x)
            assert found.certificate is not None
            certificate = replace(found.certificate, may_abstain=self.timed, degraded=self.timed)
            return replace(found, certificate=certificate, degraded=self.timed)

    choice, answer = Timed(1, 0.5), Timed(7, 0.5)
    choice.timed, answer.timed = which
    verdict = CertifiedSelection(choice, answer, answer).certify(X)
    assert verdict.certificate is not None
    assert verdict.certificate.may_abstain is verdict.certificate.degraded is verdict.degraded is any(which)


def test_certificates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnsupportedThreat):
        CertifiedSelection(Fixed(1, 0.5), Fixed(7, 0.5, unit="embedding"), Fixed(8, 1.0)).certify(X)
