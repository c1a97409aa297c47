"""The empirical defences of Kumar et al. 2024, section 5, at the paper's compute, and what was published of them."""

from __future__ import annotations

from benchmarks.tasks.common import drawn, erase
from promptguard import load_mode, load_units
from promptguard.certify.empirical import GradEC, GreedyEC, RandEC
from promptguard.evaluate.subject import Subject
from promptguard.types import Filter

BUDGET = 20
LENGTHS = (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20)  # tokens of the published GCG suffixes
# Detection in percent for these lengths: the paper's result files (DistilBERT, 120 prompts).
PUBLISHED: dict[str, dict[float, tuple[float, ...]]] = {
    "RandEC": {
        0.1: (100.0, 99.2, 91.7, 85.0, 81.7, 90.0, 88.3, 85.8, 83.3, 70.0, 70.8),
        0.2: (100.0, 99.2, 97.5, 99.2, 99.2, 95.8, 98.3, 99.2, 99.2, 95.0, 85.8),
        0.3: (100.0, 100.0, 99.2, 99.2, 99.2, 100.0, 99.2, 99.2, 100.0, 95.8, 95.0),
        0.4: (100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 97.5),
    },
    "GreedyEC": {
        3: (100.0, 100.0, 100.0, 100.0, 93.3, 79.2, 56.7, 35.0, 21.7, 5.0, 3.3),
        6: (100.0, 100.0, 100.0, 100.0, 100.0, 99.2, 96.7, 93.3, 80.0, 65.8, 47.5),
        9: (100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 99.2, 97.5, 95.0, 94.2),
        12: (100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 98.3),
    },
    "GradEC": {
        5: (100.0, 100.0, 91.7, 85.8, 90.8, 93.3, 90.0, 86.7, 87.5, 84.2, 77.5),
        10: (100.0, 100.0, 91.7, 87.5, 93.3, 96.7, 92.5, 94.2, 94.2, 91.7, 86.7),
        25: (100.0, 100.0, 99.2, 99.2, 96.7, 98.3, 95.0, 94.2, 94.2, 92.5, 88.3),
    },
    "erase-and-check": {BUDGET: (100.0,) * 10 + (99.2,)},
    "none": {0: (100.0, 98.3, 78.3, 37.5, 7.5, 2.5, 0.0, 0.0, 0.0, 0.0, 0.0)},
}
WHAT = {
    "RandEC": "share of erasures checked",
    "GreedyEC": "iterations",
    "GradEC": "iterations",
    "erase-and-check": "erase budget",
    "none": "the filter alone",
}


def subject(defence: str, setting: float, filter_: Filter, seed: int) -> Subject:
    """A defence around a filter, in words."""
    words = load_units("word")
    if defence == "RandEC":
        mode = load_mode("suffix", BUDGET)
        settings = {"ratio": setting, **UNIT}
        return drawn(lambda rng: RandEC(filter_, mode, words, setting, rng=rng), "rand-ec", settings, seed, fast=True)
    if defence == "GreedyEC":
        return Subject.of(
            GreedyEC(filter_, words, int(setting)), "greedy-ec", {"iterations": setting, **UNIT}, fast=True
        )
    if defence == "GradEC":
        return Subject.of(GradEC(filter_, words, int(setting)), "grad-ec", {"iterations": setting, **UNIT}, fast=True)
    return erase(filter_, "suffix", setting)


UNIT = {"mode": "suffix", "max_erase": BUDGET, "unit": "word"}
