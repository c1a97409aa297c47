"""Digits with the radius in which no change of them changes their class, and a figure. Run by `make demo-vision`.

A small network learns scikit-learn's digits under noise; smoothing certifies it. The figure shows the share of digits
that is classified right for certain, by radius, and what smoothing does to a decision boundary in the plane.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.types import Verdict
from promptguard.vision.radius import shown
from promptguard.vision.training.consistency import Consistency
from promptguard.vision.training.gaussian import GaussianAugmentation
from promptguard.vision.training.loop import Schedule, train

SIGMAS = {0.12: "#0072b2", 0.25: "#d55e00", 0.5: "#009e73"}
REGIONS = ("#f4c9a8", "#a9cfe8")
POINTS = ("#b34a00", "#005a8e")
SHADES = " ░▒▓█"
SHOWN, MEASURED, VOTES = 8, 150, 2000
SPREAD = 0.25  # sigma of the plane's noise
SIDE, EDGE = 240, 2.0


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1], (count, 1, 8, 8), and labels, shuffled."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.images, dtype=torch.float32)[order][:, None] / 16, torch.tensor(found.target)[order]


def smoothed(images: torch.Tensor, labels: torch.Tensor, sigma: float) -> GaussianSmoothing:
    """A network that was trained under noise of this sigma, smoothed with it."""
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))
    recipe, generator = Consistency(sigma, 5.0, copies=4), torch.Generator().manual_seed(0)
    train(model, images, labels, recipe, generator=generator, schedule=Schedule(epochs=40))
    return GaussianSmoothing(model, sigma, sampling=ImageSampling(samples=VOTES), rng=random.Random(0))


def radius(verdict: Verdict, label: int) -> float:
    """The certified radius if the class is right, else a number below 0."""
    return verdict.certificate.threat.budget if verdict.certificate and verdict.label == label else -1.0


def panel(image: torch.Tensor, verdict: Verdict, label: int) -> Panel:
    """A digit in the terminal."""
    rows = [[SHADES[min(4, int(5 * value))] * 2 for value in row] for row in image[0].tolist()]
    right = verdict.label == label
    proved = f"radius {shown(verdict.certificate.threat.budget)}" if verdict.certificate else "nothing is certain"
    colour = "green" if right and verdict.certificate else "yellow" if verdict.certificate is None else "red"
    title = f"[{colour}]{verdict.label}[/] (is {label})"
    return Panel("\n".join("".join(row) for row in rows), title=title, subtitle=proved, width=22)


def curve(radii: list[float], at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Share of images that are right within each radius."""
    result: np.ndarray[Any, Any] = 100 * (np.array(radii)[:, None] >= at).mean(0)
    return result


def moons() -> tuple[torch.Tensor, torch.Tensor]:
    """Two half-moons, one label in six wrong: what an overfitted network makes a ragged boundary of."""
    rng = np.random.default_rng(3)
    angle, labels = rng.uniform(0, np.pi, 220), np.arange(220) % 2
    flip = 1 - 2 * labels
    points = np.stack([np.cos(angle) * flip + labels - 0.5, np.sin(angle) * flip - 0.25 + 0.5 * labels], 1)
    points = 1.1 * (points + rng.normal(0, 0.18, points.shape))
    wrong = rng.random(220) < 1 / 6
    return torch.tensor(points, dtype=torch.float32), torch.tensor(np.where(wrong, 1 - labels, labels))


def plane(axes: Any, model: nn.Module, points: torch.Tensor, labels: torch.Tensor, *, smooth: bool) -> None:
    """Decision regions, of the network or of its smoothed version; there with certified balls."""
    margin = 1.2 if smooth else 0.0
    line = torch.linspace(-EDGE - margin, EDGE + margin, SIDE)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    with torch.inference_mode():
        share = model(grid.reshape(-1, 2)).argmax(1).reshape(SIDE, SIDE).double().numpy()
    if smooth:  # the share of votes for class 1, everywhere at once
        share = gaussian_filter(share, SPREAD / float(line[1] - line[0]), mode="nearest")
    axes.contourf(line, line, share, levels=[-0.1, 0.5, 1.1], colors=REGIONS)
    axes.contour(line, line, share, levels=[0.5], colors="#333333", linewidths=1)
    axes.scatter(*points.T, c=[POINTS[int(label)] for label in labels], s=9, linewidths=0)
    if smooth:
        certifier = GaussianSmoothing(model, SPREAD, sampling=ImageSampling(samples=VOTES), rng=random.Random(0))
        for point in points[::11]:
            certificate = certifier.certify(point).certificate
            if certificate:
                axes.add_patch(plt.Circle(tuple(point.tolist()), certificate.threat.budget, fill=False, lw=0.8))
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"Smoothed, sigma {SPREAD}, and certified balls" if smooth else "The network itself", fontsize=10)


def figure(curves: dict[float, list[float]], path: Path) -> None:
    """Curves of certified accuracy, and the plane before and after."""
    points, labels = moons()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    schedule = Schedule(epochs=700, batch_size=220, rate=1e-2, decay=0.0)
    generator = torch.Generator().manual_seed(0)
    train(model, points, labels, GaussianAugmentation(0.0), generator=generator, schedule=schedule)
    drawing, (left, before, after) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1.25, 1, 1])
    at = np.linspace(0, 1.5, 301)
    for sigma, radii in curves.items():
        left.step(at, curve(radii, at), color=SIGMAS[sigma], label=f"sigma {sigma}", where="post")
    left.set(xlabel="l2 radius (pixels in [0, 1])", ylabel="certified accuracy, %", xlim=(0, 1.5), ylim=(0, 100))
    left.set_title(f"Digits, {MEASURED} images, alpha 0.001", fontsize=10)
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    plane(before, model, points, labels, smooth=False)
    plane(after, model, points, labels, smooth=True)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def main() -> None:
    """Train, certify, show, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-vision.png"), help="where the figure goes")
    path = parser.parse_args().out
    mpl.use("Agg")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    images, labels = digits()
    curves: dict[float, list[float]] = {}
    panels: list[Panel] = []
    for sigma in tqdm(SIGMAS, delay=2, leave=False, disable=not sys.stderr.isatty()):
        certifier = smoothed(images[:1400], labels[:1400], sigma)
        some = list(zip(images[1400 : 1400 + MEASURED], labels[1400:].tolist(), strict=False))
        verdicts = certifier.certify_many(images[1400 : 1400 + MEASURED])
        curves[sigma] = [radius(v, label) for v, (_, label) in zip(verdicts, some, strict=True)]
        if not panels or sigma == 0.25:
            panels = [panel(image, v, label) for v, (image, label) in zip(verdicts[:SHOWN], some, strict=False)]
    console.print(Columns(panels))
    console.print(
        "sigma 0.25: within the radius (Euclidean, pixels in [0, 1]) no change of the picture changes the class, "
        "each with probability at least 0.999"
    )
    figure(curves, path)
    console.print(f"figure: {path}")


if __name__ == "__main__":
    main()
