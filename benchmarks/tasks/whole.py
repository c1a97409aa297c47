"""The whole report of the bundled filters on bench.jsonl: every mode on every prompt, then all of them side by side.

`minilm` runs as a filter of any kind does, by listing the erasures (screened in bfloat16); the others in one pass.
"""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path

from benchmarks.tasks.common import Table, Task, arguments, finish, percent
from promptguard import load_filter, load_mode, load_units
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.evaluate.report import rank, write_report
from promptguard.evaluate.report.thresholds import PERCENTS
from promptguard.evaluate.subject import Subject

NAME = "whole"
TITLE = "The bundled filters on bench.jsonl"
# run -> (filter, mode, budget)
RUNS: dict[str, tuple[str, str, float]] = {
    "minilm-plain": ("minilm", "suffix", 0),
    "minilm-suffix-20": ("minilm", "suffix", 20),
    "minilm-suffix": ("minilm", "suffix", math.inf),
    "minilm-insertion-10": ("minilm", "insertion", 10),
    "minilm-infusion-2": ("minilm", "infusion", 2),
    "causal-plain": ("causal", "suffix", 0),
    "causal-suffix": ("causal", "suffix", math.inf),
    "causal-wrap-boundary": ("causal", "wrap-boundary", math.inf),
    "evidence-plain": ("evidence", "suffix", 0),
    "evidence-infusion": ("evidence", "infusion", math.inf),
    "bag-plain": ("bag", "suffix", 0),
    "bag-infusion": ("bag", "infusion", math.inf),
}


def subject(filter_: str, kind: str, budget: float) -> Subject:
    """Erase-and-check as shipped: its threshold and its limits."""
    chosen = load_filter(filter_, screen="bfloat16") if filter_ == "minilm" else load_filter(filter_)
    certifier = EraseAndCheck(chosen, load_mode(kind, budget), load_units("word"), early_stop=False)
    shown = "unlimited" if math.isinf(budget) else budget
    return Subject.of(certifier, "erase", {"mode": kind, "max_erase": shown, "unit": "word"})


def run(task: Task) -> None:
    """Measure, write every report, then the ranking."""
    prompts = task.prompts(source=None)
    for name, (filter_, kind, budget) in RUNS.items():
        start = time.perf_counter()
        task.measure(name, subject(filter_, kind, budget), prompts)
        plain = task.folder / f"{filter_}-plain"
        write_report(task.folder / name, plain=plain)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {time.perf_counter() - start:.0f} s, {memory:.2f} GiB at most", flush=True)
    rank([task.folder / name for name in RUNS]).write(task.folder / "ranking")


def tables(results: Path) -> list[Table]:
    """Every run at its own threshold, and at false-positive rates of its own procedure."""
    folders = [results / NAME / name for name in RUNS]
    found = [folder for folder in folders if (folder / "rows.jsonl").exists()]
    if not found:
        return []
    own, chosen = [], []
    for entry in (entry for cohort in rank(found).cohorts for entry in cohort.entries):
        filter_, all_ = entry.about.filter_name, entry.overall
        costs = [f"{spread.p50:.4g} / {spread.p95:.4g}" if spread else "-" for spread in (all_.checks, all_.ms)]
        rates = [percent(rate) for rate in (all_.recall, all_.certified, all_.over_refusal)]
        own.append([filter_, entry.threat, *rates, all_.refused, *costs])
        area = "-" if all_.auc is None else f"{all_.auc:.4f}"
        chosen.append([filter_, entry.threat, area, *(percent(entry.certified_at(rate)) for rate in PERCENTS)])
    heads = ["filter", "against", "blocked, of 410 harmful", "certified", "blocked, of 2,824 safe", "refused"]
    return [
        Table(
            "At the shipped thresholds, percent",
            [*heads, "checks, p50 / p95", "ms, p50 / p95"],
            own,
            "Blocked: flagged or refused. Refused (harmful + safe): texts with more erasures than the limits allow.",
        ),
        Table(
            "Certified recall at false-positive rates of the same procedure, percent",
            ["filter", "against", "area under ROC", *(f"at {rate} %" for rate in PERCENTS)],
            chosen,
        ),
    ]


if __name__ == "__main__":
    job = arguments(NAME, __doc__)
    run(job)
    finish(job, tables(job.results))
