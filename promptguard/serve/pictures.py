"""From the configuration to what judges pictures, and what a picture costs before it is judged."""

from __future__ import annotations

import math

import torch
from torch import nn

from promptguard.certify.erase_and_check import Cost
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import BudgetExceeded, LabelError, PictureRefused
from promptguard.score.image_classifier import load_image_classifier
from promptguard.score.labels import indices
from promptguard.serve.config import Picturing
from promptguard.serve.pool import go_on
from promptguard.types import Verdict
from promptguard.vision.pictures import Pictures

_CHANNELS = 3
# Numbers that weigh as much as a character of text: a small text encoder spends some 10 million operations on a
# character, a small image classifier some 10 thousand on a number of its input.
_NUMBERS = 1000
_TOGETHER = 2**22  # numbers in a batch


class PricedPictures:
    """Judges pictures, and says before what it costs.

    Args:
        pictures: what judges.
        votes: on each picture, at most.
    """

    def __init__(self, pictures: Pictures, votes: int) -> None:
        self._pictures = pictures
        self._votes = votes

    @property
    def max_pictures(self) -> int:
        """Different pictures in a request."""
        return self._pictures.max_pictures

    def price(self, data: bytes) -> Cost:
        """What a picture costs, from its header alone: votes, and thousands of numbers; a refused one costs nothing."""
        try:
            pixels = self._pictures.pixels(data)
        except (PictureRefused, BudgetExceeded):
            return Cost(0, 0)
        numbers = _CHANNELS * (pixels + self._votes * math.prod(self._pictures.size))
        return Cost(self._votes, math.ceil(numbers / _NUMBERS))

    def certify(self, x: bytes) -> Verdict:
        """As `Pictures.certify`.

        Raises:
            PromptGuardError: see there.
            Abandoned: nobody waits for it any more.
        """
        return self._pictures.certify(x)


def load(section: Picturing) -> PricedPictures:
    """Load the classifier and put smoothing around it.

    Raises:
        PromptGuardError: a setting means nothing, a file is missing, or a class is unknown.
    """
    found = load_image_classifier(section.filter, section.device)
    harmful = indices(section.harmful, found.labels)
    if len(harmful) == len(found.labels):
        raise LabelError("images.harmful names every class of the filter: then no picture could pass")
    numbers = _CHANNELS * math.prod(found.size)
    sampling = ImageSampling(
        alpha=section.alpha, samples=section.samples, batch_size=min(1000, max(1, _TOGETHER // numbers))
    )
    smoothed = GaussianSmoothing(
        _Watched(found.model).eval(), section.sigma, radius=section.radius, harmful=harmful, sampling=sampling
    )
    pictures = Pictures(smoothed, found.size, max_pixels=section.max_pixels, max_pictures=section.max_pictures)
    return PricedPictures(pictures, sampling.samples + sampling.selection)


class _Watched(nn.Module):
    """A model that is asked for its next batch only while somebody waits for the answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        go_on(0, 0)
        found: torch.Tensor = self.model(x)
        return found
