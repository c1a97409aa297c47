"""Denoised smoothing: a denoiser before any classifier, f(D(x)), which is one more base classifier.

Salman et al. 2020, *Denoised Smoothing*: a classifier that never saw noise is certified behind a denoiser D. Carlini
et al. 2023, *(Certified!!) Adversarial Robustness for Free!*: an off-the-shelf diffusion model is that denoiser. Its
step t is chosen so that its noise fits sigma, and one prediction of the clean image is all that is asked of it.

The noise is the certifier's: the denoiser adds none, and the radius uses the sigma that was drawn, whatever the
denoiser makes of it. Nothing has to be assumed about D but that it is a fixed function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from promptguard.errors import InvalidArgument

_Prediction: TypeAlias = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]

# The clean image from the noised one, the network's output and alpha-bar (Ho et al. 2020, eq. 15; Salimans, Ho 2022).
_CLEAN: dict[str, _Prediction] = {
    "epsilon": lambda noised, out, a: (noised - math.sqrt(1 - a) * out) / math.sqrt(a),
    "sample": lambda noised, out, a: out,
    "v_prediction": lambda noised, out, a: math.sqrt(a) * noised - math.sqrt(1 - a) * out,
}


class Scheduler(Protocol):
    """What is read of a diffusion scheduler, for instance one of `diffusers`.

    Attributes:
        alphas_cumprod: alpha-bar by step, falling, float of shape (steps,).
        config: with `prediction_type`: "epsilon", "sample" or "v_prediction".
    """

    alphas_cumprod: torch.Tensor
    config: Any


def timestep(alphas_cumprod: torch.Tensor, sigma: float) -> int:
    """The first step whose noise is at least that of an image in [0, 1] with noise sigma (Carlini et al. 2023, 3).

    A diffusion image lies in [-1, 1], so its noise is twice as large: the least t with
    sqrt((1 - alpha-bar_t) / alpha-bar_t) >= 2 sigma.

    Raises:
        InvalidArgument: sigma is above the noise of the last step.
    """
    alphas = alphas_cumprod.double()
    enough = torch.sqrt((1 - alphas) / alphas) >= 2 * sigma
    if not 0 < sigma < math.inf or not bool(enough.any()):
        raise InvalidArgument(f"no step of this scheduler has as much noise as sigma {sigma!r}")
    return int(enough.to(torch.uint8).argmax())


class DiffusionDenoiser(nn.Module):
    """One-shot denoising by a diffusion model: noised images in [0, 1] to clean ones.

    Args:
        unet: called as unet(images, t); answers with a tensor or an object with `.sample`, of as many channels as the
            image, or twice as many (the second half, a learned variance, is ignored).
        scheduler: its noise schedule.
        sigma: of the noise in the images that it will get.

    Raises:
        InvalidArgument: the schedule never reaches sigma, or predicts something unknown.
    """

    def __init__(self, unet: nn.Module, scheduler: Scheduler, sigma: float) -> None:
        super().__init__()
        kind = getattr(scheduler.config, "prediction_type", "epsilon")
        if kind not in _CLEAN:
            raise InvalidArgument(f"a scheduler that predicts {', '.join(_CLEAN)} is needed")
        self.unet, self._kind, self._clean = unet, kind, _CLEAN[kind]
        self.step = timestep(scheduler.alphas_cumprod, sigma)
        self._alpha = float(scheduler.alphas_cumprod[self.step])

    def extra_repr(self) -> str:
        """The step, its alpha-bar and what is predicted: part of what the model is."""
        return f"step={self.step!r}, alpha={self._alpha!r}, prediction={self._kind!r}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Denoised images, in [0, 1]."""
        noised = math.sqrt(self._alpha) * (2 * x - 1)
        steps = torch.full((x.shape[0],), self.step, device=x.device, dtype=torch.int64)
        found = self.unet(noised, steps)
        out = getattr(found, "sample", found)[:, : x.shape[1]]
        return (self._clean(noised, out, self._alpha).clamp(-1, 1) + 1) / 2


class Denoised(nn.Module):
    """A classifier behind a denoiser: f(D(x)).

    Args:
        denoiser: images to images.
        classifier: images to logits.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        found: torch.Tensor = self.classifier(self.denoiser(x))
        return found
