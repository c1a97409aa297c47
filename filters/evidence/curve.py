"""Rows and card of the filter as it ships: `python filters/evidence/curve.py --bench PATH/bench.jsonl`.

Bounds come from the shipped files through promptguard's own loader, by the recurrence, for every row and budget.
`--speed` prints how long bounds take.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import safe_open

from promptguard.score.arrays import Array, read_arrays, unpacked
from promptguard.score.evidence import EvidenceFilter, load_evidence
from promptguard.stats import clopper_pearson
from promptguard.units import Words
from promptguard.view import canonical

Row = dict[str, Any]
HERE = Path(__file__).resolve().parent
BUDGETS = (0, 1, 2, 3, 5, 10)
KEYS = [*(f"infusion{budget}" for budget in BUDGETS), "unlimited"]
TITLES = {f"infusion{budget}": f"{budget} words" for budget in BUDGETS} | {"unlimited": "any number of words"}
QUANTILE = 0.98
PAPER = "kumar_erase_check"


class Bounding(Protocol):
    """A filter that bounds its score over infusion erasures."""

    def infusion_scores(self, words: list[str], budget: int) -> list[float]:
        """Bounds for budgets 0, 1, ..."""
        ...


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def pieces(text: str) -> list[str]:
    """The canonical units "word" of a text, as the certifier hands them to a filter."""
    views = (canonical(piece) for piece in Words()(text))
    return [view for view in views if view]


def bounds(score: Bounding, text: str) -> dict[str, float]:
    """Bounds of one text at every budget of `KEYS`."""
    words = pieces(text)
    found = score.infusion_scores(words, len(words))
    return {key: found[min(budget, len(words))] for key, budget in zip(KEYS, (*BUDGETS, len(words)), strict=True)}


def write_rows(folder: Path, bench: Path) -> None:
    """Score bench.jsonl with the shipped file: eval.jsonl, one row a prompt, without its text."""
    score = load_evidence(folder)
    lines = []
    for row in read_rows(bench):
        name = hashlib.sha256(row["text"].encode()).hexdigest()[:16]
        found = {key: round(value, 6) for key, value in bounds(score, row["text"]).items()}
        lines.append(json.dumps({"id": name, "source": row["source"], "label": row["label"], **found}))
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n")


def share(hits: list[bool]) -> str:
    """A share with its exact 95 % interval."""
    if not hits:
        return "null"
    span = clopper_pearson(sum(hits), len(hits))
    return f"{np.mean(hits):.3f} [{span.low:.3f}, {span.high:.3f}]"


def table(head: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def of(rows: list[Row], label: str, source: str | None = None) -> list[Row]:
    """Rows of a label, perhaps of one source."""
    return [row for row in rows if row["label"] == label and source in (None, row["source"])]


def sources(rows: list[Row], label: str) -> list[str]:
    """Sources with rows of this label."""
    return sorted({row["source"] for row in of(rows, label)})


def recall_table(rows: list[Row], keys: Sequence[str] = KEYS) -> str:
    """Certified recall per source at each budget's own 98 % quantile of the safe rows."""
    names = sources(rows, "harmful")
    lines = []
    for key in keys:
        cut = float(np.quantile([row[key] for row in of(rows, "safe")], QUANTILE, method="inverted_cdf"))
        cells = [share([row["infusion0"] > cut for row in of(rows, "harmful", name)]) for name in names]
        lines.append([TITLES[key], f"{cut:.4f}", *cells])
    return table(["infused", "threshold", *(f"{name} (n={len(of(rows, 'harmful', name))})" for name in names)], lines)


def transformer_table(path: Path) -> str:
    """The same for the transformer filter with every erasure listed, on the rows that it was measured on."""
    rows = read_rows(path)
    names = sources(rows, "harmful")
    lines = []
    for key, title, thinned in (("score", "0 words", 1), ("infusion2", "2 words", 12)):
        safe = [row for row in of(rows, "safe") if row[key] is not None]
        weights = np.array([thinned if row["source"] == "nq_open" else 1 for row in safe])
        cut = float(np.quantile([row[key] for row in safe], QUANTILE, weights=weights, method="inverted_cdf"))
        cells = [share([row["score"] > cut for row in of(rows, "harmful", name)]) for name in names]
        lines.append([title, str(len(safe)), *cells])
    return table(["infused", "safe rows", *names], lines)


def shipped_table(rows: list[Row], threshold: float, safe_keys: Sequence[str] = KEYS) -> str:
    """Detection and over-refusal per source at the shipped threshold."""
    lines = []
    for label in ("harmful", "safe"):
        for name in [*sources(rows, label), None]:
            mine = of(rows, label, name)
            keys = safe_keys if label == "safe" else ["infusion0"]
            cells = [share([row[key] >= threshold for row in mine]) for key in keys]
            lines.append([label, name or "all", str(len(mine)), *cells, *[""] * (len(safe_keys) - len(cells))])
    return table(["label", "source", "n", *(f"flagged, {TITLES[key]}" for key in safe_keys)], lines)


def paper_table(rows: list[Row]) -> str:
    """The erase-and-check paper's own test split, unlimited infusion: recall at few false positives."""
    safe = np.sort([row["unlimited"] for row in of(rows, "safe", PAPER)])[::-1]
    found = [row["infusion0"] for row in of(rows, "harmful", PAPER)]
    lines = []
    for wrong in (0, 1, 3):
        cut = safe[wrong]
        flagged = [bool(value > cut) for value in safe]
        lines.append([share(flagged), share([value > cut for value in found])])
    return table([f"false positives (n={len(safe)})", f"certified recall (n={len(found)})"], lines)


def record_of(folder: Path) -> dict[str, Any]:
    """What the recipe wrote into the header of the weights file."""
    with safe_open(folder / "weights.safetensors", "np") as file:
        return dict(json.loads(file.metadata()["record"]))


def filled(template: Path, parts: dict[str, str]) -> str:
    """A card template with its {{parts}}."""
    text = template.read_text()
    for name, value in parts.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def digest_table(folder: Path, record: dict[str, Any]) -> str:
    """sha256 of what went in and what came out."""
    files = {name: sha256(folder / name) for name in ("weights.safetensors", "eval.jsonl")}
    return table(["file", "sha256"], [[name, f"`{value}`"] for name, value in {**record["data"], **files}.items()])


def write_card(folder: Path) -> None:
    """card.md from eval.jsonl, config.json and the record in the weights file."""
    rows, record = read_rows(folder / "eval.jsonl"), record_of(folder)
    config = json.loads((folder / "config.json").read_text())
    parts = {
        "summary": config["summary"],
        "rows": str(len(rows)),
        "threshold": f"{config['threshold']:g}",
        "recall": recall_table(rows),
        "transformer": transformer_table(HERE.parent / "minilm" / "eval.jsonl"),
        "shipped": shipped_table(rows, config["threshold"]),
        "paper": paper_table(rows),
        "plan": json.dumps(record["plan"]),
        "calibration": json.dumps(record["calibration"]),
        "digests": digest_table(folder, record),
    }
    (folder / "card.md").write_text(filled(HERE / "card_template.md", parts))


def speed(folder: Path, words: int = 30, budget: int = 20) -> None:
    """Print how long bounds take for texts of so many words: as shipped, and with as many random longer patterns."""
    config = json.loads((folder / "config.json").read_text())
    arrays = read_arrays(folder / config["weights"]["file"], config["weights"]["sha256"])
    known = [name for name in unpacked(arrays["pieces.names"]) if name.isalpha()]
    rng = np.random.default_rng(0)
    for title, filled_up in (("as shipped", arrays), ("with patterns of 2 to 6 words too", with_windows(arrays, rng))):
        score = EvidenceFilter(filled_up, unit=config["unit"])
        times = []
        for _ in range(100):
            text = rng.choice(known, words).tolist()
            start = time.perf_counter()
            score.infusion_scores(text, budget)
            times.append(1000 * (time.perf_counter() - start))
        print(f"{title}, {words} words, budget {budget}: median {np.median(times):.1f} ms, worst {max(times):.1f} ms")


def with_windows(arrays: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """The shipped arrays and 50 random patterns each of 2, 3, 4, 5 and 6 words."""
    size, count, out = arrays["pieces.vectors"].shape[1], 50, dict(arrays)
    first = sum(name.endswith(".weight") for name in arrays if name.startswith("windows"))
    for g, width in enumerate(range(2, 7), first):
        out[f"windows.{g}.weight"] = rng.integers(-90, 90, (width, size, count)).astype(np.int16)
        out[f"windows.{g}.bias"] = np.zeros((width, count), dtype=np.int32)
        out[f"windows.{g}.skip"] = rng.integers(0, 131072, count).astype(np.int32)
        out[f"windows.{g}.cap"] = np.array([131072], dtype=np.int32)
    for name in ("head.bias", "head.weight", "head.direct"):
        more = np.ones((5 * count, *arrays[name].shape[1:]), dtype=np.int32)
        out[name] = np.concatenate([arrays[name], more])
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", type=Path, help="bench.jsonl; without it only the card is made again")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the filter")
    parser.add_argument("--speed", action="store_true", help="print how long bounds take, and do nothing else")
    args = parser.parse_args()
    if args.speed:
        speed(args.out)
        return
    if args.bench:
        write_rows(args.out, args.bench)
    write_card(args.out)


if __name__ == "__main__":
    main()
