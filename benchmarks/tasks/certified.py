"""Certified accuracy on the paper's 120 harmful test prompts: Kumar et al. 2024, table of certified accuracy.

The certified accuracy of erase-and-check is the accuracy of the filter on clean harmful prompts, whatever the mode.
"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.tasks.common import (
    Table,
    Task,
    arguments,
    certified,
    erase,
    finish,
    flagged,
    minilm,
    passed,
    percent,
    rows_of,
)
from promptguard import load_filter

NAME = "certified"
TITLE = "Certified accuracy on harmful prompts"
PUBLISHED = {
    "GPT-3.5": "100.0",
    "Llama-3-8B": "98.3 (paper: 98)",
    "Llama-2-13B": "99.0 (paper: 99)",
    "Llama-2-7B": "93.3 (paper: 92)",
    "DistilBERT, fine-tuned": "100.0 (paper: 99)",
}
# run -> (what is shown, filter, mode, budget); minilm runs at the calibrated threshold, the others as shipped.
RUNS = {
    "minilm-suffix-20": ("suffix, 20 words", "minilm", "suffix", 20),
    "minilm-insertion-10": ("insertion, one block of 10 words", "minilm", "insertion", 10),
    "minilm-infusion-2": ("infusion, 2 words", "minilm", "infusion", 2),
    "causal-suffix": ("suffix, any number of words", "causal", "suffix", math.inf),
    "causal-wrap": ("any text before and after", "causal", "wrap", math.inf),
    "bag-infusion-10": ("infusion, 10 words", "bag", "infusion", 10),
    "bag-infusion": ("infusion, any number of words", "bag", "infusion", math.inf),
}


def run(task: Task) -> None:
    """Measure every run."""
    prompts = task.prompts()
    for name, (_, filter_, kind, budget) in RUNS.items():
        chosen = minilm() if filter_ == "minilm" else load_filter(filter_)
        task.measure(name, erase(chosen, kind, budget), prompts)


def tables(results: Path) -> list[Table]:
    """Published and measured, in percent."""
    lines = [
        [f"{name} (published)", "suffix, insertion, infusion", share, "-", "-"] for name, share in PUBLISHED.items()
    ]
    for name, (shown, filter_, _, budget) in RUNS.items():
        rows = rows_of(results / NAME / name)
        full = "unlimited" if math.isinf(budget) else budget
        lines.append([filter_, shown, percent(certified(rows, full)), percent(flagged(rows)), percent(passed(rows))])
    return [
        Table(
            "Certified accuracy, percent",
            ["filter", "against", "certified (120 harmful)", "flagged (120 harmful)", "allowed (118 safe)"],
            lines,
            "With exact 95 % intervals. Published figures are of the paper's own test prompts: the same 120 for "
            "DistilBERT, 520 for the Llama models and GPT-3.5.",
        )
    ]


if __name__ == "__main__":
    job = arguments(NAME, __doc__)
    run(job)
    finish(job, tables(job.results))
