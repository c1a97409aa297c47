"""`promptguard filters`: what is bundled."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from promptguard.cli.options import configuration, out
from promptguard.score import bundled_names
from promptguard.score.manifest import read_entry
from promptguard.score.paths import filters_dir


def filters(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """List the bundled filters."""
    with configuration():
        entries = [read_entry(filters_dir() / name) for name in bundled_names()]
    bases = [entry.base.repo if entry.base else None for entry in entries]
    if as_json:
        rows = [
            {"name": e.name, "kind": e.kind, "summary": e.summary, "base": base, "threshold": e.threshold}
            for e, base in zip(entries, bases, strict=True)
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table()
    for column in ("name", "kind", "base model", "summary"):
        table.add_column(column)
    for entry, base in zip(entries, bases, strict=True):
        table.add_row(entry.name, entry.kind, base or "none", entry.summary)
    out.print(table)
