"""The audit log: one line per decision, written before the answer goes out, holding digests instead of text.

One thread writes, whatever many requests wait for: it takes all lines that are due, writes and forces them to the disk
together, moves the head, and only then lets their requests go on. If a line cannot be written, its request fails.

A file that reaches its size is renamed `<name>.<first seq>.<suffix>`, with `.1` before the suffix if a file has that
name, and the chain goes on in a new one. If that fails, the old file goes on and the next batch tries again. Each
process has a log of its own, guarded by a lock file: the first takes the configured name, the next `<name>-1`, and so
on.

A new log has a head before its first line. So lines without a head are a log whose head was taken away, never one whose
process died early. With fsync "rotation" heads are forced to the disk only when lines are.
"""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import itertools
import logging
import os
import queue
import re
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptguard.serve.chain import AuditError, Link, decode, encode, read_head, sync_folder, write_head
from promptguard.serve.config import Audit, Fsync

_log = logging.getLogger("promptguard.serve")


@dataclass(frozen=True, slots=True)
class _Due:
    record: Mapping[str, Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class AuditLog:
    """An open log. `close` it: lines that are due are written first.

    Args:
        section: path, key, size and fsync; path and key are set.
        slots: logs that processes may share this path for, one each.

    Raises:
        AuditError: the path cannot be written, all logs are in use, the end of the log is not what the head says, or
            there is no head but lines, or older files, of another log.
    """

    def __init__(self, section: Audit, slots: int = 1) -> None:
        assumed = section.path, section.key
        if assumed[0] is None or assumed[1] is None:
            raise AuditError("an audit log needs a path and a key")
        self._key = assumed[1].get_secret_value().encode()
        self._section = section
        self._due: queue.SimpleQueue[_Due | None] = queue.SimpleQueue()
        self._door = threading.Lock()  # nothing enters the queue behind the None that ends it
        self._closed = False
        self._cut_at: int | None = None
        with ExitStack() as opened:
            try:
                self.path, lock = _claim(assumed[0], slots)
                opened.callback(lock.close)
                self._link, self._first = _resume(self.path, self._key)
                self._file = opened.enter_context(self.path.open("ab", buffering=0))
                sync_folder(self.path)
            except OSError as error:
                raise AuditError(f"cannot write the audit log {assumed[0]}: {type(error).__name__}") from None
            self._lock = lock
            opened.pop_all()
        self._thread = threading.Thread(target=self._write_all, name="promptguard-audit", daemon=True)
        self._thread.start()

    def digest(self, text: str) -> str:
        """What stands for a text: an HMAC, so that who has the log but not the key cannot try texts."""
        return hmac.digest(self._key, b"text:" + text.encode("utf-8", "surrogatepass"), "sha256").hex()

    async def append(self, record: Mapping[str, Any]) -> None:
        """Write a line; returns when it is written.

        Raises:
            AuditError: it is not, or the log is closed.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._door:
            if self._closed:
                raise AuditError("the audit log is closed")
            self._due.put(_Due(record, loop, done))
        await asyncio.shield(done)  # a client that leaves does not take its line along

    def close(self) -> None:
        """Write what is due and let the file go."""
        with self._door:
            self._closed = True
            self._due.put(None)
        self._thread.join()
        self._file.close()
        self._lock.close()

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            batch = [self._due.get()]
            while not self._due.empty():
                batch.append(self._due.get())
            is_open = None not in batch
            self._write([due for due in batch if due is not None])

    def _write(self, batch: list[_Due]) -> None:
        if not batch:
            return
        fault: str | None = None
        try:
            self._put([due.record for due in batch])
        except BaseException as error:  # whatever it is, somebody waits, and the next batch needs this thread
            fault = type(error).__name__
        for due in batch:
            error_or_none = AuditError(f"the audit log cannot be written: {fault}") if fault else None
            try:
                due.loop.call_soon_threadsafe(_settle, due.done, error_or_none)
            except RuntimeError:  # its loop is closed: nobody waits
                _log.warning("audit log: a line was written that nobody waits for")
        if fault:
            _log.error("audit log: %s", fault)

    def _put(self, records: list[Mapping[str, Any]]) -> None:
        self._cut()
        link, lines = self._link, []
        for record in records:
            line, link = encode(record, link, self._key)
            lines.append(line)
        size = os.fstat(self._file.fileno()).st_size
        is_full = size + sum(map(len, lines)) >= self._section.max_bytes
        is_forced = is_full or self._section.fsync is Fsync.ALWAYS
        self._cut_at = size
        try:
            content = memoryview(b"".join(lines))
            while content:
                content = content[self._file.write(content) :]
            if is_forced:
                os.fsync(self._file.fileno())
        except BaseException:
            self._cut()
            raise
        self._cut_at = None
        self._link = link
        write_head(self.path, link, self._key, force=is_forced)
        if is_full:
            self._rotate()

    def _cut(self) -> None:
        """Take off what a failed batch left: half a line would break the chain for the lines that follow."""
        if self._cut_at is not None:
            os.ftruncate(self._file.fileno(), self._cut_at)
            self._cut_at = None

    def _rotate(self) -> None:
        """Go on in a new file; if that fails, in the old one. Its lines are on the disk either way."""
        old, target = self._file, _free_name(self.path, self._first)
        try:
            self.path.rename(target)
            try:
                self._file = self.path.open("ab", buffering=0)
            except BaseException:
                target.rename(self.path)
                raise
            self._first = self._link.lines
            old.close()
            sync_folder(self.path)
        except OSError as error:
            _log.error("audit log: a full file could not be closed and a new one begun: %s", type(error).__name__)


def _settle(done: asyncio.Future[None], error: AuditError | None) -> None:
    if done.cancelled():
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _claim(path: Path, slots: int) -> tuple[Path, Any]:
    """The first log of this path that no process holds, and its lock."""
    for slot in range(slots):
        log = path if slot == 0 else path.with_name(f"{path.stem}-{slot}{path.suffix}")
        lock = log.with_name(log.name + ".lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return log, lock
    raise AuditError(f"the audit log {path} is in use by another process")


def _older_name(path: Path, first: int, copy: int = 0) -> Path:
    return path.with_name(f"{path.stem}.{first:012d}{f'.{copy}' if copy else ''}{path.suffix}")


def _free_name(path: Path, first: int) -> Path:
    """A name for a full file that no file has: rename would replace it. Only the holder of the lock asks."""
    names = (_older_name(path, first, copy) for copy in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _has_older_files(path: Path) -> bool:
    pattern = re.compile(rf"{re.escape(path.stem)}\.[0-9]{{12,}}(\.[0-9]+)?{re.escape(path.suffix)}")
    return any(pattern.fullmatch(file.name) for file in path.parent.iterdir())


def _resume(path: Path, key: bytes) -> tuple[Link, int]:
    """Where the chain of a log goes on, and the number of the first line of its file.

    A process that died may have left half a line, which nobody was answered for, or lines that the head does not know.
    """
    head = read_head(path, key)
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].splitlines()
    if head is None:
        if lines or _has_older_files(path):
            raise AuditError(f"the audit log {path} has lines but no head: verify it, then move all its files away")
        head = Link()
        write_head(path, head, key)
    if lines:
        first, last = (_decoded(path, which, line, key) for which, line in (("first", lines[0]), ("last", lines[-1])))
        link = Link(int(last["seq"]) + 1, str(last["code"]))
        if link.lines < head.lines:
            raise AuditError(
                f"the audit log {path} is shorter than its head says: verify it, then move all its files away"
            )
    if whole < len(content):
        os.truncate(path, whole)
        _log.warning("audit log: %d bytes of an unfinished line dropped", len(content) - whole)
    return (link, int(first["seq"])) if lines else (head, head.lines)


def _decoded(path: Path, which: str, line: bytes, key: bytes) -> dict[str, Any]:
    try:
        return decode(line, key)
    except AuditError as error:
        fault = str(error)
    raise AuditError(f"the {which} line of {path} {fault}")
