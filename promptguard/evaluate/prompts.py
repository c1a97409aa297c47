"""Labelled prompts from a file: one JSON object a line with `text`, `label`, and optionally `id` and `source`.

Where labels may be missing, a file whose name ends in `.txt` holds one plain text a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from promptguard.errors import InvalidArgument

_LABELS = {"harmful", "safe"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what people say of it."""

    id: str
    source: str
    label: str
    text: str


def read_prompts(path: Path, *, unlabelled: str | None = None) -> Iterator[Prompt]:
    """Read a jsonl file; an id that is missing is the line number, a source that is missing the file's name.

    Args:
        path: the file.
        unlabelled: the label of lines that have none, or a null one; None refuses such lines, and plain text.

    Raises:
        InvalidArgument: the file cannot be read, or a line is not such an object; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read {path.name}: {type(error).__name__}") from None
    for number, line in enumerate(lines, start=1):
        if unlabelled and path.suffix == ".txt" and line.strip():
            yield Prompt(str(number), path.stem, unlabelled, line)
        elif line.strip():
            yield _prompt(line, number, path, unlabelled)


def _prompt(line: str, number: int, path: Path, unlabelled: str | None) -> Prompt:
    where = f"{path.name}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        raise InvalidArgument(f"{where}: not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InvalidArgument(f"{where}: needs an object with a string `text`")
    label = unlabelled if row.get("label") is None else row["label"]
    if not isinstance(label, str) or label not in _LABELS:
        raise InvalidArgument(f"{where}: `label` must be harmful or safe")
    # A null id or source is a missing one.
    name, source = row.get("id"), row.get("source")
    return Prompt(
        id=str(number if name is None else name),
        source=path.stem if source is None else str(source),
        label=label,
        text=row["text"],
    )
