"""What the tasks share: their arguments, the paper's prompts, one way to measure, and tables with published figures.

A task measures with `run`, which needs the data, and makes its tables with `tables`, which reads committed rows only.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.table import Table
from promptguard import load_filter, load_mode, load_units
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.evaluate.bench import read_rows
from promptguard.evaluate.bench import run as run_bench
from promptguard.evaluate.prompts import Prompt, read_prompts
from promptguard.evaluate.report import Rate
from promptguard.evaluate.subject import Row, Subject
from promptguard.types import Certifier, Filter

RESULTS = Path(__file__).resolve().parent.parent / "results"
PAPER = "kumar_erase_check"  # the source of the paper's 120 harmful and 118 safe test prompts in bench.jsonl
# The 2 % threshold of `minilm` under suffix erasures, from held-out training-side prompts: see benchmarks/threshold.py.
THRESHOLD = Path(__file__).resolve().parent.parent / "threshold.json"


@dataclass(frozen=True, slots=True)
class Task:
    """Where a task reads and writes.

    Attributes:
        name: of the task and of its folder.
        data: folder with bench.jsonl, attacks.jsonl, suffixes.jsonl.
        results: folder of all tasks' rows.
        limit: prompts of each label at most; None is all.
        seed: of everything that is drawn.
        extra: the task's own arguments.
    """

    name: str
    data: Path
    results: Path = RESULTS
    limit: int | None = None
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Of this task's rows."""
        return self.results / self.name

    def prompts(self, label: str | None = None, source: str | None = PAPER) -> list[Prompt]:
        """Prompts of bench.jsonl, by label and source."""
        found = [p for p in read_prompts(self.data / "bench.jsonl") if source in (None, p.source)]
        kinds = [[p for p in found if p.label == kind] for kind in ("harmful", "safe") if label in (None, kind)]
        return [prompt for kind in kinds for prompt in kind[: self.limit]]

    def measure(self, name: str, subject: Subject, prompts: Sequence[Prompt]) -> list[Row]:
        """Rows of one run, in its own folder; a run found there goes on."""
        with tqdm(desc=f"{self.name}/{name}", unit="prompt", delay=2, disable=not sys.stderr.isatty()) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return run_bench(subject, prompts, self.folder / name, progress=update)


def arguments(name: str, doc: str, **extra: dict[str, Any]) -> Task:
    """The command line of a task; keywords are further options of `argparse`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with bench.jsonl (and attacks.jsonl, suffixes.jsonl)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of all tasks' rows")
    parser.add_argument("--limit", type=int, help="prompts of each label at most")
    parser.add_argument("--seed", type=int, default=0)
    for option, settings in extra.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **settings)
    found = vars(parser.parse_args())
    common = {key: found.pop(key) for key in ("data", "results", "limit", "seed")}
    return Task(name, **common, extra=found)


def threshold() -> float:
    """The operating point of `minilm` in the paper's experiments."""
    return float(json.loads(THRESHOLD.read_text(encoding="utf-8"))["threshold"])


def erase(filter_: Filter, kind: str, budget: float, blocks: int = 1, unit: str = "word") -> Subject:
    """Erase-and-check, with the maximum over all erasures."""
    mode = load_mode(kind, budget, blocks)
    certifier = EraseAndCheck(filter_, mode, load_units(unit), early_stop=False, max_checks=None, max_work=None)
    shown = "unlimited" if math.isinf(budget) else budget
    return Subject.of(certifier, "erase", {"mode": kind, "max_erase": shown, "blocks": blocks, "unit": unit})


def drawn(make: Any, name: str, settings: dict[str, Any], seed: int, *, fast: bool = False) -> Subject:
    """A certifier that draws at random: `make(rng)` builds it; `fast` if its scores are no maxima."""
    rng = random.Random(seed)
    certifier: Certifier = make(rng)
    return Subject.of(certifier, name, settings, rng=rng, seed=seed, fast=fast)


def minilm() -> Filter:
    """The bundled encoder at the operating point of the paper's experiments."""
    return load_filter("minilm", threshold=threshold())


def rows_of(folder: Path) -> list[Row]:
    """Committed rows of one run; none if it has not been made."""
    return read_rows(folder / "rows.jsonl")


def flagged(rows: Iterable[Row], label: str = "harmful") -> Rate | None:
    """The share of a label's rows that is flagged harmful."""
    return Rate.of(row["verdict"] == "harmful" for row in rows if row["label"] == label)


def certified(rows: Iterable[Row], budget: int | str) -> Rate | None:
    """The share of harmful rows whose certificate has the full budget."""
    return Rate.of(
        row["certificate"] is not None and row["certificate"]["threat"]["budget"] == budget
        for row in rows
        if row["label"] == "harmful"
    )


def passed(rows: Iterable[Row]) -> Rate | None:
    """The share of safe rows that is allowed."""
    return Rate.of(row["verdict"] == "safe" for row in rows if row["label"] == "safe")


def seconds(rows: Iterable[Row]) -> str:
    """Mean time per prompt, in seconds."""
    times = [row["ms"] for row in rows if row["ms"] is not None]
    return f"{sum(times) / len(times) / 1000:.3g}" if times else "-"


def percent(rate: Rate | None) -> str:
    """A rate with its interval, or a dash."""
    return "-" if rate is None else str(rate)


def finish(task: Task, tables: Sequence[Table]) -> None:
    """Print the tables."""
    del task
    print("\n\n".join(table.markdown() for table in tables))
