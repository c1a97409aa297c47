"""A benchmark run: one row per prompt, written as it is known, so that a killed run goes on where it stopped.

The folder of a run holds `run.json`, which says what was measured (certifier, filter digest, data digest, versions,
machine), and `rows.jsonl`, which holds no prompt text. Rows of another run are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from promptguard.errors import FilterError, InvalidArgument, PromptGuardError
from promptguard.evaluate.prompts import Prompt
from promptguard.types import Certifier, Label, Verdict

Row = dict[str, Any]


def manifest(settings: dict[str, Any], data: Path, filter_digest: str) -> dict[str, Any]:
    """What a run measures: two runs are comparable when all but `machine` agree."""
    return {
        "settings": settings,
        "filter": filter_digest,
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in ("certified-promptguard", "torch", "transformers", "tokenizers")},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def _row(prompt: Prompt, verdict: Verdict | None, milliseconds: float) -> Row:
    row: Row = {"id": prompt.id, "source": prompt.source, "label": prompt.label}
    if verdict is None:  # refused: it could not be checked, which blocks
        return row | {"verdict": str(Label.ABSTAIN), "score": None, "certificate": None, "checks": 0, "ms": None}
    certificate = verdict.certificate.to_dict() if verdict.certificate else None
    return row | {
        "verdict": str(verdict.label),
        "score": verdict.score,
        "certificate": certificate and {key: certificate[key] for key in ("label", "threat", "method", "confidence")},
        "checks": verdict.checks,
        "ms": round(milliseconds, 3),
    }


def measure(certifier: Certifier, prompt: Prompt) -> Row:
    """The row of one prompt; a text that cannot be checked abstains.

    Raises:
        FilterError: the filter is broken, which no row should hide.
    """
    start = time.perf_counter()
    try:
        verdict = certifier.certify(prompt.text)
    except FilterError:
        raise
    except PromptGuardError:
        verdict = None
    return _row(prompt, verdict, 1000 * (time.perf_counter() - start))


def read_rows(folder: Path) -> list[Row]:
    """The complete rows of a run; a last line that a kill cut short is dropped from the file."""
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        path.write_bytes(complete)
    return [json.loads(line) for line in complete.splitlines()]


def run(certifier: Certifier, prompts: Iterable[Prompt], folder: Path, about: dict[str, Any]) -> Iterator[Row]:
    """Measure the prompts that the folder has no row for yet; yields every row, in the order of the prompts.

    Raises:
        InvalidArgument: the folder holds another run, or two prompts share an id.
        FilterError: as `measure`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, about)
        done = {row["id"]: row for row in read_rows(folder)}
    except (OSError, ValueError, KeyError, TypeError) as error:  # not a folder, not ours, or damaged
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"cannot use {folder} for a run: {type(error).__name__}") from None
    seen: set[str] = set()
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as out:
        for prompt in prompts:
            if prompt.id in seen:
                raise InvalidArgument(f"two prompts share the id {prompt.id!r}")
            seen.add(prompt.id)
            row = done.get(prompt.id)
            if row is None:
                row = measure(certifier, prompt)
                out.write(json.dumps(row) + "\n")
                out.flush()
            yield row


def _claim(folder: Path, about: dict[str, Any]) -> None:
    path = folder / "run.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if any(before.get(key) != about[key] for key in ("settings", "filter", "data", "versions")):
            raise InvalidArgument(
                f"{folder} holds a run with other settings, filter, data or versions: choose another folder"
            )
    else:
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
