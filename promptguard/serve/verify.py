"""Whether an audit log is whole: `promptguard audit verify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptguard.serve.chain import GENESIS, AuditError, Link, decode, read_head


@dataclass(frozen=True, slots=True)
class Verified:
    """A log without a fault.

    Attributes:
        files: how many files it has.
        link: its end.
        since: the first line that was given; 0 unless older files were left out.
    """

    files: int
    link: Link
    since: int


def verify(files: Sequence[Path], key: bytes, *, expected: int | None = None, partial: bool = False) -> Verified:
    """Check the chain of a log over all its files, whatever the order in which they are given.

    Found are changed, missing, added and reordered lines, and lines cut off at the end: by the head beside the newest
    file, or by a count noted elsewhere, which also finds a head that was put back together with the log.

    Args:
        files: the log's files.
        key: the log's secret.
        expected: lines that the log had at some time; it must not have fewer.
        partial: accept that the oldest files are not given.

    Raises:
        AuditError: something is wrong; the message says in which line of which file.
    """
    parts = sorted((_Part.read(path, key) for path in files), key=lambda part: part.first)
    link = Link()
    if partial and parts:
        link = parts[0].before
    since = link.lines
    for part in parts:
        link = part.follow(link)
    head = next((head for path in files if (head := read_head(path, key)) is not None), None)
    if head is None and expected is None:
        raise AuditError("there is no head file beside the log: give the number of lines that it should have")
    if head is not None and (link.lines < head.lines or (link.lines == head.lines and link.code != head.code)):
        raise AuditError(f"lines are missing at the end: there are {link.lines}, the head says {head.lines}")
    if expected is not None and link.lines < expected:
        raise AuditError(f"lines are missing at the end: there are {link.lines} of {expected}")
    return Verified(len(files), link, since)


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    lines: tuple[bytes, ...]
    first: int
    before: Link
    key: bytes

    @classmethod
    def read(cls, path: Path, key: bytes) -> _Part:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AuditError(f"cannot read {path}: {type(error).__name__}") from None
        lines = tuple(content.splitlines(keepends=True))
        if not lines:
            return cls(path, (), 2**63, Link(), key)  # a file that was just begun comes last
        start = _decoded(path, 1, lines[0], key)
        first = int(start["seq"])
        return cls(path, lines, first, Link(first, str(start.get("prev", GENESIS))), key)

    def follow(self, link: Link) -> Link:
        for number, (line, record) in enumerate(self._records(), 1):
            seq = int(record["seq"])
            if seq != link.lines:
                raise AuditError(f"{self.path.name}, line {number}: number {seq} where {link.lines} should be")
            if record.get("prev") != link.code:
                raise AuditError(f"{self.path.name}, line {number}: does not follow the line before")
            if not line.endswith(b"\n"):
                raise AuditError(f"{self.path.name}, line {number}: is not finished")
            link = Link(seq + 1, str(record["code"]))
        return link

    def _records(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for number, line in enumerate(self.lines, 1):
            yield line, _decoded(self.path, number, line, self.key)


def _decoded(path: Path, number: int, line: bytes, key: bytes) -> dict[str, Any]:
    try:
        return decode(line, key)
    except AuditError as error:
        fault = str(error)
    raise AuditError(f"{path.name}, line {number}: {fault}")
