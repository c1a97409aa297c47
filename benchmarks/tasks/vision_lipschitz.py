"""Lipschitz networks on scikit-learn's digits: certified accuracy by layer, and what a certificate costs.

1,797 real images of 8 x 8 pixels with 17 grey levels, scaled to [0, 1]. For each of five seeds 397 are held out, drawn
by class with that seed, and the other 1,400 train one network per kind of layer: 60 epochs, the same recipe for all
(`promptguard.lipschitz.training`), seconds to a minute on one core. Radius and temperature of the loss were chosen
after a few runs on seeds 0 and 1 and their held-out images. An image counts at radius r if its class is right and a
radius of at least r is proven, rounding included. The reference is one run on one split, each layer in a few lines of
the authors' formulas.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrize import register_parametrization

from benchmarks.table import Table, read_lines
from benchmarks.tasks.common import RESULTS
from promptguard.certify.lipschitz import LipschitzCertifier
from promptguard.lipschitz.layers import (
    AlmostOrthogonalWeight,
    LargestStep,
    Potential,
    RowSteps,
    SandwichLayer,
    SpectralWeight,
    UnitRowsWeight,
)
from promptguard.lipschitz.modules import MaxMin
from promptguard.lipschitz.training import MarginLoss, Recipe, fit

NAME = "vision"
TITLE = "Lipschitz networks on digits"
FILE = "lipschitz.jsonl"
SEEDS = 5
HELD = 397
WIDTH = 128
DEPTH = 4
RADII = (0.0, 0.1, 0.25, 0.5, 1.0)
RECIPE = Recipe(MarginLoss(radius=0.5, temperature=0.1), epochs=60, batch=64, rate=0.01)
PUBLISHED = {
    "CPL": (97.0, 95.7, 89.4, 70.5, 8.1),
    "Sandwich": (97.2, 95.5, 89.9, 68.3, 9.6),
    "SLL": (96.0, 95.0, 89.2, 68.5, 8.8),
    "Cayley": (95.7, 93.7, 88.2, 66.5, 7.3),
    "spectral": (95.5, 93.5, 87.2, 63.7, 5.5),
    "AOL": (92.9, 89.7, 82.1, 56.7, 2.5),
}
Maker = Callable[[int, torch.Generator], list[nn.Module]]


def potential(inputs: int, steps: nn.Module, generator: torch.Generator) -> list[nn.Module]:
    """One layer that keeps its width; the first one widens the image with zeros."""
    pad: list[nn.Module] = [nn.ZeroPad1d((0, WIDTH - inputs))] if inputs < WIDTH else []
    return [*pad, Potential((WIDTH, WIDTH), steps, generator)]


def bounded(inputs: int, parametrise: Callable[[nn.Linear], nn.Module]) -> list[nn.Module]:
    """A matrix of norm 1, then MaxMin."""
    return [parametrise(nn.Linear(inputs, WIDTH)), MaxMin()]


def parametrised(parametrisation: nn.Module) -> Callable[[nn.Linear], nn.Module]:
    """A function that hangs a parametrisation on the weight of a layer."""
    return lambda layer: register_parametrization(layer, "weight", parametrisation)


LAYERS: dict[str, Maker] = {
    "CPL": lambda inputs, g: potential(inputs, LargestStep(), g),
    "SLL": lambda inputs, g: potential(inputs, RowSteps(WIDTH), g),
    "Sandwich": lambda inputs, g: [SandwichLayer(inputs, WIDTH, g)],
    "Cayley": lambda inputs, g: bounded(inputs, lambda layer: orthogonal(layer, orthogonal_map="cayley")),
    "spectral": lambda inputs, g: bounded(inputs, parametrised(SpectralWeight())),
    "AOL": lambda inputs, g: bounded(inputs, parametrised(AlmostOrthogonalWeight())),
}


def network(name: str, generator: torch.Generator) -> nn.Sequential:
    """Four layers of one kind, and a head with rows of norm 1."""
    modules = [module for at in range(DEPTH) for module in LAYERS[name](WIDTH if at else 64, generator)]
    head = register_parametrization(nn.Linear(WIDTH, 10), "weight", UnitRowsWeight())
    return nn.Sequential(nn.Flatten(), *modules, head)


def digits(seed: int) -> tuple[torch.Tensor, ...]:
    """Training images, held-out images, and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images.reshape(-1, 1, 8, 8) / 16, labels, test_size=HELD, random_state=seed, stratify=labels
    )
    kinds = (torch.float32, torch.float32, torch.int64, torch.int64)
    return tuple(torch.tensor(part).to(kind) for part, kind in zip(parts, kinds, strict=True))


def measured(name: str, seed: int) -> dict[str, Any]:
    """Train one network and certify the held-out images."""
    x, held, y, labels = digits(seed)
    torch.manual_seed(seed)  # initial weights of torch's own layers
    generator = torch.Generator().manual_seed(seed)
    start = time.process_time()
    trained = fit(network(name, generator), x, y, RECIPE, generator)
    seconds = time.process_time() - start
    certifier = LipschitzCertifier(trained, (1, 8, 8))
    found = certifier.radii(held)
    right = found.labels == labels
    counts = [int((right & (found.radii >= radius)).sum()) for radius in RADII]
    cost = dict(zip(("plain_us", "certified_us"), prices(trained, certifier, held[:256]), strict=True))
    return {
        "label": name,
        "seed": seed,
        "inputs": len(held),
        "radii": RADII,
        "counts": counts,
        "epochs": RECIPE.epochs,
        "train_s": round(seconds, 2),
        **cost,
        "digest": certifier.digest,
        "torch": torch.__version__,
    }


def prices(plain: nn.Sequential, certifier: LipschitzCertifier, batch: torch.Tensor) -> tuple[float, float]:
    """Microseconds of a forward pass with argmax, and of certified prediction; medians of interleaved rounds."""

    def predict(x: torch.Tensor) -> object:
        with torch.inference_mode():
            return plain(x).argmax(1)

    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(220):
        for run, into in zip((predict, certifier.radii), times, strict=True):
            start = time.perf_counter()
            run(batch)
            if turn >= 20:
                into.append(1e6 * (time.perf_counter() - start))
    return round(statistics.median(times[0]), 1), round(statistics.median(times[1]), 1)


def interval(values: Sequence[float]) -> str:
    """The mean over seeds with its 95 % interval (Student)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} ± {half:.1f}"


def accuracy(rows: Iterable[dict[str, Any]]) -> Table:
    """Certified accuracy of each layer beside the reference."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    lines = []
    for name, published in PUBLISHED.items():
        if name in found:
            shares = zip(*([100 * n / row["inputs"] for n in row["counts"]] for row in found[name]), strict=True)
            seconds = statistics.mean(row["train_s"] for row in found[name])
            lines.append([name, *map(interval, shares), f"{seconds:.0f}"])
            lines.append([f"{name}, reference", *(f"{share:.1f}" for share in published), ""])
    heads = ["layer", "clean", *(f"l2 {radius}" for radius in RADII[1:]), "training, s"]
    note = "Percent of held-out images, mean of five seeds and its 95 % interval."
    return Table("Certified accuracy on digits", heads, lines, note)


def cost(rows: Iterable[dict[str, Any]]) -> Table:
    """What certified prediction adds to a forward pass."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    lines = []
    for name, group in found.items():
        plain, whole = (statistics.median(row[key] for row in group) for key in ("plain_us", "certified_us"))
        lines.append([name, f"{plain:.0f}", f"{whole:.0f}", f"{whole / plain:.2f}"])
    heads = ["layer", "forward and argmax, µs", "labels and radii, µs", "ratio"]
    return Table("Cost of a certificate at batch 256, one thread, medians", heads, lines)


def tables(results: Path) -> list[Table]:
    """Tables from committed rows."""
    rows = read_lines(results / NAME / FILE)
    return [table for table in (accuracy(rows), cost(rows)) if table.rows]


def main() -> None:
    """Measure what is not in the rows yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of all tasks' rows")
    parser.add_argument("--layers", nargs="+", choices=sorted(LAYERS), default=list(LAYERS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.results / NAME / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["label"], row["seed"]) for row in read_lines(path)}
    with path.open("a", encoding="utf-8") as out:
        for name in options.layers:
            for seed in range(options.seeds):
                if (name, seed) not in done:
                    out.write(json.dumps(measured(name, seed)) + "\n")
                    out.flush()
    print("\n\n".join(table.markdown() for table in tables(options.results)))


if __name__ == "__main__":
    main()
