"""Lipschitz networks on scikit-learn's digits: certified accuracy by layer, and what a certificate costs.

1,797 real images of 8 x 8 pixels with 17 grey levels, scaled to [0, 1]. For each of five seeds 397 are held out, drawn
by class with that seed, and the other 1,400 train one network per kind of layer: 60 epochs, the same recipe for all
(`promptguard.lipschitz.training`), seconds to a minute on one core. Radius and temperature of the loss were settled
without held-out images: `--compare` trains on 1,120 of the training images of seeds 0 and 1 and certifies the other
280, and the candidates come from such runs with Sandwich layers and seeds 0 to 2. (Splits overlap: what is validation
for one seed may be held out for another.) An image counts at radius r if its class is right and a radius of at least r
is proven, rounding included. The reference is one run on one split, each layer in a few lines of the authors' formulas.
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

import numpy as np
import torch
from scipy.stats import t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrize import register_parametrization

from benchmarks.table import Table, read_lines
from benchmarks.tasks.common import RESULTS
from benchmarks.tasks.vision_baseline import rounds
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
from promptguard.lipschitz.training import MarginLoss, Recipe, export, fit

NAME = "vision"
TITLE = "Lipschitz networks on digits"
FILE = "lipschitz.jsonl"
SEEDS = 5
HELD = 397
WIDTH = 128
DEPTH = 4
RADII = (0.0, 0.1, 0.25, 0.5, 1.0)
COMPARED = "lipschitz-compared.jsonl"
COSTS = "lipschitz-costs.jsonl"
EPOCHS = 60
LOSSES = ((0.4, 0.2), (0.5, 0.1), (0.5, 0.2))  # radius and temperature; the first is the one that is used
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
    """A function that hangs a parametrisation on the weight of a layer, which begins orthogonal.

    AOL shrinks random matrices so much that deep networks of it hardly learn.
    """

    def parametrise(layer: nn.Linear) -> nn.Module:
        nn.init.orthogonal_(layer.weight)
        return register_parametrization(layer, "weight", parametrisation)

    return parametrise


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


def trained(name: str, seed: int, loss: Sequence[float], x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    """A network as exported."""
    torch.manual_seed(seed)  # initial weights of torch's own layers
    generator = torch.Generator().manual_seed(seed)
    recipe = Recipe(MarginLoss(*loss), epochs=EPOCHS, batch=64, rate=0.01)
    return fit(network(name, generator), x, y, recipe, generator)


def counted(certifier: LipschitzCertifier, images: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Images that are right and certified, by radius."""
    found = certifier.radii(images)
    right = found.labels == labels
    return [int((right & (found.radii >= radius)).sum()) for radius in RADII]


def compared(name: str, seed: int, loss: tuple[float, float]) -> dict[str, Any]:
    """One candidate on a fifth of a seed's training images; the held-out ones are not looked at."""
    x, _, y, _ = digits(seed)
    mine, others = train_test_split(torch.arange(len(x)), test_size=len(x) // 5, random_state=seed, stratify=y)
    certifier = LipschitzCertifier(trained(name, seed, loss, x[mine], y[mine]), (1, 8, 8))
    found = counted(certifier, x[others], y[others])
    return {"label": name, "seed": seed, "loss": loss, "inputs": len(others), "counts": found}


def measured(name: str, seed: int, loss: tuple[float, float]) -> dict[str, Any]:
    """Train one network and certify the held-out images."""
    x, held, y, labels = digits(seed)
    start = time.process_time()
    plain = trained(name, seed, loss, x, y)
    seconds = time.process_time() - start
    certifier = LipschitzCertifier(plain, (1, 8, 8))
    return {
        "label": name,
        "seed": seed,
        "loss": loss,
        "inputs": len(held),
        "radii": RADII,
        "counts": counted(certifier, held, labels),
        "epochs": EPOCHS,
        "train_s": round(seconds, 2),
        "digest": certifier.digest,
        "torch": torch.__version__,
    }


def prices(name: str, seed: int, loss: tuple[float, float]) -> dict[str, Any]:
    """Microseconds of a forward pass with argmax and of certified prediction, and quartiles of their ratio by round.

    The weights are those that training begins with: what a pass costs does not depend on them.
    """
    torch.manual_seed(seed)
    plain = export(network(name, torch.Generator().manual_seed(seed)))
    certifier, batch = LipschitzCertifier(plain, (1, 8, 8)), digits(seed)[1][:256]

    @torch.inference_mode()
    def predict() -> object:
        return plain(batch).argmax(1)

    times = rounds({"plain": predict, "whole": lambda: certifier.radii(batch)}, 200)
    found = {f"{way}_us": round(1e6 * float(np.median(some)), 1) for way, some in times.items()}
    ratio = np.quantile(times["whole"] / times["plain"], [0.25, 0.5, 0.75]).round(3).tolist()
    return {"label": name, "seed": seed, "loss": loss, "ratio": ratio, "torch": torch.__version__, **found}


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
    for name in PUBLISHED:
        if group := found.get(name):
            plain, whole = (statistics.median(row[key] for row in group) for key in ("plain_us", "whole_us"))
            low, middle, high = (statistics.median(row["ratio"][at] for row in group) for at in range(3))
            lines.append([name, f"{plain:.0f}", f"{whole:.0f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    heads = ["layer", "forward and argmax, µs", "labels and radii, µs", "ratio, and its quartiles over rounds"]
    return Table("Cost of a certificate at batch 256, one thread, processor time, medians", heads, lines)


def comparison(rows: Sequence[dict[str, Any]]) -> Table:
    """The candidates for the loss, over all layers."""
    lines = []
    for loss in LOSSES:
        some = [row for row in rows if tuple(row["loss"]) == loss]
        if some:
            images = sum(row["inputs"] for row in some)
            shares = (100 * sum(row["counts"][at] for row in some) / images for at in range(len(RADII)))
            lines.append([f"radius {loss[0]}, temperature {loss[1]}", *(f"{share:.1f}" for share in shares)])
    heads = ["loss", "clean", *(f"l2 {radius}" for radius in RADII[1:])]
    note = "Percent of 280 images each that were kept from training, seeds 0 and 1; held-out images took no part."
    return Table("Losses compared on training images, all layers together", heads, lines, note)


def tables(results: Path) -> list[Table]:
    """Tables from committed rows."""
    rows, costs, others = (read_lines(results / NAME / file) for file in (FILE, COSTS, COMPARED))
    return [table for table in (accuracy(rows), cost(costs), comparison(others)) if table.rows]


def measure(
    path: Path, one: Callable[[str, int, tuple[float, float]], dict[str, Any]], jobs: Iterable[tuple[str, int, Any]]
) -> None:
    """Add what is not in the rows yet."""
    done = {(row["label"], row["seed"], *row["loss"]) for row in read_lines(path)}
    with path.open("a", encoding="utf-8") as out:
        for name, seed, loss in jobs:
            if (name, seed, *loss) not in done:
                out.write(json.dumps(one(name, seed, loss)) + "\n")
                out.flush()


def main() -> None:
    """Measure what is not in the rows yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of all tasks' rows")
    parser.add_argument("--layers", nargs="+", choices=sorted(LAYERS), default=list(LAYERS))
    parser.add_argument("--compare", action="store_true", help="compare losses, on training images alone")
    parser.add_argument("--costs", action="store_true", help="time certificates; best on a machine at rest")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.results / NAME
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    if options.compare:
        jobs = [(name, seed, loss) for seed in (0, 1) for name in options.layers for loss in LOSSES]
        measure(folder / COMPARED, compared, jobs)
    else:
        path, one = (folder / COSTS, prices) if options.costs else (folder / FILE, measured)
        measure(path, one, [(name, seed, LOSSES[0]) for name in options.layers for seed in seeds])
    print("\n\n".join(table.markdown() for table in tables(options.results)))


if __name__ == "__main__":
    main()
