"""Loading the configuration again without dropping a request: on SIGHUP, in the main thread of a process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from promptguard.errors import PromptGuardError
from promptguard.serve.settings import configured
from promptguard.serve.state import Holder, State

_log = logging.getLogger("promptguard.serve")


@contextmanager
def on_hangup(work: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """While it lasts, SIGHUP starts work on the running loop; where signals cannot be had, it does nothing."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start() -> None:
        task = loop.create_task(work())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        loop.add_signal_handler(signal.SIGHUP, start)
    except (ValueError, RuntimeError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in tasks:
            task.cancel()


async def reload(holder: Holder, transport: httpx2.AsyncBaseTransport | None) -> None:
    """Take on the configuration as the file and the environment are now; a bad one changes nothing."""
    async with holder.reloading:
        try:
            state = await asyncio.to_thread(lambda: State.of(configured(os.environ), transport))
            holder.swap(state)
        except PromptGuardError as error:
            _log.error("configuration not loaded again: %s", error)
            return
        except Exception as error:  # nobody else would hear of it
            _log.error("configuration not loaded again: %s", type(error).__name__)
            return
        _log.warning("configuration loaded again")
