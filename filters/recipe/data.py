"""Training data: sources and their shares, splits, and the stream of training texts.

`train.jsonl` is given by path; `filters/corpus/*.jsonl` and the contrast grids are ours. Every source has a share of
the draws, so that HarmfulQA, MLCommons and NQ do not dominate.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augment import ASK, erased, gibberish, vary
from cleaning import doubtful, protected
from noise import Noise
from templates import contrast_rows

Row = dict[str, Any]
CORPUS = Path(__file__).resolve().parent.parent / "corpus"

# Share of the draws within a class; a source that is not named gets 0.
SHARES: dict[str, dict[str, float]] = {
    "harmful": {
        "corpus_harmful": 30,
        "short_harmful": 9,
        "kumar_erase_check": 11,
        "catqa": 11,
        "mlcommons_v05": 12,
        "harmfulqa": 8,
        "harmbench_adv_training": 6,
        "gptfuzz": 5,
        "dangerousqa": 5,
        "forbidden_questions": 4,
        "contrast_harmful": 10,
    },
    "safe": {
        "corpus_hard": 28,
        "short_hard": 9,
        "corpus_plain": 8,
        "contrast_safe": 9,
        "coconot_pref_contrast": 14,
        "mlcommons_v05": 10,
        "nq_open": 10,
        "gpteacher_roleplay": 6,
        "gsm8k": 2,
        "truthfulqa": 5,
        "fuzzyai": 5,
        "kumar_erase_check": 5,
        "dolly_subset": 3,
        "self_instruct_human": 3,
    },
}
# Held out as whole sources in experiments (`--holdout`), to mimic a shift of distribution.
SHIFT_SOURCES = {"harmbench_adv_training", "gptfuzz", "forbidden_questions", "coconot_pref_contrast", "truthfulqa"}
HARD = {"corpus_hard", "short_hard", "coconot_pref_contrast"}  # safe texts that look harmful


@dataclass
class Split:
    """Rows to train on and rows never trained on."""

    train: list[Row] = field(default_factory=list)
    held: list[Row] = field(default_factory=list)


def read_jsonl(path: Path) -> list[Row]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def load_rows(train: Path) -> list[Row]:
    """All rows as `text` (whitespace collapsed), `label`, `source`, `category`; corpus sources get names of ours."""
    rows = [dict(row) for row in read_jsonl(train)]
    for name in ("harmful", "benign"):
        for row in read_jsonl(CORPUS / f"{name}.jsonl"):
            kind = "harmful" if row["label"] == "harmful" else "hard" if row["hard"] else "plain"
            rows.append({**row, "source": f"corpus_{kind}"})
    for row in read_jsonl(CORPUS / "short.jsonl"):
        rows.append({**row, "source": "short_hard" if row["hard"] else "short_harmful"})
    for row in rows:
        row["text"] = " ".join(row["text"].split())
    return [row for row in rows if row["text"] and not protected(row)]


def digests(train: Path) -> dict[str, str]:
    """sha256 of every file that training read."""
    files = {"train.jsonl": train}
    files |= {f"corpus/{name}.jsonl": CORPUS / f"{name}.jsonl" for name in ("harmful", "benign", "short")}
    files["corpus/contrast.json"] = CORPUS / "contrast.json"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def split_rows(rows: list[Row], shift: bool, seed: int = 7) -> Split:
    """A tenth of every source at random; with `shift`, whole sources and every third corpus section too.

    Doubtful rows are dropped after the draw, so that the rule for them moves no other row between the parts.
    """
    rng = random.Random(seed)
    sections = sorted({(row["source"], row["category"]) for row in rows if row["source"].startswith("corpus")})
    held_sections = set(sections[1::3]) if shift else set()
    split = Split()
    for row in rows:
        unseen = shift and (row["source"] in SHIFT_SOURCES or (row["source"], row.get("category")) in held_sections)
        part = split.held if unseen or rng.random() < 0.1 else split.train
        if not doubtful(row):
            part.append(row)
    return split


class Stream:
    """Training texts, drawn by share; reproducible by (seed, pool number), so a killed run resumes exactly."""

    def __init__(self, rows: list[Row], seed: int, harmful: float = 0.42, noise: Noise | None = None) -> None:
        rng = random.Random(seed)
        rows = rows + contrast_rows(rng, ASK)
        self.seed, self.harmful, self.noise = seed, harmful, noise
        self.groups: dict[str, dict[str, list[Row]]] = {"harmful": defaultdict(list), "safe": defaultdict(list)}
        for row in rows:
            self.groups[row["label"]][row["source"]].append(row)
        self.salad = sorted({word for row in rows[:6000] for word in row["text"].split() if word.isalpha()})
        self.hard: list[str] = []  # erased safe texts that the model scored high (mined between stages)
        self.plans = {label: self._plan(label) for label in SHARES}

    def _plan(self, label: str) -> tuple[list[str], list[float]]:
        names = [name for name in SHARES[label] if self.groups[label][name]]
        return names, [SHARES[label][name] for name in names]

    def draw(self, rng: random.Random) -> tuple[str, int]:
        """One training text and its class (1 = harmful)."""
        label = "harmful" if rng.random() < self.harmful else "safe"
        if label == "safe" and self.hard and rng.random() < 0.2:
            return rng.choice(self.hard), 0
        names, shares = self.plans[label]
        text = rng.choice(self.groups[label][rng.choices(names, shares)[0]])["text"]
        if label == "safe":
            roll = rng.random()
            if roll < 0.02:
                return rng.choice(("", gibberish(rng, self.salad))), 0
            if roll < 0.4:
                return erased(vary(text, rng, self.salad) if rng.random() < 0.4 else text, rng), 0
        return vary(text, rng, self.salad), int(label == "harmful")

    def pool(self, number: int, size: int) -> list[tuple[str, int]]:
        """Pool `number` of `size` texts."""
        rng = random.Random(f"{self.seed}-{number}")
        drawn = (self.draw(rng) for _ in range(size))
        return [(self.noised(text, rng), label) for text, label in drawn]

    def noised(self, text: str, rng: random.Random) -> str:
        """The text as it is trained on."""
        return self.noise(text, rng) if self.noise else text

    def safe_texts(self, per_source: int, draw: float) -> Iterator[str]:
        """Safe training texts for mining erasures: at most `per_source` of each source, others for another `draw`."""
        rng = random.Random(f"{self.seed}-{draw}")
        for name in self.plans["safe"][0]:
            rows = self.groups["safe"][name]
            for row in rng.sample(rows, min(per_source, len(rows))):
                yield row["text"]
