"""`promptguard serve`: the OpenAI-compatible guard server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from promptguard.cli.options import configuration, out
from promptguard.errors import MissingDependency


def serve(
    upstream: Annotated[str | None, typer.Option("--upstream", help="Model behind the guard, such as URL/v1.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; PGUARD_ variables go before it.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port; default 8900, 0 is any free one.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes, each with its own models.")] = None,
    check_config: Annotated[bool, typer.Option("--check-config", help="Load everything, say so, and stop.")] = False,
) -> None:
    """Serve chat completions behind the guard, moderations and certificates."""
    with configuration():
        try:
            from promptguard.serve import launch  # noqa: PLC0415 - the extra is needed by this command only
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"serving needs {error.name}: pip install 'certified-promptguard[server]'"
            ) from None
        # Options are environment variables too: worker processes and reloads read them there.
        given = {"UPSTREAM__URL": upstream, "SERVER__HOST": host, "SERVER__PORT": port, "SERVER__WORKERS": workers}
        os.environ.update({f"PGUARD_{name}": str(value) for name, value in given.items() if value is not None})
        if config is not None:
            os.environ[launch.CONFIG_VARIABLE] = str(config)
        if check_config:
            out.print(launch.describe(), highlight=False, markup=False, soft_wrap=True)
            return
        launch.launch()
