"""The score of each prefix: the picture of what a causal filter sees as it reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from promptguard.capabilities import PrefixFilter
from promptguard.certify.pieces import Pieces
from promptguard.certify.scoring import prefixes_all, score_all
from promptguard.serve.playground.limits import Limits
from promptguard.serve.playground.results import Point, Strip
from promptguard.types import EraseMode, Filter, Units
from promptguard.view import check_text, prefix_views


def strip(text: str, filter_: Filter, mode: EraseMode, units: Units, limits: Limits, *, start: int = 0) -> Strip:
    """The filter's score of each prefix that ends with a unit; blank ones, and doubles, are left out.

    Of a long text only every second, third, ... prefix is scored, counted from the end.

    Args:
        text: the text.
        filter_: scores all prefixes in one pass if it can.
        mode: says which prefixes are among its erasures.
        units: where prefixes end.
        limits: how many are scored.
        start: code point at whose unit the prefixes begin, for modes that erase the beginning.

    Raises:
        InvalidText: the text is empty, too long, or no text.
        FilterError: the filter broke its contract.
    """
    pieces = Pieces.of(check_text(text, limits.max_chars), units)
    first = min(bisect_right(pieces.offsets, start), len(pieces)) - 1
    view, ends = prefix_views(pieces.cut()[first:])
    n, most = len(ends), limits.max_points
    if not isinstance(filter_, PrefixFilter):
        most = max(2, min(most, 2 * limits.max_extra // len(text)))
    # Invisible pieces at the end leave the view as it is: of equal prefixes the longest, the cheapest erasure, stays.
    chosen = {ends[k - 1]: k for k in reversed(range(n, 0, -n // most)) if ends[k - 1]}
    places = sorted(chosen)
    longest = getattr(mode, "max_prompt", len(pieces))
    return Strip(
        tuple(
            Point(k, pieces.offsets[first + k], score, len(pieces) - k <= mode.budget and k <= longest)
            for k, score in zip((chosen[end] for end in places), _scores(filter_, view, places), strict=True)
        ),
        filter_.threshold,
    )


def _scores(filter_: Filter, view: str, ends: Sequence[int]) -> list[float]:
    if isinstance(filter_, PrefixFilter):
        return prefixes_all(filter_, [view], [ends])[0]
    return score_all(filter_, [view[:end] for end in ends])
