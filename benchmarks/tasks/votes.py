"""The majority baseline of Kumar et al. 2024 (smoothing), and the family between it and erase-and-check.

Certified accuracy on the paper's 120 harmful prompts as a function of the certified suffix length, in words, for votes
of the truncations; the price is what happens to the 118 safe ones. Published figures are of DistilBERT on 50 prompts;
their certificate claims more than a majority proves, so they are flattered.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.tasks.common import Table, Task, arguments, finish, minilm, passed, percent, rows_of
from promptguard import load_units
from promptguard.certify.truncation_votes import TruncationVotes
from promptguard.evaluate.report import Rate
from promptguard.evaluate.subject import Subject

NAME = "votes"
TITLE = "Majority votes (the smoothing baseline) beside erase-and-check"
TAUS = {10: (1, 2, 3, 6), 20: (1, 2, 3, 5, 11), 30: (1, 2, 3, 8, 16)}
SHOWN = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)
# Certified accuracy in percent at certified length 0, 1, 2, ...: result file smoothing_50.json.
PUBLISHED = {
    10: (98, 98, 96, 88, 84, 68, 0),
    20: (98, 94, 90, 86, 78, 62, 58, 46, 34, 20, 20, 0),
    30: (96, 96, 96, 92, 72, 60, 50, 46, 32, 26, 18, 14, 14, 12, 10, 6, 0),
}


def run(task: Task) -> None:
    """Measure every budget and number of votes."""
    filter_, prompts, words = minilm(), task.prompts(), load_units("word")
    for budget, taus in TAUS.items():
        for tau in taus:
            made = TruncationVotes(filter_, words, budget, tau)
            settings = {"mode": "suffix", "max_erase": budget, "tau": tau, "unit": "word"}
            task.measure(f"{budget}-{tau}", Subject.of(made, "votes", settings), prompts)


def tables(results: Path) -> list[Table]:
    """One table a budget."""
    found = []
    for budget, taus in TAUS.items():
        lengths = [length for length in SHOWN if length <= budget]
        published = [*PUBLISHED[budget], *[0] * budget]
        lines = []
        for tau in taus:
            rows = rows_of(results / NAME / f"{budget}-{tau}")
            harmful = [row["certificate"] for row in rows if row["label"] == "harmful"]
            budgets = [-1 if one is None else one["threat"]["budget"] for one in harmful]
            shares = [Rate.of(found >= length for found in budgets) for length in lengths]
            cells = ["-" if share is None else f"{100 * share.share:.1f}" for share in shares]
            lines.append([name(tau, budget), *cells, percent(passed(rows))])
        lines.append(["majority (published, 50 prompts)", *(f"{published[length]:.1f}" for length in lengths), "-"])
        heads = ["votes", *(f"{length} words" for length in lengths), "safe allowed, %"]
        found.append(Table(f"Certified accuracy, percent, by suffix length; {budget} words erased", heads, lines))
    return found


def name(tau: int, budget: int) -> str:
    """A number of votes in words."""
    kind = {1: " (erase-and-check)", (budget + 2) // 2: " (majority)"}.get(tau, "")
    return f"{tau} of {budget + 1}{kind}"


if __name__ == "__main__":
    job = arguments(NAME, __doc__)
    run(job)
    finish(job, tables(job.results))
