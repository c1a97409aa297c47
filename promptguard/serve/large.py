"""JSON of any size beside the event loop: what is large goes to a thread, so that other requests and probes go on."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from itertools import islice
from typing import Any

from promptguard.guard.strict_json import dump, parse

_LARGE = 262_144
_DEPTH = 100
_PIECES = 10_000
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":"))


async def parsed(content: bytes) -> Any:
    """What a model's JSON holds.

    Raises:
        InvalidRequest: as `strict_json.parse`.
    """
    work = partial(parse, content, max_depth=_DEPTH)
    return await asyncio.to_thread(work) if len(content) > _LARGE else work()


async def dumped(value: Any, size: int) -> bytes:
    """The bytes that `strict_json.dump` makes.

    Args:
        value: as there.
        size: about how many bytes.
    """
    return await asyncio.to_thread(_in_pieces, value) if size > _LARGE else dump(value)


def _in_pieces(value: Any) -> bytes:
    # `dump` itself, and the joining of millions of pieces, let no other thread run until they are done.
    pieces, made = iter(_ENCODER.iterencode(value)), []
    while some := list(islice(pieces, _PIECES)):
        made.append("".join(some).encode("ascii"))
    return b"".join(made)
