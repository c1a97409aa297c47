"""One benchmark over several processes and machines, as `accelerate launch` starts them.

Prompts are independent, so each process measures its share and all of them exchange rows at the end; nothing else is
shared, no random number and no batch, so the rows do not depend on how many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

# What torchrun, Intel MPI, Open MPI and MVAPICH set.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# A process that is done waits for the others, however long they take; one that dies ends the whole launch.
_PATIENCE = timedelta(days=30)


class Processes(Protocol):
    """The processes of one run.

    Attributes:
        rank: the number of this one, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of every process, by rank, in every process; returns when all have called it."""
        ...

    def device(self, device: str) -> str:
        """Where this process should run its filter: "cuda" becomes its own card."""
        ...


class Alone:
    """One process."""

    rank = 0
    size = 1

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items themselves."""
        return list(items)

    def device(self, device: str) -> str:
        """The device as given."""
        return device


class Launched:
    """What `accelerate launch` started."""

    def __init__(self, *, cpu: bool) -> None:
        from accelerate import PartialState  # noqa: PLC0415 - imports torch, which a single process may not need

        self._state = PartialState(cpu=cpu, timeout=_PATIENCE)
        self.rank: int = self._state.process_index
        self.size: int = self._state.num_processes

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """All items, by rank."""
        from accelerate.utils import gather_object  # noqa: PLC0415 - as above

        return list(gather_object(list(items)))

    def device(self, device: str) -> str:
        """The own card of a kind of device, else the device as given."""
        return device if device == "cpu" or ":" in device else f"{device}:{self._state.local_process_index}"


def processes(device: str = "cpu") -> Processes:
    """The processes that this one belongs to.

    Args:
        device: where filters will run; decides how the processes talk to each other.
    """
    sizes = [os.environ[name] for name in _SIZES if name in os.environ]
    if not any(size.isdecimal() and int(size) > 1 for size in sizes):
        return Alone()
    return Launched(cpu=device == "cpu")
