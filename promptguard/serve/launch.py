"""From the environment to a listening server; what can fail, fails before the first request, in one line."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from promptguard.errors import PromptGuardError
from promptguard.serve.audit import AuditLog
from promptguard.serve.config import Config, Serving
from promptguard.serve.settings import CONFIG_VARIABLE, configured

__all__ = ["CONFIG_VARIABLE", "LaunchError", "describe", "launch"]

_log = logging.getLogger("promptguard.serve")
_BACKLOG = 2048
_TURN = 0.0005  # seconds that a thread computes before another one gets its turn
_NEVER = 2**31 - 1
_MINUTE = 60.0
_PATIENCE = 10
_MANY = 200_000  # objects; they take some 20 ms
_SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class LaunchError(PromptGuardError):
    """The server cannot listen."""


def describe() -> str:
    """Load everything that serving needs and say what it is.

    Raises:
        PromptGuardError: a setting means nothing, or a file is missing.
    """
    from promptguard.serve.state import State  # noqa: PLC0415 - imports the metrics, see `launch`

    config = configured(os.environ)
    state = State.of(config)
    asyncio.run(state.close(0))
    upstream = config.upstream.url or "no upstream"
    images = f"images {config.images.filter}, " if config.images else ""
    return f"configuration ok: filter {config.certifier.filter}, {images}{upstream}, {_address(config.server)}"


def launch() -> None:
    """Serve until told to stop: SIGTERM and SIGINT finish what is in flight, SIGHUP loads the configuration again.

    Raises:
        PromptGuardError: bad configuration, missing filter, busy port, an audit log that cannot be written.
    """
    config = configured(os.environ)
    listening = _listen(config.server)
    with listening, tempfile.TemporaryDirectory(prefix="promptguard-") as folder:
        if config.server.workers > 1:
            # Read by prometheus_client when it is imported, here and in the workers.
            os.environ.setdefault(_SHARED_FOLDER, folder)
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        _warn_if_open(config)
        if config.audit.path is not None:
            AuditLog(config.audit, config.server.workers).close()  # where it fails later, there is a traceback
        _serve(config, listening)


def stay_responsive() -> None:
    """Keep the event loop from waiting, once everything is loaded: for a process that does nothing but serve.

    With a model and its libraries loaded, a full garbage collection takes a third of a second, in which nothing is
    answered; what is there now is left out of it. With a large answer of a model it takes as long, so full collections
    are not made whenever they are due, but once a minute if there is little to look at. And threads that check texts
    take turns more often than by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _NEVER)
    threading.Thread(target=_tidy_up, name="promptguard-tidy", daemon=True).start()
    sys.setswitchinterval(_TURN)


def _tidy_up() -> None:
    skipped = 0
    while True:
        time.sleep(_MINUTE)
        skipped = 0 if _tidy(skipped) else skipped + 1


def _tidy(skipped: int) -> bool:
    """Collect what nothing needs any more, unless there is so much now that it would take long.

    Args:
        skipped: how often it was put off; there is an end to that.
    """
    if skipped < _PATIENCE and len(gc.get_objects(2)) > _MANY:
        return False
    gc.collect()
    return True


def _serve(config: Config, listening: socket.socket) -> None:
    from promptguard.serve.app import create_app  # noqa: PLC0415 - imports the metrics, see `launch`

    app = create_app(config)
    settings = uvicorn.Config(
        app if config.server.workers == 1 else "promptguard.serve.app:from_environment",
        factory=config.server.workers > 1,
        workers=config.server.workers,
        log_config=None,
        access_log=False,  # a query may hold text
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=config.server.drain_seconds,
    )
    name = listening.getsockname()
    _log.warning("listening on http://%s:%s", name[0], name[1])
    if config.server.workers == 1:
        stay_responsive()
        uvicorn.Server(settings).run(sockets=[listening])
    else:
        del app  # it was loaded to see that it can be; each worker loads its own
        workers = _Workers(settings, sockets=[listening])
        workers.run()
        if any(process.exitcode == STARTUP_FAILURE for process in workers.processes):
            raise LaunchError("a worker could not start")  # or the exit code would say that all went well


class _Workers(Multiprocess):
    """Processes that load the configuration again by themselves, as a single one does.

    Uvicorn's own answer to SIGHUP is to start another process for each and to end the old one. The new one finds no
    audit file that is free and has five seconds to load its filters; the old one ends connections that clients keep.
    """

    def handle_hup(self) -> None:
        """Pass the signal on. A process that does not serve yet is ended by it, and another one started."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGHUP)


def _listen(server: Serving) -> socket.socket:
    with ExitStack() as stack:
        try:
            family, kind, proto, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
            listening = stack.enter_context(socket.socket(family, kind, proto))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
            listening.set_inheritable(True)
        except OSError as error:
            number = error.errno or 0  # below 0 it is about the name of the host
            why = os.strerror(number) if number > 0 else type(error).__name__
            raise LaunchError(f"cannot listen on {_address(server)}: {why}") from None
        stack.pop_all()
        return listening


def _warn_if_open(config: Config) -> None:
    try:
        is_local = ipaddress.ip_address(config.server.host).is_loopback
    except ValueError:
        is_local = config.server.host == "localhost"
    if not is_local and not config.keys:
        _log.warning("anybody who reaches %s may use this server: set keys", _address(config.server))


def _address(server: Serving) -> str:
    return f"{server.host}:{server.port}"
