"""The whole report of the bundled filters on bench.jsonl: every mode on every prompt, then all of them side by side.

`minilm` runs as a filter of any kind does, by listing the erasures (screened in bfloat16); the others in one pass.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tasks.common import Table, Task, arguments, finish, percent
from promptguard import load_filter, load_mode, load_units
from promptguard.certify.erase_and_check import MAX_CHECKS, EraseAndCheck
from promptguard.evaluate.prompts import Prompt
from promptguard.evaluate.report import rank, read_run, write_report
from promptguard.evaluate.report.cohorts import Entry
from promptguard.evaluate.report.plain import certified_at
from promptguard.evaluate.report.rows import Run
from promptguard.evaluate.report.thresholds import PERCENTS
from promptguard.evaluate.subject import Subject

NAME = "whole"
TITLE = "The bundled filters on bench.jsonl"
FIGURE = "whole/ranking/figures/ranking-1"
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
    # With a limit of checks, a certificate of enumerated suffixes ends where attacked texts meet the limit.
    limit = None if math.isinf(budget) else MAX_CHECKS
    mode, words = load_mode(kind, budget), load_units("word")
    certifier = EraseAndCheck(chosen, mode, words, early_stop=False, max_checks=limit)
    shown = "unlimited" if math.isinf(budget) else budget
    return Subject.of(certifier, "erase", {"mode": kind, "max_erase": shown, "unit": "word"})


def run(task: Task) -> None:
    """Measure, write every report, then the ranking."""
    measure_all(task, task.prompts(source=None))


def measure_all(task: Task, prompts: Sequence[Prompt]) -> None:
    """Every run on these prompts."""
    for name, (filter_, kind, budget) in RUNS.items():
        start = time.perf_counter()
        task.measure(name, subject(filter_, kind, budget), prompts)
        write_report(task.folder / name, plain=task.folder / f"{filter_}-plain")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {time.perf_counter() - start:.0f} s, {memory:.2f} GiB at most", flush=True)
    rank([task.folder / name for name in RUNS]).write(task.folder / "ranking")


def tables(results: Path) -> list[Table]:
    """Every run at its own threshold, and at false-positive rates of its own procedure."""
    return tables_of(results / NAME)


def tables_of(folder: Path) -> list[Table]:
    """The tables of all runs in a folder."""
    runs = {name: read_run(folder / name) for name in RUNS if (folder / name / "rows.jsonl").exists()}
    if not runs:
        return []
    entries = {
        entry.name: entry for cohort in rank([folder / name for name in runs]).cohorts for entry in cohort.entries
    }
    own = []
    for entry in (entries[name] for name in runs):
        everything = entry.overall
        spreads = (everything.checks, everything.ms)
        costs = [f"{spread.p50:.4g} / {spread.p95:.4g}" if spread else "-" for spread in spreads]
        rates = [percent(rate) for rate in (everything.recall, everything.certified, everything.over_refusal)]
        own.append([entry.about.filter_name, entry.threat, *rates, everything.refused, *costs])
    first = next(iter(entries.values())).overall
    heads = ["filter", "against", f"blocked, of {first.harmful} harmful", "certified"]
    heads += [f"blocked, of {first.safe} safe", "refused", "checks, p50 / p95", "ms, p50 / p95"]
    note = (
        "Blocked: flagged or refused. Refused (harmful + safe): texts with more erasures than the limits allow. Times: "
        "two threads or one, beside other work; they show the order of magnitude and are no comparison of filters."
    )
    found = [Table("At the shipped thresholds, percent", heads, own, note)]
    return [*found, rates_table(runs, entries), *sources_table(runs)]


def rates_table(runs: dict[str, Run], entries: dict[str, Entry]) -> Table:
    """Certified recall at false-positive rates, all sources together."""
    lines = []
    for entry in (entries[name] for name in runs):
        area = "-" if entry.overall.auc is None else f"{entry.overall.auc:.4f}"
        rates = [percent(entry.certified_at(rate)) for rate in PERCENTS]
        lines.append([entry.about.filter_name, entry.threat, area, *rates])
    heads = ["filter", "against", "area under ROC", *(f"at {rate} %" for rate in PERCENTS)]
    return Table("Certified recall at false-positive rates of the same procedure, percent", heads, lines)


def sources_table(runs: dict[str, Run]) -> list[Table]:
    """Certified recall at 2 % false positives, source by source; nothing if there is one source only."""
    sources = dict.fromkeys(row.source for run in runs.values() for row in run.rows if row.label == "harmful")
    if len(sources) < 2:
        return []
    lines = []
    for name, found in runs.items():
        points = certified_at(found, runs[f"{RUNS[name][0]}-plain"])
        at = {point.source: point.certified for point in points if point.percent == 2}
        threat = found.about.threat.describe() if found.about.threat else "-"
        lines.append([found.about.filter_name, threat, *(percent(at.get(source)) for source in sources)])
    title = "Certified recall at 2 % false positives of the same procedure, by source, percent"
    return [Table(title, ["filter", "against", *sources], lines)]


if __name__ == "__main__":
    job = arguments(NAME, __doc__)
    run(job)
    finish(job, tables(job.results))
