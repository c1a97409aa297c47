"""What a certificate costs beside one plain forward pass of the same model, at batch size 1.

For everyday prompts of several lengths, the ways below are timed in turn, in a new order each time; what counts is the
ratio to the first one within a repeat, so that a busy machine slows both. All ends of a suffix attack of any length:

* forward: the model's own forward pass on ready token tensors.
* filter: the filter on the text, one score.
* word, char: erase-and-check in that unit, all erasures in one pass.
* enumerated: erase-and-check in words by scoring every erasure; those in one batch share what they begin with.
* separate: the same, and nothing is shared.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Table, read_lines
from promptguard import EraseAndCheck, load_mode, load_units
from promptguard.score.bundled import load_bundled
from promptguard.score.causal import CausalFilter

TITLE = "One pass beside one plain forward"
LENGTHS = (10, 25, 50, 100, 200)
TARGET = 1.3
STARTS = (0, 67, 134)
PASSAGE = (
    "My sister and I are planning a week by the sea in September and we would like to bring our parents, who no longer "
    "walk very far. Could you suggest three quiet places on the coast that can be reached by train, with a short note "
    "about the weather, the beaches and the restaurants? My father likes old ships and lighthouses, my mother paints "
    "birds and flowers. We would rent a house with a garden, two bathrooms and a kitchen that is large enough to cook "
    "for eight people, since my cousins may join us for the weekend. Please add what a house like that costs for seven "
    "nights, how early one has to book it, and whether dogs are welcome. If there is a market in the town, tell me on "
    "which days it is open. It would also help to know where one can borrow bicycles and a small boat, and which walks "
    "are flat and shorter than an hour. At the end write a friendly message to the family that sums up the three "
    "places in a few sentences and asks everybody to vote for one of them before the end of the month."
)


class Plain:
    """A filter without its one-pass scoring."""

    def __init__(self, filter_: CausalFilter) -> None:
        """Keep what every filter has."""
        self._filter = filter_
        self.name, self.digest = filter_.name, filter_.digest
        self.threshold, self.guard_band = filter_.threshold, filter_.guard_band

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The filter's own scores."""
        return self._filter(texts)


def prompt(filter_: CausalFilter, tokens: int, start: int) -> str:
    """The words from a place in the passage on, as many as make `tokens` tokens."""
    words = PASSAGE.split()
    words = words[start:] + words[:start]
    sizes = [len(filter_.tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words]
    return " ".join(words[: 1 + sum(size < tokens for size in accumulate(sizes))])


def certifier(filter_: Any, unit: str) -> EraseAndCheck:
    """Erase-and-check for suffixes of any length; every erasure is looked at, as for any safe text."""
    return EraseAndCheck(filter_, load_mode("suffix", math.inf), load_units(unit), early_stop=False)


def ways(filter_: CausalFilter, text: str) -> dict[str, Callable[[], Any]]:
    """What is timed, for one text."""
    separate = copy.copy(filter_)
    separate._branches = False
    word, char = certifier(filter_, "word"), certifier(filter_, "char")
    enumerated, alone = certifier(Plain(filter_), "word"), certifier(Plain(separate), "word")
    model, ids = filter_._model, torch.tensor([filter_.tokenizer(text)["input_ids"]])

    @torch.inference_mode()
    def forward() -> Any:
        return model(input_ids=ids, use_cache=False)

    return {
        "forward": forward,
        "filter": lambda: filter_([text]),
        "word": lambda: word.certify(text),
        "char": lambda: char.certify(text),
        "enumerated": lambda: enumerated.certify(text),
        "separate": lambda: alone.certify(text),
    }


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """One call: time on the wall, and processor time of all threads, which other programs disturb less."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def ratios(times: list[float], base: list[float]) -> list[float]:
    """Quartiles of the ratios within the repeats."""
    found = [mine / other for mine, other in zip(times, base, strict=True)]
    return [round(value, 3) for value in statistics.quantiles(found, n=4)]


def measure(filter_: CausalFilter, tokens: int, threads: int, repeats: int) -> dict[str, Any]:
    """One row: times and ratios for a length."""
    torch.set_num_threads(threads)
    texts = [prompt(filter_, tokens, start) for start in STARTS]
    timed = [ways(filter_, text) for text in texts]
    names = list(timed[0])
    for calls in timed:  # the first calls fill caches
        for name in names:
            calls[name]()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    rng = random.Random(tokens)
    for repeat in range(repeats):
        calls = timed[repeat % len(timed)]
        found = {name: seconds(calls[name]) for name in rng.sample(names, len(names))}
        for name in names:
            times[name].append(found[name])
    row: dict[str, Any] = {
        "benchmark": "one_pass",
        "filter": filter_.name,
        "digest": filter_.digest[:16],
        "tokens": [len(filter_.tokenizer(text)["input_ids"]) for text in texts],
        "words": [len(load_units("word")(text)) for text in texts],
        "threads": threads,
        "repeats": repeats,
        "load": round(os.getloadavg()[0], 2),
    }
    for name in names:
        (wall, cpu), (base_wall, base_cpu) = zip(*times[name], strict=True), zip(*times["forward"], strict=True)
        row[name] = {
            "ms": round(1000 * statistics.median(wall), 2),
            "cpu_ms": round(1000 * statistics.median(cpu), 2),
            "ratio": ratios(wall, base_wall),
            "cpu_ratio": ratios(cpu, base_cpu),
        }
    return row


def show(row: dict[str, Any]) -> str:
    """A row as a line: the forward in milliseconds, the others as ratios with their quartiles."""
    cells = [f"{row['threads']:>7}{statistics.median(row['tokens']):>7.0f}{row['forward']['ms']:>11.2f} ms"]
    for name in ("filter", "word", "char", "enumerated", "separate"):
        low, middle, high = row[name]["ratio"]
        cells.append(f"{f'{middle:.2f} [{low:.2f}, {high:.2f}]':>22}")
    return "".join(cells)


def tables(results: Path) -> list[Table]:
    """Ratios to the forward, medians with quartiles."""
    lines = []
    for row in read_lines(results / "one-pass" / "rows.jsonl"):
        cells = [row[name]["ratio"] for name in ("filter", "word", "char", "enumerated", "separate")]
        shown = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for low, middle, high in cells]
        middle = f"{statistics.median(row['tokens']):.0f}"
        lines.append([middle, str(row["threads"]), f"{row['forward']['ms']:.1f}", *shown])
    heads = ["tokens", "threads", "forward, ms", "filter", "word", "char", "enumerated", "separate"]
    note = f"The target for words at 25 tokens is at most {TARGET}."
    return [Table("Times the forward, medians with quartiles", heads, lines, note)]


def main() -> None:
    """Measure every length and number of threads; print a table, and append rows to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--filter", default="causal", help="a bundled causal filter")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args()
    filter_ = load_bundled(args.filter)
    if not isinstance(filter_, CausalFilter) or args.repeats < 2:
        parser.error("the filter must be a causal one, and the repeats at least 2")
    print(
        f"{'threads':>7}{'tokens':>7}{'forward':>14}" + "".join(f"{name:>22}" for name in list(ways(filter_, "a"))[1:])
    )
    for threads in args.threads:
        for tokens in LENGTHS:
            row = measure(filter_, tokens, threads, args.repeats)
            print(show(row), flush=True)
            if args.out:
                with args.out.open("a", encoding="utf-8") as rows:
                    rows.write(json.dumps(row, sort_keys=True) + "\n")
            if tokens == 25:
                reached = row["word"]["ratio"][1] <= TARGET
                print(f"{'':14}target for words at 25 tokens, at most {TARGET}: {'met' if reached else 'not met'}")


if __name__ == "__main__":
    main()
