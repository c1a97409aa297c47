"""Smoothing of images: votes saved by early stopping, speed end to end and per vote, certified accuracy on digits.

scikit-learn's 1,797 real digits of 8x8 pixels in [0, 1]; 1,400 train, 397 are certified, drawn anew for each seed. The
baseline is the procedure of Cohen et al. 2019 (section 3.2.2, alpha 0.001, 100 votes to choose the class), written from
the paper: `n` votes for every image, counted one by one in Python, as the published code counts, or vectorised. It and
ours run on the same network, on one thread; times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.table import Table, read_lines
from benchmarks.tasks import vision_peers
from benchmarks.tasks.vision_baseline import (
    ALPHA,
    BATCH,
    SELECTION,
    Split,
    binned,
    cohen,
    counted,
    digits,
    mlp,
    resnet20,
    rounds,
    trained,
    votes,
)
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.stats import clopper_pearson
from promptguard.vision.noise import Gaussian, LinearGaussian, Noise
from promptguard.vision.training.consistency import Consistency
from promptguard.vision.training.gaussian import GaussianAugmentation
from promptguard.vision.training.recipe import Recipe
from promptguard.vision.training.smoothadv import SmoothAdv
from promptguard.vision.training.smoothmix import SmoothMix
from promptguard.vision.votes import Voter

NAME, TITLE = "vision", "Randomized smoothing of images"
RESULTS = Path(__file__).resolve().parent.parent / "results"
RADII = (0.0, 0.1, 0.25, 0.5)
RECIPES: dict[str, Callable[[], Recipe]] = {
    "Gaussian augmentation": lambda: GaussianAugmentation(0.25, 8),
    "Consistency": lambda: Consistency(0.25, 20.0, 0.5, 8),
    "SmoothAdv": lambda: SmoothAdv(0.25, 0.25, 4, 2),
    "SmoothMix": lambda: SmoothMix(0.25, 0.5, 2, 5.0, 4),
}


# Measurements


def accuracy(seeds: int, recipes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Certified accuracy by seed and recipe, from 10,000 votes for each image."""
    for name in recipes:
        for seed in range(seeds):
            split = digits(seed)
            torch.manual_seed(seed)
            model = trained(split, mlp(64, 256, 2), RECIPES[name](), seed, 100)
            certifier = GaussianSmoothing(model, 0.25, sampling=ImageSampling(samples=10_000), rng=random.Random(seed))
            found = certifier.certify_many(split[2])
            reached = [
                v.certificate.threat.budget if v.certificate and v.label == int(y) else -1.0
                for v, y in zip(found, split[3], strict=True)
            ]
            counts = {str(r): sum(one >= r for one in reached) for r in RADII}
            yield {
                "recipe": name,
                "seed": seed,
                "sigma": 0.25,
                "images": len(found),
                "votes": 10_000,
                "correct": counts,
            }


def early() -> Iterator[dict[str, Any]]:
    """Certified at a radius: 100,000 votes for each image against stopping when the answer is known."""
    for sigma, radii in ((0.25, (0.1, 0.25, 0.5)), (0.5, (0.25, 0.5, 1.0))):
        model = _small(split := digits(0), sigma)
        fixed = GaussianSmoothing(model, sigma, rng=random.Random(0))
        reached = [v.certificate.threat.budget if v.certificate else -1.0 for v in fixed.certify_many(split[2])]
        for radius in radii:
            asked = GaussianSmoothing(model, sigma, radius=radius, rng=random.Random(1))
            found = asked.certify_many(split[2])
            holds = [v.certificate is not None for v in found]
            both = sum(a and b >= radius for a, b in zip(holds, reached, strict=True))
            yield {
                "sigma": sigma, "radius": radius, "images": len(found), "alpha": ALPHA, "fixed_votes": 100_000,
                "fixed": sum(one >= radius for one in reached), "asked": sum(holds), "both": both,
                "votes": sum(v.calls for v in found) / len(found),
            }  # fmt: skip


def speed() -> Iterator[dict[str, Any]]:
    """Images per second end to end, against 20,000 votes for each image; the baseline is timed on 60 images."""
    model = _small(split := digits(0))
    torch.manual_seed(1)
    cells = [cohen(model, x, 20_000, binned) for x in split[2]]
    rates = {}
    for name, count in (("counted", counted), ("binned", binned)):
        start = time.process_time()
        for x in split[2][:60]:
            cohen(model, x, 20_000, count)
        rates[name] = 60 / (time.process_time() - start)
    for radius in (0.1, 0.25, 0.5):
        asked = GaussianSmoothing(
            model, 0.25, radius=radius, sampling=ImageSampling(samples=20_000), rng=random.Random(1)
        )
        asked.certify(split[2][0])
        start = time.process_time()
        found = asked.certify_many(split[2])
        mine = len(found) / (time.process_time() - start)
        right = sum(v.certificate is not None and v.label == int(y) for v, y in zip(found, split[3], strict=True))
        theirs = sum(label == int(y) and r >= radius for (label, r), y in zip(cells, split[3], strict=True))
        yield {
            "radius": radius, "sigma": 0.25, "images": len(found), "rate": mine, "rates": rates,
            "certified": right, "fixed_certified": theirs, "votes": sum(v.calls for v in found) / len(found),
        }  # fmt: skip


def _small(split: Split, sigma: float = 0.25) -> torch.nn.Module:
    torch.manual_seed(0)
    return trained(split, mlp(64, 128), Consistency(sigma, 10.0, 0.5, 8), 0, 100)


def peers() -> Iterator[dict[str, Any]]:
    """See `vision_peers`."""
    yield from vision_peers.smoothing(_small(split := digits(0)), split)
    yield from vision_peers.prediction()


def throughput() -> Iterator[dict[str, Any]]:
    """Votes per second against the bare forward pass with argmax on noise that is ready."""
    small, wide = mlp(64, 128), mlp(3072, 256)
    yield _shares("MLP 64-128-10, 8x8", small, Gaussian, (1, 8, 8), 20_000)
    yield _shares("MLP 64-128-10, linear first layer", small, LinearGaussian, (1, 8, 8), 20_000)
    yield _shares("MLP 3072-256-10, 3x32x32", wide, Gaussian, (3, 32, 32), 4000)
    yield _shares("MLP 3072-256-10, linear first layer", wide, LinearGaussian, (3, 32, 32), 4000)
    yield _shares("ResNet-20, 3x32x32", resnet20(), Gaussian, (3, 32, 32), 1000)


def _shares(
    name: str, model: torch.nn.Module, noise: Callable[[float], Noise], shape: tuple[int, ...], n: int
) -> dict[str, Any]:
    """Medians of five rounds in turn."""
    x, generator = torch.rand(shape), torch.Generator()
    ready = x + torch.randn(BATCH, *shape) * 0.25
    voter = Voter(model, noise(0.25), harmful=None, batch_size=BATCH, guard_band=1e-4)
    draw = voter.of(x[None])

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(n // BATCH):
            model(ready).argmax(1)

    ways = {
        "bare": bare,
        "ours": lambda: voter.count(draw, np.zeros(1, dtype=np.int64), n, generator),
        "counted": lambda: votes(model, x, n, counted),
        "binned": lambda: votes(model, x, n, binned),
    }
    times = rounds(ways, 5)
    shares = {way: float(np.median(times["bare"] / found)) for way, found in times.items()}
    return {"model": name, "votes": n, "bare_per_second": n / float(np.median(times["bare"])), "shares": shares}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "accuracy": lambda args: accuracy(args.seeds, args.recipes),
    "early": lambda args: early(),
    "speed": lambda args: speed(),
    "throughput": lambda args: throughput(),
    "peers": lambda args: peers(),
}


# Tables


def tables(results: Path) -> list[Table]:
    """What the committed rows say."""
    rows = read_lines(results / NAME / "smoothing.jsonl")
    by = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    found = (_accuracy(by["accuracy"]), _early(by["early"]), _speed(by["speed"]), _share(by["throughput"]))
    return [*(t for t in found if t.rows), *vision_peers.tables(by["peers"])]


def _accuracy(rows: Sequence[dict[str, Any]]) -> Table:
    lines = []
    for name in dict.fromkeys(row["recipe"] for row in rows):
        some = [row for row in rows if row["recipe"] == name]
        cells = []
        for radius in RADII:
            shares = [100 * row["correct"][str(radius)] / row["images"] for row in some]
            hits = sum(row["correct"][str(radius)] for row in some)
            ends = clopper_pearson(hits, sum(row["images"] for row in some))
            cells.append(
                f"{np.mean(shares):.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]; least {min(shares):.1f}"
            )
        lines.append([f"{name}, {len(some)} seeds", *cells])
    if lines:
        lines.append(["reference (one split, one seed)", "97.2", "96.0", "89.7", "63.0"])
    note = (
        "Perceptron 64-256-256-10, sigma 0.25, 10,000 votes, alpha 0.001. Mean over seeds, each with a split of its "
        "own; intervals as if all images were one sample."
    )
    return Table("Certified accuracy on digits, percent, by l2 radius", ["recipe", *map(str, RADII)], lines, note)


def _early(rows: Sequence[dict[str, Any]]) -> Table:
    heads = [
        "sigma",
        "radius",
        "certified by 100,000",
        "by early stopping",
        "of the former, %",
        "mean votes",
        "times fewer",
    ]
    lines = [
        [
            str(row["sigma"]), str(row["radius"]), str(row["fixed"]), str(row["asked"]),
            f"{100 * row['both'] / max(1, row['fixed']):.1f}", f"{row['votes']:.0f}",
            f"{(row['fixed_votes'] + SELECTION) / row['votes']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    images = rows[0]["images"] if rows else 0
    return Table(f"Early stopping, {images} digits, perceptron 64-128-10, alpha {ALPHA}", heads, lines)


def _speed(rows: Sequence[dict[str, Any]]) -> Table:
    heads = [
        "radius",
        "images/s",
        "times the published way",
        "times it vectorised",
        "certified, %",
        "by 20,000 votes, %",
        "mean votes",
    ]
    lines = [
        [
            str(row["radius"]), f"{row['rate']:.0f}", f"{row['rate'] / row['rates']['counted']:.1f}",
            f"{row['rate'] / row['rates']['binned']:.1f}", f"{100 * row['certified'] / row['images']:.1f}",
            f"{100 * row['fixed_certified'] / row['images']:.1f}", f"{row['votes']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    note = ""
    if rows:
        rates = rows[0]["rates"]
        note = f"20,000 votes: {rates['counted']:.1f} images/s counted in Python, {rates['binned']:.1f} vectorised."
    return Table("End to end on digits, perceptron 64-128-10, sigma 0.25, correct and certified", heads, lines, note)


def _share(rows: Sequence[dict[str, Any]]) -> Table:
    ways = {"ours": "ours", "counted": "published way", "binned": "it vectorised"}
    lines = [
        [row["model"], f"{row['bare_per_second']:.3g}", *(f"{row['shares'][way]:.2f}" for way in ways)] for row in rows
    ]
    note = "Noise is drawn fresh in all but the bare pass, which finds it ready."
    heads = ["model", "bare forward, votes/s", *ways.values()]
    return Table("Votes per second, as a share of the bare forward pass", heads, lines, note)


def main() -> None:
    """Measure some parts anew; rows of the others stay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of all tasks' rows")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / NAME / "smoothing.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        found = [{"part": part, "torch": torch.__version__, "threads": 1, **row} for row in PARTS[part](args)]
        anew = {(part, row.get("recipe")) for row in found}
        kept = [row for row in read_lines(path) if (row["part"], row.get("recipe")) not in anew]
        lines = [json.dumps(row, sort_keys=True) for row in kept + found]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n\n".join(table.markdown() for table in tables(args.results)))


if __name__ == "__main__":
    main()
