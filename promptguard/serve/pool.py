"""The threads in which requests are checked: so many at once, so many waiting, and no longer than a deadline.

The event loop never checks anything itself, so it answers probes while every thread is busy. A request that nobody
waits for any more is not begun; one that was begun stops before its next text, or its next batch of erasures.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import TypeVar

from promptguard.errors import PromptGuardError
from promptguard.types import Certifier, Verdict

_T = TypeVar("_T")
_MAX_RETRY_AFTER = 60


class Busy(PromptGuardError):
    """The queue is full.

    Attributes:
        retry_after: whole seconds after which a place is likely.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests wait to be checked")
        self.retry_after = retry_after


class Late(PromptGuardError):
    """There was no verdict before the deadline."""


class Abandoned(PromptGuardError):
    """Nobody waits for this check any more."""


class Ticket:
    """Says in the thread whether somebody still waits."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._is_cancelled = True

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Abandoned: nobody waits, or the deadline is over.
        """
        if self._is_cancelled or time.monotonic() > self._ends:
            raise Abandoned("nobody waits for this check any more")


_ticket: ContextVar[Ticket] = ContextVar("_ticket")


def go_on(_done: int, _total: int) -> None:
    """Stops a search between two batches when nobody waits for it: the `progress` of certifiers.

    Raises:
        Abandoned: the work of this thread has a ticket, and nobody waits.
    """
    if (ticket := _ticket.get(None)) is not None:
        ticket.check()


class Watched:
    """A certifier that is asked only while somebody waits for the answer."""

    def __init__(self, certifier: Certifier, ticket: Ticket) -> None:
        self._certifier = certifier
        self._ticket = ticket

    def certify(self, x: str) -> Verdict:
        """As the certifier's.

        Raises:
            Abandoned: nobody waits.
        """
        self._ticket.check()
        return self._certifier.certify(x)


class Pool:
    """Threads with a bounded queue.

    Args:
        threads: checks at once.
        queue: checks that may wait.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="promptguard-check")
        self._threads = threads
        self._most = threads + queue
        self._inside = 0
        self._seconds = 0.0  # of a check, lately
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """Checks that run or wait; those that were given up count while their thread is busy."""
        return self._inside

    async def run(self, work: Callable[[Ticket], _T], seconds: float) -> _T:
        """The result of work in a thread.

        Cancelling the caller cancels the work: it is never begun, or is told by its ticket.

        Raises:
            Busy: the queue is full.
            Late: no result within `seconds`, waiting included.
        """
        with self._lock:
            if self._inside >= self._most:
                raise Busy(self._retry_after())
            self._inside += 1
        ticket = Ticket(seconds)
        try:
            future = self._executor.submit(self._timed, work, ticket)
        except RuntimeError:  # it was shut down between two requests
            self._leave()
            raise Late("the server is stopping") from None
        future.add_done_callback(self._leave)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except (TimeoutError, Abandoned):  # whichever clock was first
            raise Late("no verdict before the deadline") from None
        finally:
            ticket.cancel()

    def close(self) -> None:
        """Begin nothing more; what runs ends in its own time."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _timed(self, work: Callable[[Ticket], _T], ticket: Ticket) -> _T:
        ticket.check()
        start = time.perf_counter()
        token = _ticket.set(ticket)
        try:
            return work(ticket)
        finally:
            _ticket.reset(token)
            self._seconds += 0.1 * (time.perf_counter() - start - self._seconds)

    def _leave(self, _future: Future[_T] | None = None) -> None:
        with self._lock:
            self._inside -= 1

    def _retry_after(self) -> int:
        waiting = self._seconds * self._inside / self._threads
        return min(max(math.ceil(waiting), 1), _MAX_RETRY_AFTER)
