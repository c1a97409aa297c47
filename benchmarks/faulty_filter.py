"""A filter that raises now and then, for the fault benchmark of the server: an entry point of `promptguard.score`.

`faulty:<word>` finds a word, `faulty:causal` asks the bundled causal filter. Every `EVERY`-th call raises, and so does
each call with a text that holds `CRASH`; what is raised quotes the texts, which must show nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from promptguard import load_filter
from promptguard.types import Filter

CRASH = "crashword"
EVERY = 97


class FaultyFilter:
    """A filter around another one."""

    def __init__(self, inner: Filter) -> None:
        self._inner: Any = inner
        self._calls = itertools.count(1)
        self.name, self.digest = f"faulty {inner.name}", f"faulty {inner.digest}"
        self.threshold, self.guard_band = inner.threshold, inner.guard_band

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The other's scores.

        Raises:
            RuntimeError: on purpose.
        """
        self._fail(texts)
        return list(self._inner(texts))

    def _fail(self, texts: Sequence[str]) -> None:
        if next(self._calls) % EVERY == 0 or any(CRASH in text for text in texts):
            raise RuntimeError(" ".join(texts))


class FaultyPrefixFilter(FaultyFilter):
    """The same, of a filter that scores prefixes."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        """The other's scores.

        Raises:
            RuntimeError: on purpose.
        """
        self._fail(texts)
        return list(self._inner.prefix_scores(texts, ends))


def load(spec: str, threshold: float | None = None) -> FaultyFilter:
    """What the entry point names."""
    what = spec.partition(":")[2]
    if what == "causal":
        return FaultyPrefixFilter(load_filter(what, threshold=threshold))
    return FaultyFilter(load_filter(f"keyword:{what}", threshold=threshold))
