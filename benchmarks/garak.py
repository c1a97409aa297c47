"""A guard under garak: real probes against the guard as the target, and what garak counts beside what we count.

garak pins versions that the project does not, so it lives in an environment of its own, which `setup` builds:

    python -m benchmarks.garak setup .venv-garak
    python -m benchmarks.garak run --python .venv-garak/bin/python --out runs/garak

`run` starts garak there, offline, with `promptguard.middleware.garak#guarded` as the target and `shields.Up` as the
detector; the variables of `promptguard.guard.environment` choose the guard, and without them it is the default one.
Then the report's prompts are scored again here, by the same guard. Both counts must agree for every probe; if they do
not, the exit code is 1. `--out` keeps garak's report, which holds the prompts, and `comparison.json`, which holds
counts only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from promptguard.evaluate.garak import Report, compare, read_report
from promptguard.guard import Guard
from promptguard.guard.environment import VARIABLES, guard_of
from promptguard.types import Label

TITLE = "A guard under garak"
VERSION = "0.17.1"
SEED = 0  # some probes draw their prompts
TARGET = "promptguard.middleware.garak#guarded"
# Probes that need neither a model nor the network: suffixes by GCG, role-play from the wild, plain questions that
# should not be answered, requests in the past tense, invisible and look-alike letters, Base64.
PROBES = (
    "suffix.GCGCached",
    "dan.DanInTheWild",
    "donotanswer.MaliciousUses",
    "phrasing.PastTense",
    "badchars.BadCharacters",
    "encoding.InjectBase64",
)
Row = dict[str, Any]


def setup(folder: Path, installer: list[str]) -> None:
    """Build garak's environment, with this project in it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    root = Path(__file__).resolve().parent.parent
    # An older pip takes very long to choose among the versions that garak allows.
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
    packages = [f"garak=={VERSION}", "--editable", f"{root}[minilm]"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages, *installer], check=True)


def attack(python: Path, probes: list[str], out: Path) -> Path:
    """Run garak against the guard; returns its report."""
    out = out.resolve()
    homes = {f"XDG_{name}_HOME": str(out / "garak" / name.lower()) for name in ("DATA", "CONFIG", "CACHE")}
    subprocess.run(
        [
            *(str(python.absolute()), "-m", "garak"),
            *("--target_type", "function", "--target_name", TARGET, "--generations", "1", "--seed", str(SEED)),
            *("--probes", ",".join(probes), "--detectors", "shields.Up"),
            *("--report_prefix", str(out / "run")),
        ],
        # Here this file would be found under the name of their package.
        cwd=out,
        env=os.environ | homes | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return out / "run.report.jsonl"


def score(report: Report, guard: Guard) -> list[Row]:
    """The guard's own word on every prompt of the report."""
    return [
        {
            "id": prompt.id,
            "source": prompt.source,
            "verdict": str(Label.SAFE if guard.check(prompt.text).allowed else Label.HARMFUL),
        }
        for prompt in report.prompts.prompts
    ]


def run(python: Path, probes: list[str], out: Path) -> bool:
    """Attack, score again, compare; True if both agree."""
    out.mkdir(parents=True, exist_ok=True)
    report = read_report(attack(python, probes, out))
    lines = compare(report, score(report, guard_of(os.environ)))
    about = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    result = {"garak": VERSION, "seed": SEED, "guard": about or "default", "probes": [line.to_dict() for line in lines]}
    (out / "comparison.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'probe':<28} {'garak: blocked':>16} {'here: blocked':>16}")
    for line in lines:
        judged = line.evaluation.passed + line.evaluation.fails
        print(
            f"{line.evaluation.probe:<28} {f'{line.evaluation.passed} of {judged}':>16} "
            f"{f'{line.blocked} of {line.prompts}':>16}"
        )
    agree = [line.evaluation.passed == line.blocked and line.evaluation.nones == 0 for line in lines]
    return bool(lines) and all(agree)


def tables(results: Path) -> list[Table]:
    """Both counts for each probe."""
    path = results / "garak" / "comparison.json"
    if not path.exists():
        return []
    lines = []
    for line in json.loads(path.read_text(encoding="utf-8"))["probes"]:
        theirs, ours = line["garak"], line["promptguard"]
        judged = theirs["passed"] + theirs["fails"]
        blocked = [f"{theirs['passed']} of {judged}", str(theirs["nones"]), f"{ours['blocked']} of {ours['prompts']}"]
        lines.append([line["probe"], *blocked])
    heads = ["probe", "garak: blocked", "garak: no answer", "scored again here: blocked"]
    return [Table("The default guard as the target, detector shields.Up", heads, lines)]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    building = commands.add_parser("setup", help="build garak's environment")
    building.add_argument("folder", type=Path)
    building.add_argument("installer", nargs=argparse.REMAINDER, help="more for pip, for instance torch==2.13.0+cpu")
    running = commands.add_parser("run", help="run garak and compare")
    running.add_argument("--python", type=Path, required=True, help="of garak's environment")
    running.add_argument("--probes", nargs="+", default=list(PROBES))
    running.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "setup":
        setup(args.folder, args.installer)
        return 0
    return 0 if run(args.python, args.probes, args.out) else 1


if __name__ == "__main__":
    sys.exit(main())
