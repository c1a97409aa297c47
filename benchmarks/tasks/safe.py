"""Accuracy on safe prompts and time against the erase budget: suffix, insertion, two blocks, infusion.

The 118 safe test prompts of Kumar et al. 2024 (figures of section 4); published figures from the paper's result files.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.tasks.common import Table, Task, arguments, erase, finish, minilm, passed, percent, rows_of, seconds

NAME = "safe"
TITLE = "Safe prompts: accuracy and time against the erase budget"
# mode -> (erase mode, blocks, budget -> published "allowed % / seconds" of DistilBERT, A100; None: not published)
SWEEPS: dict[str, tuple[str, int, dict[int, str | None]]] = {
    "suffix": ("suffix", 1, {0: "100 / .007", 10: "100 / .038", 20: "100 / .048", 30: "100 / .047"}),
    "insertion": (
        "insertion",
        1,
        {0: "100 / .007", 4: "98.3 / .156", 8: "98.3 / .249", 10: "98.3 / .275", 12: "98.3 / .289", 20: "98.3 / .304"}
        | {30: "98.3 / .303"},
    ),
    "two blocks": ("insertion", 2, {2: None, 4: None, 6: None}),
    "infusion": (
        "infusion",
        1,
        {0: "100 / .006", 1: "100 / .049", 2: "100 / .315", 3: "100 / 1.38", 4: "100 / 4.59", 6: "99.2 / 27.5"},
    ),
}
# Two blocks were published for Llama-2-7B only (30 prompts).
LLAMA = {2: "100 / 34.7", 4: "60 / 88.0", 6: "50 / 144.8"}


def folder(sweep: str, budget: int) -> str:
    """Of one run."""
    return f"{sweep.replace(' ', '-')}-{budget}"


def run(task: Task) -> None:
    """Measure every budget of every mode, cheap ones first."""
    prompts, filter_ = task.prompts("safe"), minilm()
    for sweep, (kind, blocks, budgets) in SWEEPS.items():
        for budget in budgets:
            task.measure(folder(sweep, budget), erase(filter_, kind, budget, blocks), prompts)


def tables(results: Path) -> list[Table]:
    """One table a mode."""
    found = []
    for sweep, (_, _, budgets) in SWEEPS.items():
        runs = {budget: rows_of(results / NAME / folder(sweep, budget)) for budget in budgets}
        checks = [
            "-" if not rows else f"{sum(row['checks'] for row in rows) / len(rows):.4g}" for rows in runs.values()
        ]
        lines = [
            ["minilm: allowed, %", *(percent(passed(rows)) for rows in runs.values())],
            ["minilm: seconds a prompt (one CPU thread, busy machine)", *(seconds(rows) for rows in runs.values())],
            ["erasures a prompt", *checks],
        ]
        if sweep == "two blocks":
            lines.append(["Llama-2-7B (published, 30 prompts, A100): % / s", *LLAMA.values()])
        else:
            lines.append(
                ["DistilBERT (published, 120 prompts, A100): % / s", *(text or "-" for text in budgets.values())]
            )
        found.append(Table(f"{sweep}, by erase budget", ["", *map(str, budgets)], lines))
    return found


if __name__ == "__main__":
    job = arguments(NAME, __doc__)
    run(job)
    finish(job, tables(job.results))
