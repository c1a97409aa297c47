"""Shapes and domains of real photographs: the labelled images in the foolbox wheel, where it is installed."""

from __future__ import annotations

import random
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from promptguard.attack.images import PGD, OnGrid, falsify_image
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.vision.models import Normalised
from promptguard.vision.noise import GridGaussian

SPEC = find_spec("foolbox")
FILES = sorted(Path(SPEC.origin).parent.glob("data/*.png")) if SPEC and SPEC.origin else []
pytestmark = pytest.mark.skipif(not FILES, reason="foolbox is not installed")


def read(path: Path) -> torch.Tensor:
    """Pixels as they are in the file: whole numbers of 8 bits, (channels, height, width)."""
    with pytest.importorskip("PIL.Image").open(path) as picture:
        pixels = np.array(picture)
    whole = torch.from_numpy(pixels)
    return whole[None] if whole.ndim == 2 else whole.permute(2, 0, 1)


def model(channels: int) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )
    return Normalised(body, [0.5] * channels, [0.25] * channels).eval()


@pytest.mark.parametrize("path", FILES[::4], ids=lambda path: path.stem)
def test_every_photograph_is_certified_on_its_own_grid(path: Path) -> None:
    image = read(path)
    assert image.dtype == torch.uint8
    channels = image.shape[0]
    sampling = ImageSampling(samples=60, selection=20, batch_size=20)
    noise = partial(GridGaussian, levels=255)
    certifier = GaussianSmoothing(model(channels), 0.25, noise=noise, sampling=sampling, rng=random.Random(0))
    verdict, again = certifier.certify(image), certifier.certify(image / 255)
    assert certifier.noise.slack(image.numel()) < 1e-6
    assert verdict.label == again.label
    attack = OnGrid(PGD(certifier.model, steps=2, restarts=1), 255)
    found = falsify_image(certifier, image / 255, verdict, [attack], torch.Generator().manual_seed(0))
    assert not found.counter_examples
