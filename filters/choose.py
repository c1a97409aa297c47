"""Choose the default guard: `python filters/choose.py --data PATH/train.jsonl`.

Candidates are the bundled filters in the modes they are good at. Every member gets a share of a joint false-positive
rate of 2 % (half of the weight of the safe texts on hard benign ones, as in the filters' own calibration). The choice
with the highest certified recall, in the mean over suffix, wrap and infusion of any length, on the held-out tenth of
the training data is taken. Writes `default.json`, and `default.md` with what it reaches on the rows of `bench.jsonl` in
the filters' `eval.jsonl`; `--card` writes the latter only.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "recipe"))

import numpy as np
from data import HARD, digests, load_rows, read_jsonl, split_rows
from encoder import sha256
from report import Row, rate, sources, table

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.guard.default import Member
from promptguard.score import load_filter

HERE = Path(__file__).resolve().parent
JOINT = 0.02
SHARES = (0.0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.012, 0.014, 0.016, 0.018, 0.02)
# Cheap members first. minilm is none: suffixes of 20 words are part of what causal undoes in a twentieth of the passes.
# (filter, mode, max_erase, max_prompt, key of the certified score in its eval.jsonl)
CANDIDATES: tuple[tuple[str, str, int | str, int | None, str], ...] = (
    ("bag", "infusion", "unlimited", None, "score"),
    ("evidence", "infusion", "unlimited", None, "unlimited"),
    ("causal", "suffix", "unlimited", None, "suffix"),
    ("causal", "wrap", "unlimited", 40, "wrap"),
)
NAMES = [f"{name} {mode}" for name, mode, *_ in CANDIDATES]
# Which candidates certify against a kind of attack; a wrap with nothing before the prompt is a suffix.
CERTIFY = {"suffix": [2, 3], "wrap": [3], "infusion": [0, 1]}
PLAIN = {"bag": "score", "evidence": "infusion0", "causal": "score"}
Scores = dict[str, np.ndarray]


def member(index: int, threshold: float) -> Member:
    """A candidate at a threshold."""
    name, mode, budget, longest, _ = CANDIDATES[index]
    return Member.model_validate(
        {
            "filter": name,
            "mode": mode,
            "max_erase": budget,
            "unit": "word",
            "max_prompt": longest,
            "threshold": threshold,
        }
    )


def certified(index: int, texts: list[str]) -> np.ndarray:
    """The largest score over the erasures of each text."""
    made = member(index, 1.0).certifier()
    check = EraseAndCheck(made.filter, made.mode, made.units, early_stop=False)
    return np.array([check.certify(text).score for text in texts])


def plain(index: int, texts: list[str]) -> np.ndarray:
    """The score of each text itself."""
    filter_ = load_filter(CANDIDATES[index][0])
    return np.array([score for at in range(0, len(texts), 64) for score in filter_(texts[at : at + 64])])


def choose(safe: Scores, harmful: Scores, weights: np.ndarray) -> dict[str, float]:
    """Thresholds of the chosen members, at a joint rate of at most `JOINT`; the others are left out.

    The choice with the highest certified recall in the mean over suffix, wrap and infusion: a prompt counts for a kind
    of attack when a member that certifies against it flags the prompt.
    """
    edges = {
        name: [
            np.inf if share == 0 else np.nextafter(quantile(safe[name], 1 - share, weights), np.inf) for share in SHARES
        ]
        for name in NAMES
    }
    flagged = [np.array([safe[name] >= edge for edge in edges[name]]) for name in NAMES]
    found = [np.array([harmful[name] >= edge for edge in edges[name]]) for name in NAMES]
    fits = []
    for pick in product(range(len(SHARES)), repeat=len(NAMES)):
        if sum(SHARES[at] for at in pick) > 2 * JOINT:
            continue
        joint = np.logical_or.reduce([flagged[i][at] for i, at in enumerate(pick)])
        if weights[joint].sum() <= JOINT * weights.sum():
            hits = np.stack([found[i][at] for i, at in enumerate(pick)])
            certified_recall = np.mean([hits[members].any(0).mean() for members in CERTIFY.values()])
            fits.append((float(certified_recall), float(hits.any(0).mean()), pick))
    _, _, pick = max(fits)
    return {name: float(edges[name][at]) for name, at in zip(NAMES, pick, strict=True) if SHARES[at] > 0}


def quantile(scores: np.ndarray, share: float, weights: np.ndarray) -> float:
    """The weighted quantile of scores, one of them."""
    return float(np.quantile(scores, share, weights=weights, method="inverted_cdf"))


def write_choice(train: Path) -> None:
    """Measure the candidates on held-out training data and write default.json."""
    held = split_rows(load_rows(train), shift=False).held
    safe = [row for row in held if row["label"] == "safe"]
    hard = np.array([row["source"] in HARD for row in safe])
    weights = np.where(hard, 0.5 / hard.sum(), 0.5 / (~hard).sum())
    asked = [row["text"] for row in held if row["label"] == "harmful"]
    of_safe, of_harmful = {}, {}
    for index, name in enumerate(NAMES):
        of_safe[name] = certified(index, [row["text"] for row in safe])
        of_harmful[name] = plain(index, asked)
        print(f"{name}: scored", flush=True)
    thresholds = choose(of_safe, of_harmful, weights)
    hits = [of_harmful[name] >= edge for name, edge in thresholds.items()]
    alarms = np.any([of_safe[name] >= edge for name, edge in thresholds.items()], axis=0)
    measured = {
        "safe_texts": len(safe),
        "harmful_texts": len(asked),
        "joint_rate": float(weights[alarms].sum()),
        "recall": float(np.mean(np.any(hits, axis=0))),
        "recall_of": {name: float(np.mean(hit)) for name, hit in zip(thresholds, hits, strict=True)},
    }
    members = [
        member(index, thresholds[name]).model_dump(exclude_none=True)
        for index, name in enumerate(NAMES)
        if name in thresholds
    ]
    weights_of = {name: sha256(HERE / name / "weights.safetensors") for name, *_ in CANDIDATES}
    content = {"members": members, "held_out": measured, "data": digests(train), "weights": weights_of}
    (HERE / "default.json").write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(measured), flush=True)


def bench_rows() -> tuple[list[Row], dict[str, dict[str, Row]]]:
    """The distinct rows of bench.jsonl, and each filter's rows by id."""
    by_filter = {name: {row["id"]: row for row in read_jsonl(HERE / name / "eval.jsonl")} for name, *_ in CANDIDATES}
    shared = set.intersection(*(set(rows) for rows in by_filter.values()))
    return [row for row in by_filter["bag"].values() if row["id"] in shared], by_filter


def write_card() -> None:
    """default.md: joint and single rates on bench.jsonl from the filters' committed rows."""
    chosen = json.loads((HERE / "default.json").read_text())
    rows, by_filter = bench_rows()
    keys = {(name, mode): key for name, mode, *_, key in CANDIDATES}
    members: list[dict[str, Any]] = chosen["members"]

    def flags(row: Row, one: dict[str, Any]) -> bool:
        key = PLAIN[one["filter"]] if row["label"] == "harmful" else keys[one["filter"], one["mode"]]
        return bool(by_filter[one["filter"]][row["id"]][key] >= one["threshold"])

    lines = []
    for label in ("harmful", "safe"):
        for name in [*sources(rows, label), "all"]:
            mine = [row for row in rows if row["label"] == label and name in (row["source"], "all")]
            single = [rate([flags(row, one) for row in mine]) for one in members]
            any_ = rate([any(flags(row, one) for one in members) for row in mine])
            lines.append([label, name, str(len(mine)), any_, *single])
    heads = [f"{one['filter']}, {one['mode']} {one['max_erase']}" for one in members]
    text = (HERE / "default_template.md").read_text()
    parts = {
        "members": table(
            ["filter", "mode", "words erased", "longest prompt", "threshold"],
            [
                [o["filter"], o["mode"], str(o["max_erase"]), str(o.get("max_prompt", "any")), f"{o['threshold']:.4f}"]
                for o in members
            ],
        ),
        "rates": table(["label", "source", "n", "any", *heads], lines),
        "held_out": json.dumps(chosen["held_out"]),
    }
    for name, value in parts.items():
        text = text.replace("{{" + name + "}}", value)
    (HERE / "default.md").write_text(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="train.jsonl")
    parser.add_argument(
        "--card", action="store_true", help="write default.md again from default.json and committed rows"
    )
    args = parser.parse_args()
    if not args.card:
        if args.data is None:
            parser.error("--data is needed to choose")
        write_choice(args.data)
    write_card()


if __name__ == "__main__":
    main()
