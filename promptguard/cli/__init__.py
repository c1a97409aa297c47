"""The `promptguard` command. Exit codes: 0 allowed, 1 blocked, 2 usage or configuration error."""

from __future__ import annotations

import typer

from promptguard.cli.audit import audit
from promptguard.cli.bench import bench, report
from promptguard.cli.calibrate import calibrate
from promptguard.cli.check import certify, check
from promptguard.cli.export import export
from promptguard.cli.filters import filters
from promptguard.cli.serve import serve

app = typer.Typer(
    name="promptguard",
    help="Guard LLM applications with a safety filter whose verdict comes with a proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("check")(check)
app.command("certify")(certify)
app.command("bench")(bench)
app.command("report")(report)
app.command("calibrate")(calibrate)
app.command("export")(export)
app.command("filters")(filters)
app.command("serve")(serve)
app.add_typer(audit, name="audit")
