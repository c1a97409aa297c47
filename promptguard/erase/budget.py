"""What the modes share: a checked budget."""

from __future__ import annotations

import math

from promptguard.errors import InvalidArgument


def checked(budget: float) -> float:
    """The budget, if it is a whole number >= 0 or infinite.

    Raises:
        InvalidArgument: it is not.
    """
    is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not is_number or not budget >= 0 or not (math.isinf(budget) or budget == int(budget)):
        raise InvalidArgument(f"the erase budget must be a whole number >= 0 or unlimited, not {budget!r}")
    return budget if math.isinf(budget) else int(budget)


def one_block(blocks: int, kind: str) -> int:
    """1, if that is what was asked for.

    Raises:
        InvalidArgument: another number of blocks, which only insertion has.
    """
    if blocks != 1:
        raise InvalidArgument(f"mode {kind!r} has no blocks; only insertion has")
    return blocks


def capped(budget: float, n: int) -> int:
    """Units that a budget can erase of n."""
    return n if math.isinf(budget) else min(int(budget), n)
