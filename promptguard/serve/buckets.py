"""How much work a key may cause: a token bucket of characters per minute for each.

A request is charged what it costs before any inference. One that costs more than a minute's worth is served when the
bucket is full, and leaves a debt. Each worker process counts its own requests only.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from promptguard.errors import PromptGuardError

_MINUTE = 60.0


class Throttled(PromptGuardError):
    """The key has used up its work.

    Attributes:
        retry_after: whole seconds until this request would be served.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("this key's work for the minute is used up")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Level:
    left: float
    at: float


class Buckets:
    """One bucket per key name, full at first.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, _Level] = {}
        self._lock = threading.Lock()

    def take(self, name: str, work: int, per_minute: int) -> None:
        """Charge a key.

        Raises:
            Throttled: there is not enough left.
        """
        with self._lock:
            now = self._clock()
            level = self._levels.setdefault(name, _Level(per_minute, now))
            level.left = min(per_minute, level.left + (now - level.at) * per_minute / _MINUTE)
            level.at = now
            needed = min(work, per_minute)
            if level.left < needed:
                raise Throttled(max(1, math.ceil((needed - level.left) * _MINUTE / per_minute)))
            level.left -= work
