"""Two libraries on the networks and votes of this benchmark, where they are installed: the extra `bench-vision`.

The Adversarial Robustness Toolbox certifies by smoothing: the same model, sigma, alpha, 100 votes to choose a class and
20,000 to prove it. deel-torchlip makes Lipschitz networks and leaves the certificate, margin / sqrt(2) for a constant
of 1, to its user; the constant is declared. Ours is computed from the weights, with the rounding of the forward pass.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import random
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.table import Table
from benchmarks.tasks.vision_baseline import ALPHA, BATCH, SELECTION, Split, rounds
from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.lipschitz.layers import SpectralWeight
from promptguard.lipschitz.modules import MaxMin
from promptguard.lipschitz.plain import plain
from promptguard.lipschitz.training import export

VOTES, SIGMA, SIDE = 20_000, 0.25, 8
RADII = (0.1, 0.25, 0.5)
CHANNELS = (16, 32)


def present(module: str, package: str) -> str | None:
    """The version of a peer; None, and a line that says so, where it is not installed."""
    if find_spec(module.partition(".")[0]) is None:
        print(f"{package} is not installed: it is left out (pip install -e '.[bench-vision]')")
        return None
    return f"{package} {importlib.metadata.version(package)}"


def smoothing(model: nn.Module, split: Split) -> Iterator[dict[str, Any]]:
    """Images per second by ART and by us, with as many votes and with no more than needed, and whom both certify."""
    version = present("art", "adversarial-robustness-toolbox")
    if version is None:
        return
    library = importlib.import_module("art.estimators.certification.randomized_smoothing")
    peer = library.PyTorchRandomizedSmoothing(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=(1, SIDE, SIDE), nb_classes=10,
        device_type="cpu", sample_size=SELECTION, scale=SIGMA, alpha=ALPHA,
    )  # fmt: skip
    np.random.seed(0)
    images, labels = split[2], split[3].numpy()
    theirs, seconds = _timed(lambda: peer.certify(images.numpy(), n=VOTES, batch_size=BATCH))
    model.eval()
    sampling = ImageSampling(alpha=ALPHA, samples=VOTES, selection=SELECTION, batch_size=BATCH)
    every = GaussianSmoothing(model, SIGMA, sampling=sampling, rng=random.Random(0))
    _, fixed = _timed(lambda: every.certify_many(images))
    for radius in RADII:
        asked = GaussianSmoothing(model, SIGMA, radius=radius, sampling=sampling, rng=random.Random(1))
        asked.certify(images[0])  # the table of looks is made once
        found, mine = _timed(lambda asked=asked: asked.certify_many(images))
        ours = np.array([v.certificate is not None and v.label == y for v, y in zip(found, labels, strict=True)])
        others = (theirs[0] == labels) & (theirs[1] >= radius)
        yield {
            "peer": version, "radius": radius, "images": len(images), "votes": VOTES,
            "peer_rate": len(images) / seconds, "fixed_rate": len(images) / fixed, "rate": len(images) / mine,
            "peer_certified": int(others.sum()), "certified": int(ours.sum()), "both": int((ours & others).sum()),
        }  # fmt: skip


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def prediction() -> Iterator[dict[str, Any]]:
    """The cost of certified prediction: two convolutions and a linear layer on 8x8, against the same with ReLU."""
    version = present("deel.torchlip", "deel-torchlip")
    if version is None:
        return
    torchlip = importlib.import_module("deel.torchlip")
    torch.manual_seed(0)
    theirs = torchlip.Sequential(
        *_layers(torchlip.SpectralConv2d, torchlip.SpectralLinear, torchlip.GroupSort2, padding_mode="zeros")
    ).eval()
    exported = theirs.vanilla_export().eval()
    read = plain(exported, (1, SIDE, SIDE), torch.Generator().manual_seed(0))
    ours = nn.Sequential(*_layers(nn.Conv2d, nn.Linear, MaxMin))
    for module in list(ours):
        if isinstance(module, nn.Conv2d | nn.Linear):
            size = (SIDE, SIDE) if isinstance(module, nn.Conv2d) else (1, 1)
            nn.utils.parametrize.register_parametrization(module, "weight", SpectralWeight(size))
    ours = export(ours)
    relu = nn.Sequential(*_layers(nn.Conv2d, nn.Linear, nn.ReLU)).eval().requires_grad_(False)
    pairs = {
        "deel-torchlip": (theirs, _margin(theirs)),
        "deel-torchlip, exported": (exported, _margin(exported)),
        "deel-torchlip's weights, read and certified here": (read, LipschitzCertifier(read, (1, SIDE, SIDE)).radii),
        "ours, MaxMin": (ours, LipschitzCertifier(ours, (1, SIDE, SIDE)).radii),
    }
    for size in (1, 256):
        batch = torch.rand(size, 1, SIDE, SIDE)
        ways: dict[str, Callable[[], object]] = {"relu": _bound(_argmax(relu), batch)}
        for name, (network, certified) in pairs.items():
            ways |= {f"{name}|plain": _bound(_argmax(network), batch), f"{name}|whole": _bound(certified, batch)}
        times = rounds(ways, 150)
        for name in pairs:
            shares = {
                "of_relu": times[f"{name}|whole"] / times["relu"],
                "of_own": times[f"{name}|whole"] / times[f"{name}|plain"],
            }
            quartiles = {key: np.quantile(found, [0.25, 0.5, 0.75]).round(3).tolist() for key, found in shares.items()}
            yield {"peer": version, "network": name, "batch": size, **quartiles}


def _layers(conv: Any, linear: Any, activation: Any, **options: Any) -> list[nn.Module]:
    first, second = CHANNELS
    return [
        conv(1, first, 3, padding=1, **options), activation(), conv(first, second, 3, padding=1, **options),
        activation(), nn.Flatten(), linear(second * SIDE * SIDE, 10),
    ]  # fmt: skip


def _argmax(network: nn.Module) -> Callable[[torch.Tensor], object]:
    return torch.inference_mode()(lambda x: network(x).argmax(1))


def _margin(network: nn.Module) -> Callable[[torch.Tensor], object]:
    """The certificate that the library's users compute."""

    @torch.inference_mode()
    def certified(x: torch.Tensor) -> object:
        top = network(x).topk(2, 1)
        return top.indices[:, 0], (top.values[:, 0] - top.values[:, 1]) / 2**0.5

    return certified


def _bound(call: Callable[[torch.Tensor], object], batch: torch.Tensor) -> Callable[[], object]:
    return lambda: call(batch)


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What the rows say; no table of a peer that was not there."""
    votes = [row for row in rows if "radius" in row]
    costs = [row for row in rows if "network" in row]
    return [t for t in (_votes(votes), _costs(costs)) if t.rows]


def _votes(rows: Sequence[dict[str, Any]]) -> Table:
    lines = [
        [
            str(row["radius"]), f"{row['peer_rate']:.1f}", f"{row['fixed_rate']:.1f}", f"{row['rate']:.0f}",
            f"{row['rate'] / row['peer_rate']:.0f}", str(row["peer_certified"]), str(row["certified"]),
            str(row["both"]),
        ]
        for row in rows
    ]  # fmt: skip
    heads = ["radius", "ART, images/s", "ours, as many votes", "ours", "times", "certified by ART", "by us", "by both"]
    name = f"{rows[0]['peer']}, {rows[0]['images']} digits, {rows[0]['votes']:,} votes" if rows else ""
    return Table(f"{name}, perceptron 64-128-10, sigma {SIGMA}, correct and certified", heads, lines)


def _costs(rows: Sequence[dict[str, Any]]) -> Table:
    lines = [
        [
            row["network"], str(row["batch"]),
            *("{1:.2f} ({0:.2f} to {2:.2f})".format(*row[key]) for key in ("of_relu", "of_own")),
        ]
        for row in rows
    ]  # fmt: skip
    heads = ["network", "batch", "times a plain ReLU network", "times its own forward pass and argmax"]
    name = f"{rows[0]['peer']}, c" if rows else "C"
    note = f"Convolutions of {CHANNELS[0]} and {CHANNELS[1]} channels and a linear layer on {SIDE}x{SIDE}: "
    note += "medians and quartiles of 150 rounds in turn, processor time."
    return Table(f"{name}ost of labels and radii", heads, lines, note)
