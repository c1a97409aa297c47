"""ROC of the empirical defences over their share of compute, as the paper draws it.

The paper sweeps the share of compute of a defence, at a fixed threshold, over 120 attacked harmful prompts (GCG) and
120 safe ones. `empirical.py` measures the harmful side; here the safe side is added, at the same settings. Ours are of
as many prompts as the command's limit says.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from benchmarks.tasks.common import Table, Task, arguments, finish, minilm, rows_of
from benchmarks.tasks.defences import PUBLISHED, subject
from benchmarks.tasks.empirical import NAME as EMPIRICAL
from benchmarks.tasks.empirical import detection, kept
from promptguard.evaluate.report import Rate

NAME = "roc"
TITLE = "ROC of the defences against GCG suffixes of 20 tokens"
SWEPT = ("RandEC", "GreedyEC", "GradEC")
# AUC over the share of compute, at 20 GCG tokens: the paper's result files.
AREAS = {"RandEC": 0.995, "GreedyEC": 0.992, "GradEC": 0.922}


def run(task: Task) -> None:
    """Measure the safe prompts at every setting that `empirical.py` has for attacked ones."""
    filter_, prompts = minilm(), task.prompts("safe")
    for defence in (*SWEPT, "erase-and-check", "none"):
        for setting in PUBLISHED[defence]:
            task.measure(f"{defence}-{setting:g}", subject(defence, setting, filter_, task.seed), prompts)


def area(points: list[tuple[float, float]]) -> float:
    """Trapezoids under (false positives, detection), from (0, 0) to (1, 1)."""
    ordered = sorted([(0.0, 0.0), *points, (1.0, 1.0)])
    return sum((x - u) * (y + v) / 2 for (u, v), (x, y) in pairwise(ordered))


def tables(results: Path) -> list[Table]:
    """Area under the curve, and both ends of each sweep."""
    lengths = [one["length"] for one in kept(results / EMPIRICAL / "attacks.jsonl")]
    longest = max(lengths, default=20)
    lines = []
    for defence in SWEPT:
        ends: dict[float, tuple[Rate, Rate]] = {}
        for setting in PUBLISHED[defence]:
            folder = f"{defence}-{setting:g}"
            hit = detection(rows_of(results / EMPIRICAL / folder), longest)
            alarms = Rate.of(row["verdict"] != "safe" for row in rows_of(results / NAME / folder))
            if hit and alarms:
                ends[setting] = (alarms, hit)
        if ends:
            auc = area([(alarms.share, hit.share) for alarms, hit in ends.values()])
            first, last = min(ends), max(ends)
            cells = [f"{setting:g}: {ends[setting][0]} / {ends[setting][1]}" for setting in (first, last)]
            lines.append([defence, *cells, f"{auc:.3f}"])
            lines.append([f"{defence} (published)", "-", "-", f"{AREAS[defence]:.3f}"])
    heads = ["defence", "least compute: false positives / detection, %", "most compute", "area under the curve"]
    return [Table(f"GCG, {longest} tokens", heads, lines)]


if __name__ == "__main__":
    job = arguments(NAME, __doc__)
    run(job)
    finish(job, tables(job.results))
