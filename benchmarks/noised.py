"""Counts of noised texts that a filter flags, and the setting of deletion smoothing that they speak for.

The counts stand for every threshold, share eta and radius at once: a row holds, for each rate of noise and threshold,
how many of a prompt's noised versions are flagged. Exact bounds turn them into what a certifier of as many samples
would say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations, compress, pairwise, product
from pathlib import Path

import numpy as np

from promptguard import load_units
from promptguard.errors import InvalidArgument
from promptguard.evaluate.bench import manifest, read_rows
from promptguard.evaluate.prompts import Prompt
from promptguard.evaluate.subject import Row, prompt_seed
from promptguard.stats import exceedances_allowed, lower_bound, upper_bound
from promptguard.types import Filter
from promptguard.view import canonical

RADIUS = 5
ALPHA = 0.001
THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
CHOICES = (0.5, 0.6, 0.7, 0.8, 0.9)  # with less noise, 5 inserted words need nearly every version flagged
LONG = (16, 20, 25, 30)  # words from which on a text may get more noise
ETAS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)  # less would take thousands of samples to clear a safe text
MAX_BLOCKED = 0.05
MASK = " [MASK]"
_BATCH = 64

_bounds_below, _bounds_above = cache(lower_bound), cache(upper_bound)


def delete(pieces: Sequence[str], kept: Sequence[bool]) -> str:
    """What deletion leaves."""
    return canonical("".join(compress(pieces, kept)))


def mask(pieces: Sequence[str], kept: Sequence[bool]) -> str:
    """What masking leaves."""
    return canonical("".join(piece if keep else MASK for piece, keep in zip(pieces, kept, strict=True)))


NOISE: dict[str, Callable[[Sequence[str], Sequence[bool]], str]] = {"delete": delete, "mask": mask}


@dataclass(frozen=True, slots=True)
class Curves:
    """What is counted.

    Attributes:
        noise: a name in `NOISE`.
        rates: of the noise.
        draws: noised texts per prompt and rate.
        seed: of the noise; every prompt and rate has its own from it.
    """

    noise: str
    rates: Sequence[float]
    draws: int
    seed: int

    def row(self, filter_: Filter, prompt: Prompt) -> Row:
        """For each rate and threshold: noised texts that are flagged by the guard band, and that are flagged."""
        pieces = load_units("word")(prompt.text)
        known = {"": -np.inf}
        row: Row = {"id": prompt.id, "label": prompt.label, "noise": self.noise, "words": len(pieces)}
        row["draws"] = self.draws
        for rate in self.rates:
            rng = np.random.default_rng(prompt_seed(self.seed, f"{self.noise}:{rate}:{prompt.id}"))
            kept = rng.random((self.draws, len(pieces))) >= rate
            views = [NOISE[self.noise](pieces, line) for line in kept.tolist()]
            fresh = sorted({view for view in views if view not in known}, key=lambda view: (len(view), view))
            for at in range(0, len(fresh), _BATCH):
                known |= zip(fresh[at : at + _BATCH], filter_(fresh[at : at + _BATCH]), strict=True)
            scores = np.array([known[view] for view in views])
            row[f"sure {rate}"] = [int((scores >= t + filter_.guard_band).sum()) for t in THRESHOLDS]
            row[f"flagged {rate}"] = [int((scores >= t).sum()) for t in THRESHOLDS]
        return row | {"scored": len(known) - 1}

    def rows(self, filter_: Filter, prompts: Sequence[Prompt], folder: Path) -> list[Row]:
        """Rows for these prompts, written as they are known; rows that are there already are kept."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = asdict(self) | {"thresholds": THRESHOLDS}
        about = manifest({"settings": settings, "filter": filter_.digest, "guard_band": filter_.guard_band}, prompts)
        path, wanted = folder / "run.json", json.loads(json.dumps(about))
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if any(found[key] != wanted[key] for key in ("settings", "filter", "data")):
                raise InvalidArgument(f"{folder} holds other curves: choose another folder")
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        done = {row["id"]: row for row in read_rows(folder / "rows.jsonl")}
        with (folder / "rows.jsonl").open("a", encoding="utf-8") as out:
            for prompt in prompts:
                if prompt.id not in done:
                    done[prompt.id] = self.row(filter_, prompt)
                    out.write(json.dumps(done[prompt.id]) + "\n")
                    out.flush()
        return [done[prompt.id] for prompt in prompts]


def shares(rows: Sequence[Row], rate: float, threshold: float, label: str) -> list[float]:
    """For each prompt of a label, the exact bound of its share of flagged versions: harmful below, safe above."""
    at, mine = THRESHOLDS.index(threshold), [row for row in rows if row["label"] == label]
    if label == "harmful":
        return [_bounds_below(row[f"sure {rate}"][at], row["draws"], 1 - ALPHA) for row in mine]
    return [_bounds_above(row[f"flagged {rate}"][at], row["draws"], 1 - ALPHA) for row in mine]


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting, and what it does on the prompts that it was chosen on.

    Attributes:
        rates: fewest words to p from there on, as `AdaptiveDeletion` takes them.
        threshold: of the filter.
        eta: the share that decides.
        certified: harmful prompts certified against 5 inserted words.
        harmful: all of them.
        blocked: safe prompts that are not called safe.
        safe: all of them.
        allowed: how many of these may be blocked, so that with 95 % confidence at most 5 % of their kind are.
    """

    rates: dict[int, float]
    threshold: float
    eta: float
    certified: int
    harmful: int
    blocked: int
    safe: int
    allowed: int

    @property
    def merit(self) -> tuple[float, ...]:
        """Higher is better: few enough blocked; certified; fewer blocked; one rate; fewer samples; a higher bar."""
        excess = max(0, self.blocked - self.allowed)
        return (-excess, self.certified, -self.blocked, -len(self.rates), self.eta, self.threshold)


def schedules() -> list[dict[int, float]]:
    """The rates that are tried: one for all lengths, or a higher one for longer texts."""
    steps = ({1: low, words: high} for low, high in combinations(CHOICES, 2) for words in LONG)
    return [*({1: rate} for rate in CHOICES), *steps]


def choose(rows: Sequence[Row]) -> Choice:
    """The setting that certifies most harmful prompts, by the rule in `benchmarks.tasks.text_smoothing`."""
    words = {label: np.array([row["words"] for row in rows if row["label"] == label]) for label in ("harmful", "safe")}
    found = {
        (label, rate, threshold): np.array(shares(rows, rate, threshold, label))
        for label, rate, threshold in product(words, CHOICES, THRESHOLDS)
    }
    allowed = exceedances_allowed(len(words["safe"]), MAX_BLOCKED) or 0

    def tried(rates: dict[int, float], threshold: float, eta: float) -> Choice:
        proved, blocked = np.full(len(words["harmful"]), True), np.full(len(words["safe"]), False)
        for fewest, above in pairwise([*rates, math.inf]):
            rate = rates[int(fewest)]
            reached = (words["harmful"] + RADIUS >= fewest) & (words["harmful"] < above)
            proved &= ~reached | (found["harmful", rate, threshold] > eta / rate**RADIUS)
            mine = (words["safe"] >= fewest) & (words["safe"] < above)
            blocked |= mine & (found["safe", rate, threshold] >= eta)
        counts = int(proved.sum()), len(proved), int(blocked.sum()), len(blocked), allowed
        return Choice(rates, threshold, eta, *counts)

    return max((tried(*setting) for setting in product(schedules(), THRESHOLDS, ETAS)), key=lambda choice: choice.merit)
