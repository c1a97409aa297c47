"""The one place where a filter is called: its contract is checked, and no text leaves in an error."""

from __future__ import annotations

import math
from collections.abc import Sequence

from promptguard.capabilities import DifferentiableFilter
from promptguard.errors import FilterError, discreetly
from promptguard.types import Filter


def score_all(filter_: Filter, texts: Sequence[str]) -> list[float]:
    """The filter's scores of canonical, non-blank texts.

    Raises:
        FilterError: it raised, returned another number of scores, or one that is not a finite number.
    """
    # Not float(score), which reads numbers out of strings.
    scores = discreetly(f"filter {filter_.name!r}", lambda: [score.__float__() for score in filter_(texts)])
    if len(scores) != len(texts):
        raise FilterError(f"filter {filter_.name!r} returned {len(scores)} scores for {len(texts)} texts")
    if not all(map(math.isfinite, scores)):
        raise FilterError(f"filter {filter_.name!r} returned a score that is not a finite number")
    return scores


def gradient_of(filter_: DifferentiableFilter, pieces: Sequence[str], mask: Sequence[float]) -> tuple[float, ...]:
    """The derivative of the filter's score by an erasure mask, one number per piece.

    Raises:
        FilterError: it raised, or returned another number of values, or one that is not a finite number.
    """
    gradient = discreetly(f"filter {filter_.name!r}", lambda: filter_.mask_gradient(pieces, mask).gradient)
    if len(gradient) != len(pieces) or not all(map(math.isfinite, gradient)):
        raise FilterError(f"filter {filter_.name!r} returned a gradient that is not one finite number per piece")
    return gradient
