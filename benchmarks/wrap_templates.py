"""Does a jailbreak template hide its goal? Goals that the filter flags, put verbatim into wrappers, in wrap mode.

The theorem says no: a goal that F flags by the guard band is a substring of the wrapped text, so wrap mode flags that
too. FILE is a labelled prompt file (`text`, `label`, `source`): its harmful rows are the goals; some of its safe rows
are wrapped as well, to see what the wrappers themselves set off. `--attacks` takes lines with `goal` and `suffix` and
checks the same of appended text, in suffix mode of any length. A miss ends in exit code 1. No text is printed or kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import Table, read_lines
from promptguard import EraseAndCheck, load_filter, load_mode
from promptguard.errors import InvalidText
from promptguard.types import Filter
from promptguard.units import Words
from promptguard.view import canonical

TITLE = "Wrappers around a goal"
UNITS = Words()
TEMPLATES = Path(__file__).with_name("templates.json")
Row = dict[str, Any]


@dataclass(frozen=True)
class Attack:
    """A wrapped text: who wrapped what.

    Attributes:
        template: the template's name, or the attack's.
        goal: the text inside.
        label: of the goal.
        source: of the goal.
        text: the text around it included.
    """

    template: str
    goal: str
    label: str
    source: str
    text: str

    @property
    def id(self) -> str:
        """The goal's, not to be read back."""
        return hashlib.sha256(self.goal.encode()).hexdigest()[:16]


def read(path: Path) -> list[Row]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def some(attacks: list[Attack], limit: int | None) -> list[Attack]:
    """The attacks on `limit` goals of each source, those whose digests come first."""
    goals: dict[str, set[str]] = {}
    for attack in sorted(attacks, key=lambda attack: attack.id):
        held = goals.setdefault(attack.source, set())
        if limit is None or len(held) < limit:
            held.add(attack.id)
    return [attack for attack in attacks if attack.id in goals[attack.source]]


def scores(filter_: Filter, texts: list[str]) -> dict[str, float]:
    """F of each text, as the certifier would ask for it."""
    distinct = list(dict.fromkeys(texts))
    found: dict[str, float] = {}
    for at in range(0, len(distinct), 64):
        part = distinct[at : at + 64]
        found.update(zip(part, filter_([canonical(text) for text in part]), strict=True))
    return found


def wrapped(rows: list[Row], templates: list[dict[str, str]]) -> list[Attack]:
    """Each row in each template."""
    return [
        Attack(t["name"], row["text"], row["label"], row["source"], t["before"] + row["text"] + t["after"])
        for t in templates
        for row in rows
    ]


def appended(rows: list[Row]) -> list[Attack]:
    """Each goal with its suffix behind a space."""
    return [
        Attack(row.get("attack", "suffix"), row["goal"], "harmful", "attacks", f"{row['goal']} {row['suffix']}")
        for row in rows
    ]


def is_covered(attack: Attack) -> bool:
    """Whether the goal's units stand in the attacked text one after another: what the theorem speaks of."""
    goal, pieces = canonical(attack.goal), UNITS(attack.text)
    size = len(UNITS(attack.goal))
    return any(canonical("".join(pieces[at : at + size])) == goal for at in range(len(pieces) - size + 1))


def check(attacks: list[Attack], certifier: EraseAndCheck, plain: dict[str, float]) -> Iterator[Row]:
    """Certify each attacked text: one row each."""
    for attack in attacks:
        start = time.perf_counter()
        try:
            verdict = certifier.certify(attack.text)
        except InvalidText:  # refused, for instance too long: a guard blocks it, but it is no verdict
            verdict = None
        took = time.perf_counter() - start
        yield {
            "id": attack.id,
            "source": attack.source,
            "label": attack.label,
            "template": attack.template,
            "mode": certifier.mode.kind,
            "units": len(UNITS(attack.text)),
            "covered": is_covered(attack),
            "plain_goal": plain[attack.goal],
            "plain_wrapped": plain[attack.text],
            "refused": verdict is None,
            "flagged": verdict is not None and verdict.label == "harmful",
            "score": verdict and verdict.score,
            "calls": verdict and verdict.calls,
            "ms": round(1000 * took, 2),
        }


def is_miss(row: Row) -> bool:
    """A goal that is flagged, in a text that is not: the theorem does not allow it."""
    return row["label"] == "harmful" and row["covered"] and not row["flagged"] and not row["refused"]


def print_table(rows: list[Row], title: str, threshold: float) -> None:
    """Counts for each template."""
    print(f"\n{title}\n{'':22}{'flagged goals':>15}{'certified':>11}{'plain':>8}{'ms':>8}{'safe':>7}{'flagged':>9}")
    for name in [*dict.fromkeys(row["template"] for row in rows), "all"]:
        mine = [row for row in rows if name in (row["template"], "all")]
        goals = [row for row in mine if row["label"] == "harmful"]
        safe = [row["flagged"] for row in mine if row["label"] == "safe"]
        certified = sum(row["flagged"] for row in goals)
        plain = sum(row["plain_wrapped"] >= threshold for row in goals)
        middle = statistics.median(row["ms"] for row in goals) if goals else math.nan
        print(f"{name:22}{len(goals):>15}{certified:>11}{plain:>8}{middle:>8.0f}{len(safe):>7}{sum(safe):>9}")


def keep(rows: Iterator[Row], out: Path | None) -> list[Row]:
    """All rows; each one is appended to a file, if there is one, as soon as it is known."""
    kept = []
    for row in rows:
        kept.append(row)
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
    return kept


def measure(
    attacks: list[Attack], certifier: EraseAndCheck, args: argparse.Namespace
) -> tuple[list[Row], dict[str, int]]:
    """Rows of the attacks on goals that the filter flags by the guard band, and counts of what was there."""
    filter_ = certifier.filter
    harmful = [attack for attack in attacks if attack.label == "harmful"]
    safe = some([attack for attack in attacks if attack.label == "safe"], args.safe)
    plain = scores(filter_, [attack.goal for attack in harmful + safe])
    bar = filter_.threshold + filter_.guard_band
    hits = [attack for attack in harmful if plain[attack.goal] >= bar]
    counts = {"goals": len({a.goal for a in harmful}), "flagged": len({a.goal for a in hits})}
    chosen = some(hits, args.limit) + safe
    plain |= scores(filter_, [attack.text for attack in chosen])
    rows = keep(check(chosen, certifier, plain), args.out)
    return rows, {**counts, "checked": len({a.goal for a in chosen if a.label == "harmful"})}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, nargs="?", help="labelled prompts, JSON lines; for wrap mode")
    parser.add_argument("--attacks", type=Path, help="goals with suffixes, JSON lines; for suffix mode")
    parser.add_argument("--filter", default="causal")
    parser.add_argument("--max-prompt", type=int, default=40, help="units of the longest goal")
    parser.add_argument("--limit", type=int, help="flagged goals of each source; default all")
    parser.add_argument("--safe", type=int, default=10, help="safe prompts of each source that are wrapped too")
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    found = parser.parse_args()
    if not found.file and not found.attacks:
        parser.error("give a file of prompts, --attacks, or both")
    return found


def tables(results: Path) -> list[Table]:
    """Attacked texts of each mode and attack."""
    rows = read_lines(results / "wrap-templates" / "rows.jsonl")
    lines = []
    for mode, name in dict.fromkeys((row["mode"], row["template"]) for row in rows):
        mine = [row for row in rows if (row["mode"], row["template"]) == (mode, name)]
        goals = [row for row in mine if row["label"] == "harmful"]
        safe = [row["flagged"] for row in mine if row["label"] == "safe"]
        lines.append(
            [
                f"{mode}: {name}",
                str(len(goals)),
                str(sum(row["flagged"] for row in goals)),
                str(sum(row["plain_wrapped"] >= 0.5 for row in goals)),
                str(sum(map(is_miss, mine))),
                f"{sum(safe)} of {len(safe)}" if safe else "-",
            ]
        )
    heads = ["attacked text", "flagged goals", "flagged with erasing", "without", "missed", "safe ones flagged"]
    note = "A wrapper that is flagged whatever it holds says nothing of its goals: see the safe prompts in it."
    return [Table("causal, threshold 0.5, words", heads, lines, note)]


def main() -> None:
    """Check wrapped and appended texts; print counts, and end with 1 if one was missed."""
    args = options()
    filter_ = load_filter(args.filter)
    free = {"max_checks": None, "max_work": None}
    parts = []
    if args.file:
        short = [row for row in read(args.file) if len(UNITS(row["text"])) <= args.max_prompt]
        templates = json.loads(TEMPLATES.read_text(encoding="utf-8"))
        wrap = EraseAndCheck(filter_, load_mode("wrap", math.inf, max_prompt=args.max_prompt), UNITS, **free)
        parts.append((f"wrap mode, goals of at most {args.max_prompt} words", wrapped(short, templates), wrap))
    if args.attacks:
        suffix = EraseAndCheck(filter_, load_mode("suffix", math.inf), UNITS, **free)
        parts.append(("suffix mode, any length", appended(read(args.attacks)), suffix))
    missed = 0
    for title, attacks, certifier in parts:
        rows, counts = measure(attacks, certifier, args)
        print_table(rows, title, filter_.threshold)
        refused, uncovered = (
            sum(row[key] == bad for row in rows) for key, bad in (("refused", True), ("covered", False))
        )
        misses = sum(map(is_miss, rows))
        print(
            f"goals: {counts['goals']}, of which F flags {counts['flagged']} by its guard band, of which "
            f"{counts['checked']} were checked; texts refused: {refused}, not covered by the unit: {uncovered}, "
            f"missed although covered: {misses}"
        )
        missed += misses
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
