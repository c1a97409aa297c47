"""`promptguard export`: the results of a run as a JailbreakBench artifact."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from promptguard.cli.options import configuration, out
from promptguard.errors import InvalidArgument
from promptguard.evaluate.bench import data_digest
from promptguard.evaluate.jailbreakbench import Attack, AttackType, artifact, save_artifact
from promptguard.evaluate.prompts import load_prompts
from promptguard.evaluate.report import read_run


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of `promptguard bench`.")],
    file: Annotated[Path, typer.Argument(metavar="PROMPTS", help="The file of prompts that the run measured.")],
    target: Annotated[Path, typer.Option("--out", help="The artifact; it holds the prompts, as its format demands.")],
    method: Annotated[str, typer.Option("--method", help="Name of the attack that made the prompts.")],
    model: Annotated[str, typer.Option("--model", help="The model behind the guard, or that was attacked.")],
    kind: Annotated[
        AttackType, typer.Option("--type", help="What the attacker saw; `transfer`: the guard was not looked at.")
    ] = AttackType.TRANSFER,
) -> None:
    """Write a JailbreakBench artifact: which prompts the guard let through."""
    with configuration():
        run = read_run(folder)
        found = load_prompts(file, unlabelled="harmful")
        if data_digest(found.prompts) != run.about.data.digest:
            raise InvalidArgument(f"{file.name} is not what {folder.name} measured, or not all of it")
        threat = f", {run.about.threat.describe()}" if run.about.threat else ""
        defense = f"{run.about.filter_name}, {run.about.method}{threat}"
        about = Attack(method, model, kind, defense, datetime.datetime.now(datetime.UTC).date())
        rows = ({"id": row.id, "verdict": row.verdict} for row in run.rows)
        save_artifact(artifact(rows, found.prompts, about, unattacked=found.skipped), target)
    out.print(f"artifact: {target}", highlight=False, soft_wrap=True)
