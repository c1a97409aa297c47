"""The bundled filters on the project's own 80 prompts (`benchmarks/prompts.jsonl`): nothing else is needed to run it.

40 harmful requests and 40 safe ones, many of them about the same things, written for this file; no filter was trained
or calibrated on them. A small sample: the intervals are wide.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.table import Table
from benchmarks.tasks.common import RESULTS, Task, finish
from benchmarks.tasks.whole import measure_all, tables_of
from promptguard.evaluate.prompts import read_prompts

NAME = "own"
TITLE = "The project's own prompts"
PROMPTS = Path(__file__).resolve().parent.parent / "prompts.jsonl"


def tables(results: Path) -> list[Table]:
    """Every run at its own threshold, and at false-positive rates of its own procedure."""
    return tables_of(results / NAME)


if __name__ == "__main__":
    job = Task(NAME, PROMPTS.parent)
    measure_all(job, list(read_prompts(PROMPTS)))
    finish(job, tables(RESULTS))
