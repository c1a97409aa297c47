"""One filter for many threads: calls that arrive together become one call.

A model reads 64 short texts in little more time than 8, and callers that run it side by side only take processors from
each other. Here one thread runs the filter: threads of its library (torch's, for instance) serve one batch at a time,
and tokenizers that cannot be used from two threads at once are not.

The function that is scored stays the same, so name, digest, threshold, guard band and capabilities do. A score may move
with the composition of a batch; that is what the guard band covers, and who else is in the batch makes no difference
to it. So merging changes no certificate, and no verdict but where batches of other sizes would have.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from promptguard.capabilities import (
    BoundedFilter,
    DifferentiableFilter,
    InfusionFilter,
    MonotoneFilter,
    PrefixFilter,
    TokenGradientFilter,
)
from promptguard.errors import InvalidArgument
from promptguard.score.desk import Call, Desk
from promptguard.types import Filter

MAX_WAIT = 0.002
MAX_TEXTS = 256
_PATIENCE = 1.0  # seconds for the thread to end with its process

# What each capability consists of. Batches of texts are merged; other work goes through the thread call by call; what
# is arithmetic or a value is handed through.
_MERGED = {PrefixFilter: ("prefix_scores",), BoundedFilter: ("upper_bounds", "exact_scores")}
_ALONE = {InfusionFilter: ("infusion_scores",), DifferentiableFilter: ("mask_gradient",)}
_DIRECT = {
    MonotoneFilter: ("monotone",),
    BoundedFilter: ("floor", "exact_band", "least_bound"),
    TokenGradientFilter: ("tokens",),
}
_OPTIONAL = ("tokenizer", "assumes")


@runtime_checkable
class SharedFilter(Filter, Protocol):
    """A filter that threads may share, with the capabilities of the filter that it was made of."""

    def submit(self, texts: Sequence[str]) -> Future[list[float]]:
        """The scores to come. A future that is cancelled before its turn costs nothing.

        Raises:
            FilterError: the filter was closed.
        """
        ...

    def close(self) -> None:
        """Answer what waits, end the thread, and refuse further calls; again is harmless."""
        ...

    def __enter__(self) -> Self:
        """The filter itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...


def shared(filter_: Filter, *, max_wait: float = MAX_WAIT, max_texts: int = MAX_TEXTS) -> SharedFilter:
    """A filter for use from many threads, whose calls are merged.

    When the thread is free and a call is there, it waits for others up to `max_wait`, and no longer than until as many
    are there as were at once lately: a caller that is alone never waits. Calls are taken in order.
    When a merged call fails, its calls run one by one, so each caller gets its own result or its own error. A call that
    was cancelled, or whose thread was interrupted while it waited, is dropped. After a fork the child starts a thread
    of its own. The thread ends with `close`, at the end of a `with` block, or when nothing refers to the filter any
    longer; it keeps no process alive.

    Args:
        filter_: what is shared; from then on it should be called through the result only.
        max_wait: seconds.
        max_texts: texts in one merged call at most; a larger call goes alone.

    Raises:
        InvalidArgument: `max_wait` is negative or `max_texts` below 1.
    """
    if not 0 <= max_wait < float("inf") or max_texts < 1:
        raise InvalidArgument("max_wait must be a number of seconds, at least 0, and max_texts at least 1")
    return _Shared(filter_, max_wait, max_texts)


class _Shared:
    """The callers' side."""

    def __init__(self, filter_: Filter, max_wait: float, max_texts: int) -> None:
        self._filter = filter_
        self.name, self.threshold, self.guard_band = filter_.name, filter_.threshold, filter_.guard_band
        self._desk = desk = Desk(filter_.name, max_wait, max_texts)
        # Attributes of the instance, so that `isinstance` sees those that the filter has and no others.
        own = vars(self)
        for table, made in ((_MERGED, self._merged), (_ALONE, self._alone), (_DIRECT, _as_it_is)):
            for capability, names in table.items():
                if isinstance(filter_, capability):
                    own.update({name: made(getattr(filter_, name), desk) for name in names})
        own.update({name: getattr(filter_, name) for name in _OPTIONAL if hasattr(filter_, name)})
        # Also at exit: libraries in C++ abort a process that ends while a thread is inside them.
        weakref.finalize(self, desk.close, _PATIENCE)

    @property
    def digest(self) -> str:
        """The filter's own: it is the same function."""
        return self._filter.digest

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text.

        Raises:
            FilterError: the filter was closed.
        """
        scores: list[float] = self._desk.ask(Call.of(self._filter, texts))
        return scores

    def submit(self, texts: Sequence[str]) -> Future[list[float]]:
        """The scores to come."""
        return self._desk.put(Call.of(self._filter, texts))

    def close(self) -> None:
        """Answer what waits, end the thread, and refuse further calls."""
        self._desk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # No method of the instance, which would keep itself alive by holding one.
    @staticmethod
    def _merged(work: Callable[..., Any], desk: Desk) -> Callable[..., Any]:
        bind = inspect.signature(work).bind
        return lambda *columns, **named: desk.ask(Call.of(work, *bind(*columns, **named).args))

    @staticmethod
    def _alone(work: Callable[..., Any], desk: Desk) -> Callable[..., Any]:
        bind = inspect.signature(work).bind
        return lambda *arguments, **named: desk.ask(Call(work, bind(*arguments, **named).args, merges=False))


def _as_it_is(value: Any, _: Desk) -> Any:
    return value
