"""Where calls of a shared filter wait for their turn, and the thread that answers them (`promptguard.score.shared`)."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from promptguard.errors import FilterError

_LATELY = 0.05  # seconds for which as many calls are expected as were there at once


@dataclass(slots=True, eq=False)
class Call:
    """What a caller asked.

    Attributes:
        work: what is called with the columns.
        columns: lists of one length, one element per text; or any arguments, if the call stands alone.
        merges: the result is a list with one element per text, and texts of other calls may be among them.
        answer: the result.
    """

    work: Callable[..., Any]
    columns: tuple[Any, ...]
    merges: bool = True
    answer: Future[Any] = field(default_factory=Future)

    @classmethod
    def of(cls, work: Callable[..., Any], *columns: Any) -> Self:
        """A call that merges, if its columns are such: what is wrong with it must not reach the others."""
        lists = [list(column) for column in columns if not isinstance(column, str)]
        if len(lists) == len(columns) and len({len(column) for column in lists}) == 1:
            return cls(work, tuple(lists))
        return cls(work, columns, merges=False)

    @property
    def size(self) -> int:
        """Texts."""
        return len(self.columns[0]) if self.merges else 1

    def run(self) -> None:
        """Answer it by itself."""
        try:
            result = self.work(*self.columns)
        except BaseException as error:  # whatever it is, it is the caller's; a panic in native code is no Exception
            self.answer.set_exception(error)
        else:
            self.answer.set_result(result)


class Desk:
    """Takes calls from any thread; a thread of its own answers them."""

    def __init__(self, name: str, max_wait: float, max_texts: int) -> None:
        self._name, self._max_wait, self._max_texts = name, max_wait, max_texts
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Nothing waits, and no thread runs yet."""
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[Call] = deque()
        self._crowds: deque[tuple[float, int]] = deque()  # when, and how many calls were there at once
        self._thread: threading.Thread | None = None

    def _open_in_a_child(self) -> None:
        """A forked child has neither the thread nor those who wait, and perhaps a lock that nobody will release."""
        if self._process != os.getpid():
            self._open()

    def ask(self, call: Call) -> Any:
        """Wait for the result."""
        answer = self.put(call)
        try:
            return answer.result()
        finally:
            answer.cancel()  # no effect on one that is done; a caller that was interrupted wants it no more

    def put(self, call: Call) -> Future[Any]:
        """Let it wait its turn."""
        self._open_in_a_child()
        with self._changed:
            if self._closed:
                raise FilterError(f"filter {self._name} was closed")
            if self._thread is None:
                self._thread = threading.Thread(target=partial(_serve, self), name="promptguard-shared", daemon=True)
                self._thread.start()
            self._waiting.append(call)
            self._changed.notify_all()
        return call.answer

    def stop(self) -> None:
        """Let the thread finish what waits, and end; nothing more is taken."""
        self._open_in_a_child()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Stop, and wait for the thread, so many seconds at most."""
        self.stop()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def next_round(self) -> list[Call]:
        """The calls to answer now; none when the desk is closed and nobody waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(self._is_complete, self._max_wait)
            return self._take()

    def _is_complete(self) -> bool:
        """As many are here as were at once lately, or there is enough to do.

        Threads are no clients: those of a pool take turns at the requests of one client, and none waits for the others.
        """
        since = time.monotonic() - _LATELY
        while self._crowds and self._crowds[0][0] < since:
            self._crowds.popleft()
        expected = max((count for _, count in self._crowds), default=1)
        texts = sum(call.size for call in self._waiting)
        return self._closed or len(self._waiting) >= expected or texts >= self._max_texts

    def _take(self) -> list[Call]:
        """The first call, and those like it that fit beside it."""
        chosen: list[Call] = []
        room, others = self._max_texts, deque[Call]()
        for call in self._waiting:
            alike = not chosen or (call.merges and chosen[0].merges and call.work is chosen[0].work)
            if alike and (not chosen or call.size <= room):
                chosen.append(call)
                room -= call.size
            else:
                others.append(call)
        self._waiting = others
        return chosen

    def note_served(self, calls: Sequence[Call]) -> None:
        """They were there at once, with those that wait now."""
        with self._changed:
            self._crowds.append((time.monotonic(), len(calls) + len(self._waiting)))


def _serve(desk: Desk) -> None:
    """The thread: answer round after round."""
    while calls := desk.next_round():
        wanted = [call for call in calls if call.answer.set_running_or_notify_cancel()]
        if len(wanted) == 1 or not _answer_together(wanted):
            for call in wanted:
                call.run()
        desk.note_served(wanted)


def _answer_together(calls: Sequence[Call]) -> bool:
    """One call of the filter for all of them; False if it failed and nobody was answered."""
    if not calls:
        return True
    columns = [[item for part in parts for item in part] for parts in zip(*(c.columns for c in calls), strict=True)]
    try:
        results = list(calls[0].work(*columns))
    except BaseException:  # one of them is to blame; alone, each gets its own error
        return False
    if len(results) != len(columns[0]):
        return False
    ends = iter(results)
    for call in calls:
        call.answer.set_result([next(ends) for _ in range(call.size)])
    return True
