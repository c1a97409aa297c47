"""A benchmark run: one row per prompt, written as it is known, so that a killed run goes on where it stopped.

The folder of a run holds `run.json`, which says what was measured (certifier, filter digest, data digest, versions,
machine), and `rows.jsonl`, which holds no prompt text. Rows of another run are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from promptguard.errors import InvalidArgument
from promptguard.evaluate.processes import Alone, Processes
from promptguard.evaluate.prompts import Prompt
from promptguard.evaluate.subject import Row, Subject

FORMAT = 2
_SAME = (
    "format", "certifier", "method", "settings", "filter", "threshold", "guard_band", "threat", "data", "versions",
)  # fmt: skip
_PACKAGES = ("certified-promptguard", "torch", "transformers", "tokenizers")


def data_digest(prompts: Iterable[Prompt]) -> str:
    """sha256 of what was measured on: ids, sources, labels and texts, in order, whatever file format held them."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.source, prompt.label, prompt.text]).encode() + b"\n")
    return digest.hexdigest()


def manifest(about: dict[str, Any], prompts: Sequence[Prompt], files: Sequence[Path] = ()) -> dict[str, Any]:
    """What `run.json` holds: two runs are comparable when their `data` and `versions` agree.

    Args:
        about: what is measured: `Subject.about`, perhaps with "command".
        prompts: what it is measured on.
        files: where the prompts came from.
    """
    sources = [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in files]
    return {
        "format": FORMAT,
        **about,
        "data": {"digest": data_digest(prompts), "files": sources, "prompts": len(prompts)},
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a file; a last line that a kill cut short is dropped from the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        path.write_bytes(complete)
    return [json.loads(line) for line in complete.splitlines()]


def run(
    subject: Subject,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    files: Sequence[Path] = (),
    workers: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Measure the prompts that the folder has no row for yet.

    Args:
        subject: what is measured.
        prompts: with different ids.
        folder: of the run; made if it is missing.
        files: where the prompts came from.
        workers: the processes that share the work; default this one alone.
        progress: called with (prompts done, all prompts of this process) before the first and after each.

    Returns:
        Every row, in the order of the prompts, the same whatever the number of processes (but for `ms`).

    Raises:
        InvalidArgument: the folder holds another run or cannot be used, or two prompts share an id.
        FilterError: as `Subject.measure`.
    """
    workers = workers or Alone()
    _refuse_twins(prompts)
    about = manifest(subject.about, prompts, files)
    try:
        _claim(folder, about, workers)
        known = {row["id"]: row for path in sorted(folder.glob("rows*.jsonl")) for row in read_rows(path)}
    except (OSError, ValueError, KeyError, TypeError) as error:  # not a folder, not ours, or damaged
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"cannot use {folder} for a run: {type(error).__name__}") from None
    # Machines need not share a disk: what one of them knows, all know, and share the rest by the same rule.
    known = {row["id"]: row for row in workers.gather(list(known.values()))}
    share = [prompt for prompt in prompts if prompt.id not in known][workers.rank :: workers.size]
    done = _measure(subject, share, _own_file(folder, workers), progress)
    known |= {row["id"]: row for row in workers.gather(done)}
    rows = [known[prompt.id] for prompt in prompts]
    _settle(folder, rows, workers)
    return rows


def _refuse_twins(prompts: Sequence[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise InvalidArgument(f"two prompts share the id {prompt.id!r}")
        seen.add(prompt.id)


def _own_file(folder: Path, workers: Processes) -> Path:
    """Where a process appends its rows: no two of them write to one file."""
    return folder / ("rows.jsonl" if workers.size == 1 else f"rows.{workers.rank}.jsonl")


def _measure(
    subject: Subject, prompts: Sequence[Prompt], path: Path, progress: Callable[[int, int], None] | None
) -> list[Row]:
    rows: list[Row] = []
    with path.open("a", encoding="utf-8") as out:
        if progress:
            progress(0, len(prompts))
        for prompt in prompts:
            row = subject.measure(prompt)
            out.write(json.dumps(row) + "\n")
            out.flush()
            rows.append(row)
            if progress:
                progress(len(rows), len(prompts))
    return rows


def _settle(folder: Path, rows: Sequence[Row], workers: Processes) -> None:
    """One file with all rows in the order of the prompts; until it is there, the parts stay."""
    if workers.rank == 0:
        whole = folder / "rows.jsonl.part"
        whole.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        whole.replace(folder / "rows.jsonl")
        for path in folder.glob("rows.*.jsonl"):
            path.unlink()
    workers.gather([])  # nobody reads the folder before it is settled


def _claim(folder: Path, about: dict[str, Any], workers: Processes) -> None:
    """Make the folder ours, or find that it is; the first process writes, so that no other reads half a file."""
    if workers.rank:
        workers.gather([])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if any(before.get(key) != about[key] for key in _SAME):
            raise InvalidArgument(
                f"{folder} holds a run with other settings, filter, data or versions: choose another folder"
            )
    else:
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if not workers.rank:
        workers.gather([])
