"""What a configuration makes of the server, swapped as a whole when it is loaded again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2

from promptguard.errors import MissingDependency, PromptGuardError
from promptguard.guard import Policy
from promptguard.serve.buckets import Buckets
from promptguard.serve.certifier import build, close
from promptguard.serve.checks import Checker
from promptguard.serve.config import Config, Picturing
from promptguard.serve.keys import Keys
from promptguard.serve.pool import Pool
from promptguard.serve.upstream import Upstream

if TYPE_CHECKING:
    from promptguard.serve.pictures import PricedPictures


@dataclass(slots=True, eq=False)
class State:
    """One configuration at work. Requests keep the one that they began with.

    Attributes:
        config: the configuration.
        requests: checks what clients send.
        outputs: checks what the model answers.
        pool: where checks run.
        upstream: the model, or None.
        keys: of clients.
        buckets: their work.
        users: requests that hold it.
    """

    config: Config
    requests: Checker
    outputs: Checker
    pool: Pool
    upstream: Upstream | None
    keys: Keys
    buckets: Buckets = field(default_factory=Buckets)
    users: int = 0

    @classmethod
    def of(cls, config: Config, transport: httpx2.AsyncBaseTransport | None = None) -> State:
        """Load the filters and open nothing yet.

        Raises:
            PromptGuardError: a setting means nothing, or a file is missing.
        """
        policy: Policy = config.policy.policy()
        upstream = Upstream(config.upstream, transport) if config.upstream.url else None
        seconds = config.limits.seconds
        images = _pictures(config.images) if config.images else None
        requests = Checker(build(config.certifier, config.batching, seconds), policy, config.limits, images)
        outputs = requests
        if config.output.certifier is not None:
            outputs = Checker(build(config.output.certifier, config.batching, seconds), policy, config.limits, images)
        pool = Pool(config.limits.threads, config.limits.queue)
        return cls(config, requests, outputs, pool, upstream, Keys(config.keys))

    async def close(self, seconds: float) -> None:
        """Wait for the requests that hold it, at most so long, and let everything go."""
        ends = asyncio.get_running_loop().time() + seconds
        while self.users and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.05)
        self.pool.close()
        for checker in {self.requests, self.outputs}:
            await asyncio.to_thread(close, checker.certifier)
        if self.upstream:
            await self.upstream.close()


def _pictures(section: Picturing) -> PricedPictures:
    try:
        from promptguard.serve.pictures import load  # noqa: PLC0415 - the extra is needed with this section only
    except ModuleNotFoundError as error:
        raise MissingDependency(f"images need {error.name}: pip install 'certified-promptguard[images]'") from None
    return load(section)


class Holder:
    """The current state.

    Args:
        state: the first one.

    Attributes:
        current: the state that requests begin with.
        reloading: held from reading a configuration until it is taken on, so that the last one read counts.
    """

    def __init__(self, state: State) -> None:
        self.current = state
        self.reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @contextmanager
    def use(self) -> Iterator[State]:
        """The current state, for as long as a request takes."""
        state = self.current
        state.users += 1
        try:
            yield state
        finally:
            state.users -= 1

    def swap(self, state: State) -> None:
        """Make a state the current one; the old one goes when its requests are done.

        Raises:
            ReloadRefused: it differs in something that takes a restart.
        """
        old = self.current
        if (old.config.server, old.config.audit) != (state.config.server, state.config.audit):
            raise ReloadRefused("server and audit settings take a restart")
        if old.config.keys == state.config.keys and old.config.limits == state.config.limits:
            state.buckets = old.buckets
        self.current = state
        task = asyncio.create_task(old.close(old.config.limits.answer_seconds))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Let the current state go, and those that were on their way."""
        for task in self._retiring:
            task.cancel()
        await self.current.close(0)


class ReloadRefused(PromptGuardError):
    """The new configuration cannot be taken on while serving."""
