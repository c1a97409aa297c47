"""`promptguard filters`: what is bundled."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from promptguard.cli.options import configuration, out
from promptguard.score import bundled_names
from promptguard.score.manifest import read_manifest
from promptguard.score.paths import filters_dir


def filters(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """List the bundled filters."""
    with configuration():
        configs = [read_manifest(filters_dir() / name) for name in bundled_names()]
    if as_json:
        rows = [{"name": c.name, "summary": c.summary, "base": c.base.repo, "threshold": c.threshold} for c in configs]
        typer.echo(json.dumps(rows))
        return
    table = Table()
    for column in ("name", "base model", "threshold", "summary"):
        table.add_column(column)
    for config in configs:
        table.add_row(config.name, config.base.repo, f"{config.threshold:g}", config.summary)
    out.print(table)
