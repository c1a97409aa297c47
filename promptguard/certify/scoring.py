"""The one place where a filter is called: its contract is checked, and no text leaves in an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from promptguard.capabilities import BoundedFilter, DifferentiableFilter, InfusionFilter, PrefixFilter
from promptguard.errors import FilterError, discreetly
from promptguard.types import Filter


def score_all(filter_: Filter, texts: Sequence[str]) -> list[float]:
    """The filter's scores of canonical, non-blank texts.

    Raises:
        FilterError: it raised, returned another number of scores, or one that is not a finite number.
    """
    return _checked(filter_, len(texts), "scores", discreetly(f"filter {filter_.name!r}", lambda: list(filter_(texts))))


def bounds_all(filter_: BoundedFilter, texts: Sequence[str]) -> list[float]:
    """The filter's cheap upper bounds for canonical, non-blank texts.

    Raises:
        FilterError: it raised, returned another number of bounds, or one that is not a finite number.
    """
    found = discreetly(f"filter {filter_.name!r}", lambda: list(filter_.upper_bounds(texts)))
    return _checked(filter_, len(texts), "bounds", found)


def exact_all(filter_: BoundedFilter, texts: Sequence[str]) -> list[float]:
    """The filter's costly scores of canonical, non-blank texts; none costs nothing.

    Raises:
        FilterError: it raised, returned another number of scores, or one that is not a finite number.
    """
    if not texts:
        return []
    found = discreetly(f"filter {filter_.name!r}", lambda: list(filter_.exact_scores(texts)))
    return _checked(filter_, len(texts), "scores", found)


def prefixes_all(filter_: PrefixFilter, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
    """The filter's scores of prefixes of canonical texts, none of them blank.

    Raises:
        FilterError: it raised, returned another number of scores, or one that is not a finite number.
    """
    rows = discreetly(f"filter {filter_.name!r}", lambda: [list(row) for row in filter_.prefix_scores(texts, ends)])
    if len(rows) != len(texts):
        raise FilterError(f"filter {filter_.name!r} returned {len(rows)} rows of scores for {len(texts)} texts")
    return [_checked(filter_, len(cuts), "scores", row) for cuts, row in zip(ends, rows, strict=True)]


def infusion_bounds(filter_: InfusionFilter, words: Sequence[str], budget: int) -> list[float]:
    """The filter's bounds for 0, 1, ... `budget` erased words.

    Raises:
        FilterError: it raised, returned another number of bounds, one that is not a finite number, or lower ones later.
    """
    found = discreetly(f"filter {filter_.name!r}", lambda: list(filter_.infusion_scores(words, budget)))
    bounds = _checked(filter_, budget + 1, "bounds", found)
    if any(low > high for low, high in pairwise(bounds)):
        raise FilterError(f"filter {filter_.name!r} returned a bound that is lower for a larger budget")
    return bounds


def _checked(filter_: Filter, count: int, what: str, values: Sequence[float]) -> list[float]:
    # Not float(value), which reads numbers out of strings.
    numbers = discreetly(f"filter {filter_.name!r}", lambda: [value.__float__() for value in values])
    if len(numbers) != count:
        raise FilterError(f"filter {filter_.name!r} returned {len(numbers)} {what} for {count} texts")
    if not all(map(math.isfinite, numbers)):
        raise FilterError(f"filter {filter_.name!r} returned a score that is not a finite number")
    return numbers


def gradient_of(filter_: DifferentiableFilter, pieces: Sequence[str], mask: Sequence[float]) -> tuple[float, ...]:
    """The derivative of the filter's score by an erasure mask, one number per piece.

    Raises:
        FilterError: it raised, or returned another number of values, or one that is not a finite number.
    """
    gradient = discreetly(f"filter {filter_.name!r}", lambda: filter_.mask_gradient(pieces, mask).gradient)
    if len(gradient) != len(pieces) or not all(map(math.isfinite, gradient)):
        raise FilterError(f"filter {filter_.name!r} returned a gradient that is not one finite number per piece")
    return gradient
