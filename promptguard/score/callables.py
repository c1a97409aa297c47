"""Any function of a list of texts as a filter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from promptguard.errors import FilterError, InvalidArgument, discreetly


class CallableFilter:
    """Wraps a function `Sequence[str] -> Sequence[float]`.

    The function must be one: the same text has the same score, whatever else is in the list. If it batches a neural
    network, state in `guard_band` how far its scores move with the batch.
    """

    def __init__(
        self,
        fn: Callable[[Sequence[str]], Sequence[float]],
        threshold: float = 0.5,
        name: str | None = None,
        digest: str | None = None,
        *,
        guard_band: float = 0.0,
    ) -> None:
        """Wrap `fn`.

        Args:
            fn: takes n texts, returns n scores; numpy arrays and tensors of n numbers will do.
            threshold: scores at or above it are harmful.
            name: for people; default the qualified name of `fn`.
            digest: identity of `fn` including its weights. The default only names the function: nothing can look
                inside an arbitrary one.
            guard_band: how far a score may move with the composition of the list.

        Raises:
            InvalidArgument: `threshold` or `guard_band` is not finite, or `guard_band` is negative.
        """
        if not math.isfinite(threshold):
            raise InvalidArgument(f"threshold is {threshold}; it must be a finite number")
        if not (math.isfinite(guard_band) and guard_band >= 0):
            raise InvalidArgument(f"guard_band is {guard_band}; it must be a finite number of at least 0")
        qualified = getattr(fn, "__qualname__", type(fn).__qualname__)
        self._fn = fn
        self.threshold = float(threshold)
        self.guard_band = float(guard_band)
        self.name = name or qualified
        self.digest = digest or f"callable:{getattr(fn, '__module__', type(fn).__module__)}.{qualified}"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text.

        Raises:
            FilterError: the function raised, or did not return one number per text.
        """
        # Not float(score), which reads numbers out of strings.
        scores = discreetly(f"filter {self.name}", lambda: [score.__float__() for score in self._fn(texts)])
        if len(scores) != len(texts):
            raise FilterError(f"filter {self.name} returned {len(scores)} scores for {len(texts)} texts")
        return scores
