"""The audit log: one line per decision, written before the answer goes out, holding digests instead of text.

One thread writes, whatever many requests wait for: it takes all lines that are due, writes and forces them to the disk
together, moves the head, and only then lets their requests go on. If a line cannot be written, its request fails.

A file that reaches its size is renamed `<name>.<first seq>.<suffix>` and the chain goes on in a new one. Each process
has a log of its own, guarded by a lock file: the first takes the configured name, the next `<name>-1`, and so on.
"""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import logging
import os
import queue
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptguard.serve.chain import AuditError, Link, decode, encode, read_head, write_head
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
        AuditError: the path cannot be written, all logs are in use, or the end of the log is not what the head says.
    """

    def __init__(self, section: Audit, slots: int = 1) -> None:
        assumed = section.path, section.key
        if assumed[0] is None or assumed[1] is None:
            raise AuditError("an audit log needs a path and a key")
        self._key = assumed[1].get_secret_value().encode()
        self._section = section
        self._due: queue.SimpleQueue[_Due | None] = queue.SimpleQueue()
        with ExitStack() as opened:
            try:
                self.path, lock = _claim(assumed[0], slots)
                opened.callback(lock.close)
                self._link = _resume(self.path, self._key)
                self._file = opened.enter_context(self.path.open("ab", buffering=0))
            except OSError as error:
                raise AuditError(f"cannot write the audit log {assumed[0]}: {type(error).__name__}") from None
            self._lock = lock
            opened.pop_all()
        self._first = self._link.lines
        self._thread = threading.Thread(target=self._write_all, name="promptguard-audit", daemon=True)
        self._thread.start()

    def digest(self, text: str) -> str:
        """What stands for a text: an HMAC, so that who has the log but not the key cannot try texts."""
        return hmac.digest(self._key, b"text:" + text.encode("utf-8", "surrogatepass"), "sha256").hex()

    async def append(self, record: Mapping[str, Any]) -> None:
        """Write a line; returns when it is written.

        Raises:
            AuditError: it is not.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._due.put(_Due(record, loop, done))
        await asyncio.shield(done)  # a client that leaves does not take its line along

    def close(self) -> None:
        """Write what is due and let the file go."""
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
        except (OSError, ValueError, TypeError, AuditError) as error:
            fault = type(error).__name__
            _log.error("audit log: %s", fault)
        for due in batch:
            error_or_none = AuditError(f"the audit log cannot be written: {fault}") if fault else None
            try:
                due.loop.call_soon_threadsafe(_settle, due.done, error_or_none)
            except RuntimeError:  # its loop is closed: nobody waits
                _log.warning("audit log: a line was written that nobody waits for")

    def _put(self, records: list[Mapping[str, Any]]) -> None:
        link, lines = self._link, []
        for record in records:
            line, link = encode(record, link, self._key)
            lines.append(line)
        size = os.fstat(self._file.fileno()).st_size
        try:
            content = memoryview(b"".join(lines))
            while content:
                content = content[self._file.write(content) :]
            if self._section.fsync is Fsync.ALWAYS:
                os.fsync(self._file.fileno())
        except OSError:
            # Half a line would break the chain for the lines that follow.
            os.ftruncate(self._file.fileno(), size)
            raise
        self._link = link
        write_head(self.path, link, self._key)
        if size + sum(map(len, lines)) >= self._section.max_bytes:
            self._rotate()

    def _rotate(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.rename(self.path.with_name(f"{self.path.stem}.{self._first:012d}{self.path.suffix}"))
        self._file = self.path.open("ab", buffering=0)
        self._first = self._link.lines


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


def _resume(path: Path, key: bytes) -> Link:
    """Where the chain of a log goes on.

    A process that died may have left half a line, which nobody was answered for, or a line that the head does not know.
    """
    head = read_head(path, key)
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
        _log.warning("audit log: %d bytes of an unfinished line dropped", len(content) - whole)
    lines = content[:whole].splitlines()
    if not lines:
        return head or Link()
    try:
        last = decode(lines[-1], key)
    except AuditError as error:
        fault = str(error)
    else:
        if head is None or int(last["seq"]) + 1 < head.lines:
            raise AuditError(f"the audit log {path} is shorter than its head says: verify it, then move it away")
        return Link(int(last["seq"]) + 1, str(last["code"]))
    raise AuditError(f"the last line of {path} {fault}")
