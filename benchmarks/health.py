"""Asking a server for its health from a process of its own, while others keep it busy."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_PAUSE = 0.02
_PATIENCE = 60.0


def poll(port: int, begun_asking: Any, stop: Any, found: Any) -> None:
    """Ask `/healthz` on new connections until told to stop; milliseconds of each, infinite for no answer."""
    times: list[float] = []
    while not stop.is_set():
        begun = time.perf_counter()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(_REQUEST)
                is_well = connection.recv(65536).startswith(b"HTTP/1.1 200")
        except OSError:
            is_well = False
        times.append(1000 * (time.perf_counter() - begun) if is_well else float("inf"))
        begun_asking.set()
        time.sleep(_PAUSE)
    found.put(times)


@contextmanager
def polled(port: int, times: list[float]) -> Iterator[None]:
    """A process asks for health meanwhile; its times are put into `times`."""
    context = get_context("spawn")
    begun_asking, stop, found = context.Event(), context.Event(), context.Queue()
    asking = context.Process(target=poll, args=(port, begun_asking, stop, found))
    asking.start()
    try:
        begun_asking.wait(_PATIENCE)
        yield
    finally:
        stop.set()
        times.extend(found.get(timeout=_PATIENCE))
        asking.join()
