"""The recipe of filters/bag: `python filters/bag/train.py --data PATH/train.jsonl --out filters/bag`.

Fits the weights of words (`filters/evidence/lexical.py`) in seconds and rounds them to integers. The threshold is
calibrated on the held-out tenth of the training data, and set to 0.5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parent.parent / name) for name in ("recipe", "minilm", "evidence"))

import curve
import numpy as np
import safetensors.numpy
from data import HARD, Row, digests, load_rows, split_rows
from lexical import WordPlan, fit
from noise import Noise, add_options, noise_of

from promptguard.score.arrays import packed
from promptguard.score.bag import BagFilter, load_bag

HERE = Path(__file__).resolve().parent
SUMMARY = "Harmful requests by the words that occur; monotone, so certified against added words of any number"


PLAN = WordPlan(paper_share=300.0, ridge=0.3)
SCALE = 1000.0  # integers for a weight of 1
COPIES = 4  # noised versions of each training text


def noised(rows: list[Row], noise: Noise | None) -> list[Row]:
    """The rows to fit: as they are, or some copies of each, noised apart."""
    if noise is None:
        return rows
    rng = random.Random(0)
    return [{**row, "text": noise(row["text"], rng)} for row in rows for _ in range(COPIES)]


def calibrate(weights: dict[str, int], held: list[Row], rate: float) -> dict[str, float]:
    """The total that a share `rate` of held-out safe texts exceeds, half of the weight on hard benign texts."""
    score = BagFilter(weights, unit=1.0)
    safe = [row for row in held if row["label"] == "safe"]
    totals = np.array([score.total(row["text"]) for row in safe], dtype=float)
    hard = np.array([row["source"] in HARD for row in safe])
    shares = np.where(hard, 0.5 / hard.sum(), 0.5 / (~hard).sum())
    cut = float(np.quantile(totals, 1 - rate, weights=shares, method="inverted_cdf"))
    found = np.array([score.total(row["text"]) for row in held if row["label"] == "harmful"])
    return {
        "target_rate": rate,
        "safe_texts": len(safe),
        "hard_texts": int(hard.sum()),
        "total": cut,
        "rate_hard": float(np.mean(totals[hard] > cut)),
        "rate_other": float(np.mean(totals[~hard] > cut)),
        "harmful_texts": len(found),
        "recall": float(np.mean(found > cut)),
    }


def ship(out: Path, weights: dict[str, int], unit: float, record: dict[str, Any]) -> None:
    """Write weights.safetensors and config.json."""
    out.mkdir(parents=True, exist_ok=True)
    arrays = {"entries": packed(list(weights)), "weights": np.array(list(weights.values()), dtype=np.int32)}
    content = safetensors.numpy.save(arrays, {"record": json.dumps(record, sort_keys=True)})
    (out / "weights.safetensors").write_bytes(content)
    config = {
        "name": out.name,
        "kind": "bag",
        "summary": SUMMARY,
        "threshold": 0.5,
        "unit": unit,
        "weights": {"file": "weights.safetensors", "sha256": hashlib.sha256(content).hexdigest()},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_rows(folder: Path, bench: Path) -> None:
    """Score bench.jsonl with the shipped file: eval.jsonl, one row a prompt, without its text."""
    score, rows, lines = load_bag(folder), curve.read_rows(bench), []
    for row, value in zip(rows, score([row["text"] for row in rows]), strict=True):
        name = hashlib.sha256(row["text"].encode()).hexdigest()[:16]
        lines.append(json.dumps({"id": name, "source": row["source"], "label": row["label"], "score": round(value, 6)}))
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n")


def write_card(folder: Path) -> None:
    """card.md from eval.jsonl, config.json and the record in the weights file."""
    rows = curve.read_rows(folder / "eval.jsonl")
    rows = [row | {"infusion0": row["score"], "unlimited": row["score"]} for row in rows]
    config, record = json.loads((folder / "config.json").read_text()), curve.record_of(folder)
    parts = {
        "summary": config["summary"],
        "rows": str(len(rows)),
        "recall": curve.recall_table(rows, ["unlimited"]),
        "shipped": curve.shipped_table(rows, config["threshold"], ["unlimited"]),
        "paper": curve.paper_table(rows),
        "plan": json.dumps(record["plan"]),
        "calibration": json.dumps(record["calibration"]),
        "digests": curve.digest_table(folder, record),
    }
    (folder / "card.md").write_text(curve.filled(HERE / "card_template.md", parts))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the filter")
    parser.add_argument("--bench", type=Path, help="bench.jsonl: evaluate at the end and write eval.jsonl and card.md")
    parser.add_argument("--rate", type=float, default=0.02, help="false positives to calibrate for")
    add_options(parser)
    args = parser.parse_args()
    noise = noise_of(args)
    split = split_rows(load_rows(args.data), shift=False)
    whole = {word: round(value * SCALE) for word, value in fit(noised(split.train, noise), PLAN).items()}
    weights = {word: value for word, value in whole.items() if value}
    found = calibrate(weights, split.held, args.rate)
    record = {
        "plan": {**asdict(PLAN), "scale": SCALE, "noise": noise and asdict(noise)},
        "calibration": found,
        "data": digests(args.data),
    }
    ship(args.out, weights, found["total"] + 0.5, record)  # totals are integers: the next one scores 0.5 or more
    print(f"{len(weights)} words; {json.dumps(found)}", flush=True)
    if args.bench:
        write_rows(args.out, args.bench)
        write_card(args.out)


if __name__ == "__main__":
    main()
