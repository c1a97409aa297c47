"""What a client waits for: many clients at once, and checks under a time budget.

* clients: threads that certify everyday prompts of about 25 tokens, one after the other, for some seconds; with the
  filter as it is and with `promptguard.score.shared`, which merges the calls of all threads. Each cell has a warm-up.
* budgets: one check of a text of 25, 200 or 2,000 tokens with `max_seconds`, every erasure wanted, whatever was found
  so far. What counts is how much longer than its budget a check takes. "Refused" texts would have taken longer than the
  budget by themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.one_pass import PASSAGE
from benchmarks.table import Table, read_lines
from promptguard import EraseAndCheck, load_filter, load_mode, load_units
from promptguard.errors import PromptGuardError
from promptguard.score.shared import shared
from promptguard.types import Certifier, Filter

TITLE = "What a client waits for"
CLIENTS = (1, 8, 32)
SERVED = {"causal, suffix": ("causal", "suffix", math.inf), "minilm, insertion 5": ("minilm", "insertion", 5)}
FILTERS: dict[str, Callable[[], Filter]] = {
    "minilm": lambda: load_filter("minilm"),
    "minilm, screened": lambda: load_filter("minilm", screen="bfloat16"),
    "causal": lambda: load_filter("causal"),
    "bag": lambda: load_filter("bag"),
}
MODES = {
    "suffix 20": ("suffix", 20, 1),
    "insertion 20": ("insertion", 20, 1),
    "insertion 2 x 3": ("insertion", 3, 2),
    "infusion 3": ("infusion", 3, 1),
    "wrap": ("wrap", math.inf, 1),
}
BUDGETS = (0.1, 0.5, 2.0)
TOKENS = (25, 200, 2000)
ALLOWED = 1.1


def prompts(count: int, words: int) -> list[str]:
    """Cuts of a passage that begin at different words."""
    passage = PASSAGE.split() * (2 + words // 100)
    return [" ".join(passage[7 * i % 150 :][:words]) for i in range(count)]


def serve(certifier: Certifier, clients: int, seconds: float) -> tuple[list[float], float]:
    """Milliseconds of each check by so many threads, and how long they took together."""
    texts = prompts(20, 21)
    found: list[list[float]] = [[] for _ in range(clients)]
    begin = threading.Barrier(clients + 1)
    end = math.inf

    def client(number: int) -> None:
        begin.wait()
        step = 0
        while time.perf_counter() < end:
            start = time.perf_counter()
            certifier.certify(texts[(number + step) % len(texts)])
            found[number].append(1000 * (time.perf_counter() - start))
            step += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end = start + seconds
    begin.wait()
    for thread in threads:
        thread.join()
    return [each for one in found for each in one], time.perf_counter() - start


def client_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each filter with each number of clients, as it is and shared, in turn."""
    for name, (kind, mode, budget) in SERVED.items():
        plain = load_filter(kind)
        for clients in CLIENTS:
            for is_shared in (False, True):
                scope: AbstractContextManager[Filter] = shared(plain) if is_shared else nullcontext(plain)
                with scope as filter_:
                    certifier = EraseAndCheck(filter_, load_mode(mode, budget), load_units("word"))
                    serve(certifier, clients, args.seconds / 4)
                    times, whole = serve(certifier, clients, args.seconds)
                row = {"task": "clients", "filter": name, "clients": clients, "shared": is_shared}
                row |= {"checks": len(times), "p50": statistics.median(times), "per_second": len(times) / whole}
                yield row | {"p95": statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]}


def budget_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each filter, mode, length and budget."""
    for name in args.filters:
        filter_ = FILTERS[name]()
        for label, (kind, most, blocks) in MODES.items():
            mode = load_mode(kind, most, blocks)
            for seconds in BUDGETS:
                certifier = EraseAndCheck(
                    filter_,
                    mode,
                    load_units("word"),
                    max_checks=None,
                    max_work=None,
                    early_stop=False,
                    max_seconds=seconds,
                )
                for tokens in TOKENS:
                    (text,) = prompts(1, round(tokens / 1.2))
                    yield {"task": "budgets", "filter": name, "mode": label, "tokens": tokens} | _one(
                        certifier, text, seconds
                    )


def _one(certifier: Certifier, text: str, seconds: float) -> dict[str, Any]:
    start = time.perf_counter()
    checks, reached = 0, 0.0
    try:
        verdict = certifier.certify(text)
    except PromptGuardError as error:
        outcome = type(error).__name__
    else:
        outcome, checks = str(verdict.label), verdict.checks
        reached = verdict.threat.budget if verdict.threat and math.isfinite(verdict.threat.budget) else -1
    took = time.perf_counter() - start
    return {"budget": seconds, "seconds": took, "outcome": outcome, "checks": checks, "reached": reached}


def tables(results: Path) -> list[Table]:
    """Clients, and how budgets are kept."""
    rows = read_lines(results / "latency" / "rows.jsonl")
    return [_clients([row for row in rows if row["task"] == "clients"]), *_budgets(rows)]


def _clients(rows: Sequence[dict[str, Any]]) -> Table:
    lines = []
    for row in rows:
        how = "merged" if row["shared"] else "as it is"
        numbers = [f"{row['p50']:.0f}", f"{row['p95']:.0f}", f"{row['per_second']:.0f}"]
        lines.append([row["filter"], str(row["clients"]), how, *numbers, str(row["checks"])])
    threads = sorted({row["threads"] for row in rows})
    heads = ["filter and mode", "clients", "calls", "p50 ms", "p95 ms", "checks/s", "checks"]
    return Table("Clients at once", heads, lines, f"Prompts of about 25 tokens. Threads of the model: {threads}.")


def _budgets(rows: Sequence[dict[str, Any]]) -> Iterator[Table]:
    timed = [row for row in rows if row["task"] == "budgets"]
    cells = dict.fromkeys((row["filter"], row["tokens"]) for row in timed)
    lines = []
    for name, tokens in cells:
        some = [row for row in timed if (row["filter"], row["tokens"]) == (name, tokens)]
        columns = []
        for seconds in BUDGETS:
            cell = [row for row in some if row["budget"] == seconds]
            worst = max((row["seconds"] / seconds for row in cell), default=0.0)
            kept = sum(row["seconds"] <= ALLOWED * seconds for row in cell)
            refused = sum(row["outcome"] == "OutOfTime" for row in cell)
            done = sum(row["outcome"] in {"safe", "harmful"} for row in cell)
            columns.append(f"{100 * worst:.0f} %; {kept} of {len(cell)}; {done}, {refused}")
        lines.append([name, str(tokens), *columns])
    note = (
        f"Longest check in percent of its budget; how many of the modes {', '.join(MODES)} stayed within "
        f"{100 * (ALLOWED - 1):.0f} % above it; how many were done in time, and refused (the rest abstained)."
    )
    yield Table("Time budgets", ["filter", "tokens", *(f"{seconds:g} s" for seconds in BUDGETS)], lines, note)


TASKS = {"clients": client_rows, "budgets": budget_rows}


def main() -> None:
    """Measure, and append rows to a file if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--filters", nargs="+", choices=list(FILTERS), default=list(FILTERS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of clients at work in each cell")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for row in TASKS[args.task](args):
        row |= {"threads": args.threads, "torch": torch.__version__, "load": round(os.getloadavg()[0], 2)}
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
