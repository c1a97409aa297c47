"""`promptguard audit verify`: whether an audit log is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from promptguard.cli.options import BLOCKED, configuration, err, out
from promptguard.errors import InvalidArgument
from promptguard.serve.chain import AuditError
from promptguard.serve.verify import verify

_VARIABLE = "PGUARD_AUDIT__KEY"

audit = typer.Typer(help="The server's audit log.", no_args_is_help=True)


@audit.callback()
def _group() -> None:
    """Keep `verify` a command of its own, although it is the only one."""


@audit.command("verify")
def verify_command(
    files: Annotated[list[Path], typer.Argument(help="All files of one log, in any order, the head beside the last.")],
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help=f"The log's key; default the variable {_VARIABLE}.")
    ] = None,
    lines: Annotated[int | None, typer.Option("--lines", help="Lines that it had at least, noted elsewhere.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Older files are not given.")] = False,
) -> None:
    """Find changed, missing, added and reordered lines. Exit code 0: whole, 1: not, 2: usage error."""
    with configuration():
        key = _key(key_file)
    try:
        found = verify(files, key, expected=lines, partial=partial)
    except AuditError as error:
        err.print(f"[bold red]not whole:[/] {str(error).replace('[', chr(92) + '[')}", highlight=False, soft_wrap=True)
        raise typer.Exit(BLOCKED) from None
    out.print(
        f"whole: lines {found.since} to {found.link.lines - 1}, last code {found.link.code}",
        highlight=False,
        soft_wrap=True,
    )


def _key(path: Path | None) -> bytes:
    if path is None:
        text = os.environ.get(_VARIABLE, "")
    else:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise InvalidArgument(f"cannot read --key-file: {type(error).__name__}") from None
    if not text:
        raise InvalidArgument(f"the log's key is needed: --key-file, or the variable {_VARIABLE}")
    return text.encode()
