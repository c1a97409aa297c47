"""Files to rows: JSON lines, JSON documents, CSV (RFC 4180) and plain text, read strictly.

Refused are bytes that are not UTF-8, NUL, JSON with a key twice or a number that is none, CSV with a row longer or
shorter than its header. Nothing of a value is quoted in an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from promptguard.errors import InvalidArgument
from promptguard.evaluate.prompts.records import Row


def rows_of(path: Path) -> list[Row]:
    """The rows of a file, at least one.

    Raises:
        InvalidArgument: the file cannot be read, holds no row, or breaks the rules of its kind; the message names the
            line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidArgument(f"cannot read {path.name}: {type(error).__name__}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"cannot read {path.name}: it is not UTF-8") from None
    if (at := text.find("\0")) >= 0:
        lines = text.count("\n", 0, at)
        raise InvalidArgument(f"{_line(path, lines + 1)}: holds a NUL")
    rows = list(_KINDS.get(path.suffix.lower(), _json_lines)(path, text))
    if not rows:
        raise InvalidArgument(f"{path.name} holds no prompts")
    return rows


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines: line separators of Unicode may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = _json(line, path, number)
            if not isinstance(value, dict):
                raise InvalidArgument(f"{_line(path, number)}: is not a JSON object")
            yield Row(path.name, number, value)


def _plain(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Row(path.name, number, {"text": line.removesuffix("\r")})


def _csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] = []
    end = 0
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not cells:
                continue
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise InvalidArgument(f"{_line(path, start)}: two columns share a name")
                continue
            if len(cells) != len(header):
                raise InvalidArgument(f"{_line(path, start)}: {len(cells)} cells under {len(header)} columns")
            yield Row(path.name, start, dict(zip(header, cells, strict=True)))
    except csv.Error:
        raise InvalidArgument(f"{_line(path, end + 1)}: is not CSV, for instance a quote that does not end") from None


def _document(path: Path, text: str) -> Iterator[Row]:
    """The entries of a JSON document: a list, a JailbreakBench artifact, or HarmBench's test cases."""
    value = _json(text, path) if text.strip() else []
    for number, entry in enumerate(_entries(value, path), start=1):
        # A list of texts is plain text in another dress.
        values = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(values, dict):
            raise InvalidArgument(f"{path.name}, entry {number}: is not a JSON object")
        yield Row(path.name, number, values, unit="entry")


def _entries(value: Any, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path.name}: is not a JSON list or object")
    jailbreaks, parameters = value.get("jailbreaks"), value.get("parameters")
    if isinstance(jailbreaks, list) and isinstance(parameters, dict):
        method = {"method": parameters.get("method")}
        return [row | method if isinstance(row, dict) else row for row in jailbreaks]
    if value and all(isinstance(cases, list) for cases in value.values()) and not value.keys() & _COLUMNS:
        return [
            {"BehaviorID": behavior, "number": number, "test_case": case}
            for behavior, cases in value.items()
            # A behaviour without a case is one that the attack found nothing for.
            for number, case in enumerate(cases or [None], start=1)
        ]
    return [value]


# Names that would make an object of lists a table by columns, which is none of the field's formats.
_COLUMNS = frozenset({"text", "label", "id", "source", "prompt", "goal", "Goal", "target", "Target", "suffix", "data"})


def _json(text: str, path: Path, line: int = 0) -> Any:
    """Strict JSON; `line` is that of the text in its file, 0 for a text that is the file."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{_line(path, line or error.lineno)}: not JSON") from None
    except _Refused as error:
        raise InvalidArgument(f"{_line(path, line) if line else path.name}: {error}") from None
    except (ValueError, RecursionError):  # an integer of too many digits, or too many brackets
        raise InvalidArgument(f"{_line(path, line) if line else path.name}: not JSON that can be read") from None


class _Refused(ValueError):
    """JSON that Python reads and others do not."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Refused("an object has a key twice")
    return found


def _no_number(_: str) -> Any:
    raise _Refused("NaN and Infinity are not JSON")


def _line(path: Path, number: int) -> str:
    return f"{path.name}, line {number}"


_KINDS: dict[str, Callable[[Path, str], Iterator[Row]]] = {".csv": _csv, ".json": _document, ".txt": _plain}
