"""The chain of an audit log: how a line is bound to all lines before it, and what a head says.

A line is a JSON object with `seq`, counted from 0, `prev`, the code of the line before, and `code`, an HMAC-SHA256 over
everything else in the line. Without the key no line can be changed, added, moved or taken from the middle unnoticed
(the chain of Schneier and Kelsey 1999, *Secure audit logs*, with a key that stays on the machine). Lines cut off at the
end leave a whole chain, so a head file beside the log says how many lines there are.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptguard.errors import PromptGuardError

GENESIS = "0" * 64
_OWN = frozenset({"seq", "prev", "code"})


class AuditError(PromptGuardError):
    """The audit log cannot be written, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain.

    Attributes:
        lines: how many lines it has.
        code: of the last one.
    """

    lines: int = 0
    code: str = GENESIS


def encode(record: Mapping[str, Any], after: Link, key: bytes) -> tuple[bytes, Link]:
    """The line of a record behind a link, with its line feed, and the new end.

    Raises:
        AuditError: the record has a field of the chain's.
    """
    if not _OWN.isdisjoint(record):
        raise AuditError("a record must not have seq, prev or code")
    body = {"seq": after.lines, "prev": after.code, **record}
    code = _code(body, key)
    return _json(body | {"code": code}) + b"\n", Link(after.lines + 1, code)


def decode(line: bytes, key: bytes) -> dict[str, Any]:
    """The record of a line whose code is right.

    Raises:
        AuditError: it is none.
    """
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("seq"), int) or not isinstance(body.get("code"), str):
        raise AuditError("is no line of an audit log")
    code = body.pop("code")
    if not hmac.compare_digest(code.encode(), _code(body, key).encode()):
        raise AuditError("was changed, or written with another key")
    return body | {"code": code}


def head_path(log: Path) -> Path:
    """Where the head of a log is."""
    return log.with_name(log.name + ".head")


def write_head(log: Path, link: Link, key: bytes, *, force: bool = True) -> None:
    """Replace the head in one step; forced to the disk first, so that a power loss leaves the old one or the new."""
    line, _ = encode({"lines": link.lines, "last": link.code}, Link(), key)
    new = log.with_name(log.name + ".head.new")
    with new.open("wb") as file:
        file.write(line)
        file.flush()
        if force:
            os.fsync(file.fileno())
    new.replace(head_path(log))


def sync_folder(log: Path) -> None:
    """Force the names of a log's files to the disk, where the file system can."""
    folder = os.open(log.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(folder)


def read_head(log: Path, key: bytes) -> Link | None:
    """What the head says; None if there is none.

    Raises:
        AuditError: it was changed, or cannot be read.
    """
    try:
        line = head_path(log).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"cannot read the head of {log.name}: {type(error).__name__}") from None
    try:
        head = decode(line, key)
    except AuditError as error:
        fault = str(error)
    else:
        if "lines" in head and "last" in head:
            return Link(int(head["lines"]), str(head["last"]))
        fault = "is a line of the log"
    raise AuditError(f"the head of {log.name} {fault}")


def _code(body: Mapping[str, Any], key: bytes) -> str:
    return hmac.digest(key, _json(body), "sha256").hex()


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
