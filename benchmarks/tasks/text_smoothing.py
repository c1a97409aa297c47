"""Deletion and mask smoothing on the paper's prompts, beside erase-and-check, in words.

The rate p, the share eta and the filter's threshold are chosen on the paper's own training-side prompts (371 harmful,
392 safe), each noised and scored by a filter that was fitted without it (`benchmarks.crossfit`). p is one rate, or a
higher one for longer texts (`AdaptiveDeletion`). A prompt counts as certified when the exact lower bound of its flagged
share, at alpha 0.001 and 1,000 samples, suffices for 5 inserted words, and as blocked unless the upper bound is below
eta. Of the settings that block so few safe prompts that, with 95 % confidence, at most 5 % of their kind are, the one
that certifies most is taken; of equals the one that blocks fewer, then one rate, the largest eta, the highest
threshold. The rule takes nothing from bench.jsonl; what it gives (`choice.json`) ran there once.

It is the third rule, and the results of the earlier two on bench.jsonl were known when it was written. For `bag`, a
looser rule on the held-out tenth of the paper's prompts gave 95.0 % certified and 3.4 % blocked. This rule, on the 45
harmful ones of that tenth and 200 safe prompts of all sources, gave 46.7 % and 0.0 % (36.7 % and 0.0 % with a single
rate): safe prompts of other sources are longer and look more harmful than the paper's. The sample was changed to the
kind of prompts that is measured for that reason, not for its result, and was fixed, with all else, before it ran on
bench.jsonl. It came out at the setting of the first rule, so its figures are the ones that were known: read them with
that in mind. Filters that take long to train are not fitted again; theirs is the sample of the second rule.

The setting then answers the paper's 120 harmful and 118 safe test prompts: asked for 5 words, where it stops early, and
with a fixed 10,000 samples. A safe prompt counts as blocked unless it is called safe; abstaining blocks. The curves use
fewer samples, and the exact bounds that these give, so they understate what is certified.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import count, product
from pathlib import Path

from benchmarks.crossfit import Unseen, cross_fitted, held_out
from benchmarks.noised import ALPHA, CHOICES, ETAS, RADIUS, THRESHOLDS, Choice, Curves, choose, shares
from benchmarks.table import Table, read_lines
from benchmarks.tasks.common import PAPER, Task, arguments, drawn, finish, flagged, percent, rows_of
from promptguard import EraseAndCheck, load_filter, load_mode, load_units
from promptguard.certify.adaptive_deletion import AdaptiveDeletion
from promptguard.certify.smoothing import Sampling
from promptguard.evaluate.bench import data_digest
from promptguard.evaluate.report import Rate
from promptguard.evaluate.subject import Row, Subject
from promptguard.types import Filter

NAME = "text-smoothing"
TITLE = "Randomized smoothing beside erase-and-check"
SAMPLES = 10_000
REFITTED = {"bag"}  # filters that a recipe makes in seconds
HELD_SAFE = 200
HELD_DRAWS = 1000
RATES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MASKS = (0.1, 0.3, 0.5, 0.7, 0.9)
SHOWN = (0.01, 0.03, 0.1, 0.2)
RADII = (1, 2, 3, 5, 10, 15)
MOST_CERTIFIED = 0.7  # the share of harmful prompts whose radius the table of all settings shows
BLOCKED = (0.0, 0.01, 0.02, 0.05, 0.1)
ENVELOPE = (
    "The largest radius that at least 70 % of the harmful prompts have, where at most so many of the safe ones are "
    "blocked: the best threshold and eta for each cell, read off the test prompts. It shows what the noise could do, "
    "not what was chosen."
)
Needed = Callable[[float, float, int], float]


def if_inserted(eta: float, rate: float, radius: int) -> float:
    """The share that deletion needs against inserted words."""
    return eta / rate**radius


def if_replaced(eta: float, rate: float, radius: int) -> float:
    """The share that deletion and masks need against replaced words."""
    return eta + 1 - rate**radius


def unseen(task: Task, name: str, filter_: Filter) -> list[Unseen]:
    """What the setting is chosen on: filters beside prompts that they were not trained on."""
    train = task.data / "train.jsonl"
    if name in REFITTED:
        return cross_fitted(train, PAPER, task.seed)
    return [held_out(filter_, train, PAPER, HELD_SAFE, task.seed)]


def chosen(task: Task, name: str, filter_: Filter) -> Choice:
    """The setting by the rule, written beside the rows with digests of what it was chosen on."""
    curves, parts, rows = Curves("delete", CHOICES, HELD_DRAWS, task.seed), unseen(task, name, filter_), []
    for number, part in enumerate(parts):
        rows += curves.rows(part.filter, part.prompts, task.folder / name / "unseen" / str(number))
    choice = choose(rows)
    about = asdict(choice) | {
        "filter": filter_.digest,
        "asked": [{"filter": part.filter.digest, "data": data_digest(part.prompts)} for part in parts],
        "seed": task.seed,
    }
    (task.folder / name / "choice.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return choice


def smoothing(task: Task, setting: Choice, radius: int | None) -> Subject:
    """Deletion smoothing at the chosen setting."""
    eta, filter_ = setting.eta, load_filter(task.extra["filter"], threshold=setting.threshold)
    sampling = Sampling(alpha=ALPHA, samples=SAMPLES)
    return drawn(
        lambda rng: AdaptiveDeletion(
            filter_, load_units("word"), radius, rates=setting.rates, eta=eta, sampling=sampling, rng=rng
        ),
        "smooth",
        {
            "rates": {str(words): rate for words, rate in setting.rates.items()},
            "eta": eta,
            "radius": radius,
            "alpha": ALPHA,
            "samples": SAMPLES,
            "threat": "infusion",
        },
        task.seed,
    )


def erasing(task: Task, kind: str, threshold: float | None) -> Subject:
    """Erase-and-check with no more scores than smoothing may take; None is the filter's own threshold."""
    filter_ = load_filter(task.extra["filter"], threshold=threshold)
    made = EraseAndCheck(filter_, load_mode(kind, RADIUS), load_units("word"), max_checks=SAMPLES)
    return Subject.of(made, "erase", {"mode": kind, "max_erase": RADIUS, "max_checks": SAMPLES}, fast=True)


def run(task: Task) -> None:
    """Choose on prompts that were not trained on, then measure."""
    prompts = task.prompts()
    name, filter_ = task.extra["filter"].replace("/", "-"), load_filter(task.extra["filter"])
    setting = chosen(task, name, filter_)
    print(setting, flush=True)
    task.measure(f"{name}/asked", smoothing(task, setting, RADIUS), prompts)
    for kind in ("insertion", "infusion"):
        task.measure(f"{name}/erase-{kind}", erasing(task, kind, None), prompts)
        task.measure(f"{name}/erase-{kind}-same", erasing(task, kind, setting.threshold), prompts)
    for noise, rates in (("delete", RATES), ("mask", MASKS)):
        Curves(noise, rates, task.extra["draws"], task.seed).rows(filter_, prompts, task.folder / name / noise)
    task.measure(f"{name}/fixed", smoothing(task, setting, None), prompts)


def blocked(rows: Iterable[Row]) -> Rate | None:
    """The share of safe rows that is not allowed."""
    return Rate.of(row["verdict"] != "safe" for row in rows if row["label"] == "safe")


def checks(rows: Iterable[Row], label: str) -> str:
    """Mean number of samples or erasures."""
    found = [row["checks"] for row in rows if row["label"] == label]
    return f"{sum(found) / len(found):.0f}" if found else "-"


def reaches(row: Row) -> bool:
    """Is the full radius certified?"""
    return row["certificate"] is not None and row["certificate"]["threat"]["budget"] >= RADIUS


def beside(folder: Path) -> Table:
    """All methods against 5 inserted words."""
    note = ""
    if (folder / "choice.json").exists():
        used = json.loads((folder / "choice.json").read_text(encoding="utf-8"))
        first, *others = used["rates"].items()
        rates = "".join([f"{first[1]}", *(f", from {words} words on {rate}" for words, rate in others)])
        held = f"{used['certified']} of {used['harmful']} certified, {used['blocked']} of {used['safe']} blocked"
        note = f"Chosen: p = {rates}; eta = {used['eta']}, threshold {used['threshold']}. There: {held}."
    lines = []
    for name, title in {
        "asked": "deletion smoothing, asked for 5 words",
        "fixed": "deletion smoothing, 10,000 samples",
        "erase-insertion": "erase-and-check, one block of 5",
        "erase-insertion-same": "the same at the threshold of smoothing",
        "erase-infusion": "erase-and-check, 5 words one by one, at most 10,000 checks",
        "erase-infusion-same": "the same at the threshold of smoothing",
    }.items():
        rows = rows_of(folder / name)
        if rows:
            proved = Rate.of(reaches(row) for row in rows if row["label"] == "harmful")
            costs = [checks(rows, "harmful"), checks(rows, "safe")]
            lines.append([title, *map(percent, (proved, flagged(rows), blocked(rows))), *costs])
    heads = ["method", "certified, %", "flagged, %", "safe blocked, %", "checks, harmful", "checks, safe"]
    return Table(f"{folder.name}: 5 inserted words", heads, lines, note)


def stopping(folder: Path) -> Table:
    """What early stopping saves, and what it loses."""
    asked, fixed = ({row["id"]: row for row in rows_of(folder / name)} for name in ("asked", "fixed"))
    harmful = [key for key, row in asked.items() if row["label"] == "harmful" and key in fixed]
    if not harmful:
        return Table("", [], [])
    whole = {key for key in harmful if reaches(fixed[key])}
    kept = Rate.of(reaches(asked[key]) for key in whole)
    kinds = {
        "harmful": harmful,
        "harmful, certified by 10,000 samples": [key for key in harmful if key in whole],
        "harmful, the others": [key for key in harmful if key not in whole],
        "safe": [key for key, row in asked.items() if row["label"] == "safe"],
    }
    lines = []
    for kind, keys in kinds.items():
        if keys:
            mean = sum(asked[key]["checks"] for key in keys) / len(keys)
            lines.append([kind, str(len(keys)), f"{mean:.0f}", f"{SAMPLES / mean:.1f}"])
    note = f"Of those certified by 10,000 samples, early stopping certifies {percent(kept)} %."
    heads = ["prompts", "number", "mean samples", "times fewer than 10,000"]
    return Table(f"{folder.name}: early stopping at alpha {ALPHA}", heads, lines, note)


def curve(rows: Sequence[Row], rates: Sequence[float], threshold: float, needed: Needed) -> Iterator[list[str]]:
    """Rate and eta against false positives and certified shares, where at most a tenth of safe prompts is blocked."""
    for rate in rates:
        low, high = (shares(rows, rate, threshold, label) for label in ("harmful", "safe"))
        for eta in SHOWN:
            false = Rate.of(bound >= eta for bound in high)
            if false is not None and false.share <= 0.1:
                proved = [sum(mu > needed(eta, rate, r) for mu in low) / max(1, len(low)) for r in RADII]
                if any(proved):
                    yield [f"{rate}", f"{eta}", f"{100 * false.share:.1f}", *(f"{100 * s:.1f}" for s in proved)]


def reach(rows: Sequence[Row], rate: float, needed: Needed) -> Iterator[str]:
    """For each share of blocked safe prompts: the largest radius that `MOST_CERTIFIED` of the harmful ones have."""
    found = dict.fromkeys(BLOCKED, -1)
    for threshold, eta in product(THRESHOLDS, ETAS):
        low, high = (shares(rows, rate, threshold, label) for label in ("harmful", "safe"))
        if not low or not high:
            continue
        false = sum(bound >= eta for bound in high) / len(high)
        mu = sorted(low, reverse=True)[math.ceil(MOST_CERTIFIED * len(low)) - 1]
        radius = next(r for r in count() if mu <= needed(eta, rate, r)) - 1
        found |= {most: radius for most in BLOCKED if false <= most and radius > found[most]}
    return (str(radius) if radius >= 0 else "-" for radius in found.values())


def tables(results: Path) -> list[Table]:
    """Tables of every filter that was measured."""
    found = []
    heads = ["rate", "eta", "safe blocked, %", *(f"{radius} words" for radius in RADII)]
    by_blocked = ["rate", *(f"{100 * share:.0f} % blocked" for share in BLOCKED)]
    for folder in sorted(path.parent for path in (results / NAME).glob("*/asked")):
        found += [beside(folder), stopping(folder)]
        about = json.loads((folder / "asked" / "run.json").read_text(encoding="utf-8"))
        threshold = about["threshold"]
        for title, name, rates, needed in (
            ("inserted words, by deletion", "delete", RATES, if_inserted),
            ("replaced words, by deletion", "delete", RATES, if_replaced),
            ("replaced words, by masks", "mask", MASKS, if_replaced),
        ):
            rows = read_lines(folder / name / "rows.jsonl")
            lines = list(curve(rows, rates, threshold, needed))
            note = "Certified share of harmful prompts in percent, by radius."
            found.append(Table(f"{folder.name}: {title}, threshold {threshold}", heads, lines, note))
            most = [[f"{rate}", *reach(rows, rate, needed)] for rate in rates if rows]
            found.append(Table(f"{folder.name}: {title}, radius against false positives", by_blocked, most, ENVELOPE))
    return [table for table in found if table.rows]


if __name__ == "__main__":
    job = arguments(
        NAME,
        __doc__,
        filter={"default": "minilm", "help": "any filter that `load_filter` knows"},
        draws={"type": int, "default": 1000, "help": "noised texts per prompt and rate in the curves"},
    )
    run(job)
    finish(job, tables(job.results))
