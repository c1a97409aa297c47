"""Attacks inside certificates: every attack of the package, aimed at the guard itself, within the certified budget.

The attacks minimise the margin of the guard's own verdict: random search, greedy and evolutionary infusion, and GCG
where the filter has gradients. A success would refute the certificate, so there must be none. Unlimited budgets are
attacked with up to 40 units.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.table import Table, read_lines
from benchmarks.tasks.common import Task, arguments, finish, minilm
from promptguard import load_filter, load_mode, load_units
from promptguard.attack import load_attack
from promptguard.attack.base import Attack
from promptguard.attack.falsify import falsifiers, falsify
from promptguard.capabilities import TokenGradientFilter
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.truncation_votes import TruncationVotes
from promptguard.types import Certifier

NAME = "falsified"
TITLE = "Attacks inside certificates"
# filter, mode, budget, unit; "votes" are votes of the suffix truncations.
GUARDS: tuple[tuple[str, str, float, str], ...] = (
    ("minilm", "suffix", 20, "word"),
    ("minilm", "insertion", 10, "word"),
    ("minilm", "infusion", 2, "word"),
    ("causal", "suffix", math.inf, "word"),
    ("causal", "suffix", math.inf, "char"),
    ("causal", "wrap-boundary", math.inf, "word"),
    ("bag", "infusion", math.inf, "word"),
    ("evidence", "infusion", math.inf, "word"),
    ("minilm", "votes", 20, "word"),
)


def certifier(filter_: str, kind: str, budget: float, unit: str) -> Certifier:
    """The guard under attack, with true maxima as its margin."""
    chosen, units = minilm() if filter_ == "minilm" else load_filter(filter_), load_units(unit)
    if kind == "votes":
        return TruncationVotes(chosen, units, int(budget), 2)
    return EraseAndCheck(chosen, load_mode(kind, budget), units, early_stop=False)


def run(task: Task) -> None:
    """Attack the first certified prompts of each guard; a guard that has its rows is left out."""
    path = task.folder / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["guard"] for row in read_lines(path)}
    for guard in GUARDS:
        name = " ".join(map(str, guard))
        if name in done:
            continue
        rows = attacked(task, name, certifier(*guard))
        with path.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


def attacked(task: Task, name: str, guard: Any) -> list[dict[str, Any]]:
    """One row a prompt, without any text."""
    chosen: list[Attack] = falsifiers(queries=task.extra["queries"])
    if isinstance(guard.filter, TokenGradientFilter):
        chosen.append(load_attack("gcg", lengths=(20,), steps=2, candidates=8))
    rows: list[dict[str, Any]] = []
    prompts = iter(task.prompts("harmful"))
    with tqdm(total=task.extra["prompts"], desc=name, disable=not sys.stderr.isatty()) as bar:
        while len(rows) < task.extra["prompts"] and (prompt := next(prompts, None)):
            verdict = guard.certify(prompt.text)
            if not verdict.certificates:
                continue
            found = falsify(guard, prompt.text, verdict, chosen, random.Random(f"{task.seed}:{prompt.id}"))
            rows.append({"guard": name, "id": prompt.id, "seed": task.seed, **found.to_dict()})
            bar.update()
    return rows


def tables(results: Path) -> list[Table]:
    """Attempts and counter-examples of each guard."""
    rows = read_lines(results / NAME / "rows.jsonl")
    lines = []
    for guard in dict.fromkeys(row["guard"] for row in rows):
        mine = [row for row in rows if row["guard"] == guard]
        counts = [sum(row[key] for row in mine) for key in ("certificates", "attacks", "attempts", "calls")]
        lines.append([guard.replace("inf ", "unlimited "), *counts, sum(len(row["counter_examples"]) for row in mine)])
    heads = ["guard", "certificates", "attacks", "attacked texts", "texts scored", "counter-examples"]
    return [Table("Certificates under attack", heads, [[str(cell) for cell in line] for line in lines])]


if __name__ == "__main__":
    job = arguments(
        NAME,
        __doc__,
        prompts={"type": int, "default": 10, "help": "certified prompts attacked, of each guard"},
        queries={"type": int, "default": 60, "help": "texts that each attack asks about, roughly"},
    )
    run(job)
    finish(job, tables(job.results))
