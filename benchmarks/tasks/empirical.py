"""GCG against the bundled encoder: detection by attack length, without guard and with each certifier.

As in section 5 of Kumar et al. 2024, suffixes are optimised against the filter alone and every defence then sees
them; published figures are DistilBERT's on 120 prompts. These attacks are harder than the published ones: each goes
on until the score is a twentieth of the threshold, and four tokens suffice. `minilm` was trained to call erased
prompts safe, so often only the whole prompt is flagged: RandEC has to draw that one erasure and GradEC to find it,
where a filter that flags many erasures is easier to defend at random. GreedyEC and erase-and-check find it. At the
end the search is aimed at the guard itself (adaptive): it minimises the margin of erase-and-check's own verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.tasks.common import Table, Task, arguments, drawn, erase, finish, minilm, percent, rows_of
from benchmarks.tasks.defences import BUDGET, LENGTHS, PUBLISHED, WHAT, subject
from promptguard import load_mode, load_units
from promptguard.attack.base import AttackResult, Objective
from promptguard.attack.gcg import GCG
from promptguard.attack.objective import CertifierObjective, FilterObjective
from promptguard.attack.reach import Reach
from promptguard.certify.deletion_smoothing import DeletionSmoothing
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.truncation_votes import TruncationVotes
from promptguard.evaluate.prompts import Prompt
from promptguard.evaluate.report import Rate
from promptguard.evaluate.subject import Row, Subject
from promptguard.guard.default import default_certifier
from promptguard.threat import Threat
from promptguard.types import Filter

NAME = "empirical"
TITLE = "GCG attacks: without guard, and with each certifier"
UNIT = "word"
ATTACKED = "attacked.jsonl"  # holds texts: kept out of the repository
DEPTH = 0.05  # of the threshold: where a search ends
ADAPTIVE_STEPS = 3
ADAPTIVE_PROMPTS = 30


def attack(prompt: Prompt, length: int, objective: Objective, search: GCG, seed: int) -> AttackResult:
    """One search for a suffix of `length` tokens; what it may add counts in words."""
    return search.run(objective, Reach(prompt.text, Threat("suffix", length, UNIT), load_units(UNIT)), seed)


def attacks(task: Task, filter_: Filter, lengths: Sequence[int], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """GCG against the filter alone, prompt by prompt; goes on where it was stopped."""
    path = task.extra["work"] / ATTACKED
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    known = {(one["length"], one["id"]): one for one in done}
    # A search that ends right below the threshold would make every defence look strong.
    objective = FilterObjective(filter_, threshold=filter_.threshold * DEPTH)
    bars = tqdm(total=len(lengths) * len(prompts), unit="attack", delay=2)
    with path.open("a", encoding="utf-8") as out, bars as bar:
        for length in lengths:
            search = GCG(lengths=(length,), steps=task.extra["steps"], candidates=task.extra["candidates"])
            for prompt in prompts:
                if (length, prompt.id) not in known:
                    found = attack(prompt, length, objective, search, task.seed)
                    one = {"id": prompt.id, "length": length, "text": found.text, **found.to_dict()}
                    known[length, prompt.id] = one
                    out.write(json.dumps(one) + "\n")
                    out.flush()
                bar.update()
    return [known[length, prompt.id] for length in lengths for prompt in prompts]


def attacked_prompts(prompts: Sequence[Prompt], found: Sequence[dict[str, Any]]) -> list[Prompt]:
    """The prompts themselves (length 0), then the attacked ones."""
    clean = [replace(prompt, id=f"0-{prompt.id}", source="gcg-0") for prompt in prompts]
    return clean + [
        Prompt(f"{one['length']}-{one['id']}", f"gcg-{one['length']}", "harmful", one["text"]) for one in found
    ]


def votes(filter_: Filter, tau: int) -> Subject:
    """Votes of the suffix truncations."""
    made = TruncationVotes(filter_, load_units(UNIT), BUDGET, tau)
    return Subject.of(made, "votes", {"mode": "suffix", "max_erase": BUDGET, "tau": tau, "unit": UNIT})


def smooth(filter_: Filter, rate: float, eta: float, radius: int) -> Subject:
    """Deletion smoothing against appended words."""
    words = load_units(UNIT)
    settings = {"rate": rate, "radius": radius, "eta": eta, "threat": "suffix", "unit": UNIT}
    return drawn(
        lambda rng: DeletionSmoothing(filter_, words, radius, rate=rate, eta=eta, threat="suffix", rng=rng),
        "smooth",
        settings,
        0,
    )


# Every further certifier of the package: folder -> (name, maker).
GUARDS: dict[str, tuple[str, Callable[[Filter], Subject]]] = {
    "insertion-10": (
        "erase-and-check, insertion, one block of 10 words",
        lambda filter_: erase(filter_, "insertion", 10),
    ),
    "infusion-2": ("erase-and-check, infusion, 2 words", lambda filter_: erase(filter_, "infusion", 2)),
    "votes-3": (f"votes, 3 of {BUDGET + 1} truncations", lambda filter_: votes(filter_, 3)),
    "votes-11": (f"votes, majority of {BUDGET + 1} truncations", lambda filter_: votes(filter_, 11)),
    "smooth": ("deletion smoothing, rate .7, eta .05, 5 words", lambda filter_: smooth(filter_, 0.7, 0.05, 5)),
    "default": (
        "the default guard (bag, evidence, causal), as shipped",
        lambda _: Subject.of(default_certifier(), "default", {}, fast=True),
    ),
}


def run(task: Task) -> None:
    """Attack, then let every defence see the attacked prompts, then attack the guard."""
    filter_, prompts = minilm(), task.prompts("harmful")
    task.folder.mkdir(parents=True, exist_ok=True)
    found = attacks(task, filter_, task.extra["lengths"], prompts)
    rows = [{key: value for key, value in one.items() if key != "text"} for one in found]
    keep(task.folder / "attacks.jsonl", rows)
    texts = attacked_prompts(prompts, found)
    for defence, settings in PUBLISHED.items():
        for setting in settings:
            task.measure(f"{defence}-{setting:g}", subject(defence, setting, filter_, task.seed), texts)
    last = f"gcg-{task.extra['lengths'][-1]}"
    for name, (_, make) in GUARDS.items():
        task.measure(name, make(filter_), [one for one in texts if one.source in ("gcg-0", last)])
    keep(task.folder / "adaptive.jsonl", list(adaptive(task, filter_, prompts[:ADAPTIVE_PROMPTS])))


def adaptive(task: Task, filter_: Filter, prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """GCG aimed at the verdict of erase-and-check, within its budget and beyond it."""
    guard = EraseAndCheck(filter_, load_mode("suffix", BUDGET), load_units(UNIT), early_stop=False)
    objective = CertifierObjective(guard)
    search = GCG(lengths=(BUDGET,), steps=ADAPTIVE_STEPS, candidates=8)
    for prompt in tqdm(prompts, desc="adaptive", unit="attack", delay=2):
        certificate = guard.certify(prompt.text).certificate
        if certificate is None:
            continue  # nothing is promised for this prompt
        budget = int(certificate.threat.budget)
        reach = Reach(prompt.text, Threat("suffix", budget, UNIT), load_units(UNIT))
        yield {"id": prompt.id, "certified": budget, **search.run(objective, reach, task.seed).to_dict()}


def keep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, without any text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def kept(path: Path) -> list[dict[str, Any]]:
    """Rows of `keep`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def detection(rows: Sequence[Row], length: int) -> Rate | None:
    """Attacked prompts of one length that are not let through."""
    return Rate.of(row["verdict"] != "safe" for row in rows if row["source"] == f"gcg-{length}")


def tables(results: Path) -> list[Table]:
    """One table a defence, ours beside published; then the further certifiers and the adaptive attacks."""
    folder = results / NAME
    made = kept(folder / "attacks.jsonl")
    lengths = [0, *dict.fromkeys(one["length"] for one in made)]
    found = [success_table(made, rows_of(folder / "none-0"))]
    for defence, settings in PUBLISHED.items():
        lines = []
        for setting, published in settings.items():
            rows = rows_of(folder / f"{defence}-{setting:g}")
            shares = [detection(rows, length) for length in lengths]
            lines.append([f"{setting:g}", *("-" if one is None else f"{100 * one.share:.1f}" for one in shares)])
            beside = [published[LENGTHS.index(length)] for length in lengths]
            lines.append([f"{setting:g} (published)", *(f"{value:.1f}" for value in beside)])
        heads = [WHAT[defence], *(f"{length} tokens" for length in lengths)]
        count = len({one["id"] for one in made})
        found.append(Table(f"{defence}: detected, percent of {count} prompts, by GCG tokens", heads, lines))
    longest = lengths[-1]
    lines = []
    for name, (shown, _) in GUARDS.items():
        rows = rows_of(folder / name)
        lines.append([shown, percent(detection(rows, 0)), percent(detection(rows, longest))])
    heads = ["certifier", "clean: detected, %", f"GCG, {longest} tokens: detected, %"]
    found.append(Table("Every other certifier", heads, lines))
    return [*found, adaptive_table(kept(folder / "adaptive.jsonl"))]


def success_table(made: Sequence[dict[str, Any]], alone: Sequence[Row]) -> Table:
    """How often GCG hides a prompt that the filter alone flags."""
    before = {row["id"].partition("-")[2]: row["verdict"] for row in alone if row["source"] == "gcg-0"}
    lines = []
    for length in dict.fromkeys(one["length"] for one in made):
        after = {row["id"].partition("-")[2]: row["verdict"] for row in alone if row["source"] == f"gcg-{length}"}
        rate = Rate.of(after[name] == "safe" for name, verdict in before.items() if verdict == "harmful")
        queries = sorted(one["queries"] for one in made if one["length"] == length and not one["vacuous"])
        lines.append([str(length), percent(rate), str(queries[len(queries) // 2]) if queries else "-"])
    return Table("GCG against the filter alone", ["tokens", "successful, %", "queries (median)"], lines)


def adaptive_table(made: Sequence[dict[str, Any]]) -> Table:
    """Attempts within the certified budget, of which none may succeed."""
    tried = [one for one in made if not one["vacuous"]]
    queries = sum(one["queries"] for one in tried)
    line = [str(len(tried)), str(queries), str(sum(one["success"] for one in tried))]
    return Table(
        "GCG aimed at erase-and-check itself, within the certified budget",
        ["prompts attacked", "attacked texts tried", "successes"],
        [line],
        "The theorem says that there can be no success; the attack minimises the guard's own margin.",
    )


if __name__ == "__main__":
    job = arguments(
        NAME,
        __doc__,
        lengths={"type": int, "nargs": "+", "default": [4, 10, 20], "help": "tokens of the suffixes, even, up to 20"},
        steps={"type": int, "default": 30},
        candidates={"type": int, "default": 64},
        work={"type": Path, "default": Path("runs/empirical"), "help": "where attacked texts are kept"},
    )
    run(job)
    finish(job, tables(job.results))
