"""A file to prompts: find the format, read the rows, settle labels and ids by the rules that all formats share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from promptguard.errors import InvalidArgument
from promptguard.evaluate.prompts.containers import rows_of
from promptguard.evaluate.prompts.formats import Format, format_of
from promptguard.evaluate.prompts.records import HARMFUL, SAFE, Prompt, PromptSet, Record, Row

_Read = Sequence[tuple[Row, Record]]


def read_prompts(path: Path, *, unlabelled: str | None = None) -> Iterator[Prompt]:
    """The prompts of a file of any format that `promptguard.evaluate.prompts` lists.

    Args:
        path: the file.
        unlabelled: "harmful" or "safe", the label of a file's rows if they have none and the format implies none;
            None refuses such a file.

    Raises:
        InvalidArgument: the file cannot be read, is of no known format, breaks its rules, holds no prompt, or only
            some of its rows have labels. The message names the line and never quotes a value.
    """
    return iter(load_prompts(path, unlabelled=unlabelled).prompts)


def load_prompts(path: Path, *, unlabelled: str | None = None) -> PromptSet:
    """As `read_prompts`, with the name of the format and what became of rows that hold no prompt.

    Raises:
        InvalidArgument: as `read_prompts`.
    """
    if unlabelled not in {None, HARMFUL, SAFE}:
        raise InvalidArgument(f"unlabelled must be {HARMFUL}, {SAFE} or None")
    rows = rows_of(path)
    format_ = format_of(rows[0])
    read = [(row, format_.read(row)) for row in format_.select(rows)]
    skipped = tuple(record.behavior for _, record in read if record.text is None)
    kept = [(row, record) for row, record in read if record.text is not None]
    if not kept:
        raise InvalidArgument(f"{path.name} holds no prompts ({format_.name}, {len(skipped)} rows without one)")
    label = _label(kept, format_, path, unlabelled)
    return PromptSet(format_.name, tuple(_prompts(kept, path, label, is_log=format_.is_log)), skipped)


def _label(read: _Read, format_: Format, path: Path, unlabelled: str | None) -> str:
    """The label of rows that have none.

    Raises:
        InvalidArgument: some rows have a label and others none, or none has and nobody says which.
    """
    implied = format_.implied(path.name, unlabelled)
    bare = next((row for row, record in read if record.label is None), None)
    if bare is None:
        return HARMFUL  # not used
    labelled = next((row for row, record in read if record.label is not None), None)
    # In a sample of safe texts, rows that somebody labelled may stand among others: nothing is guessed to be harmful.
    if labelled is not None and unlabelled != SAFE:
        raise InvalidArgument(
            f"{bare.where}: has no label, and {labelled.unit} {labelled.number} has one: label all rows or none"
        )
    if implied is None:
        raise InvalidArgument(f"{bare.where}: has no label: its `label` must be {HARMFUL} or {SAFE}")
    return implied


def _prompts(read: _Read, path: Path, label: str, *, is_log: bool) -> Iterator[Prompt]:
    seen: dict[str, Row] = {}
    for row, record in read:
        text = record.text or ""
        if "\0" in text and not is_log:
            raise InvalidArgument(f"{row.where}: the text holds a NUL")
        id_ = str(row.number) if record.id is None else record.id
        if (other := seen.setdefault(id_, row)) is not row:
            raise InvalidArgument(f"{row.where}: has the id of {other.unit} {other.number}")
        yield Prompt(id_, record.source or path.stem, record.label or label, text, record.behavior)
