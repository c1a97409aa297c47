"""Streams of an answer on their way to the client: held back, released by window, or ended with an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard.strict_json import dump
from promptguard.serve import answers
from promptguard.serve.answers import ApiError
from promptguard.serve.call import Call
from promptguard.serve.sse import DONE, event
from promptguard.serve.window import Window

_log = logging.getLogger("promptguard.serve")


async def collected(values: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """All values of a stream."""
    return [value async for value in values]


async def guarded(first: bytes, rest: AsyncIterator[bytes], kept: AsyncExitStack) -> AsyncIterator[bytes]:
    """A stream whose first bytes are known; what goes wrong later becomes its last event.

    Args:
        first: known bytes.
        rest: those that follow.
        kept: closed at the end, however it comes.
    """
    async with kept:
        yield first
        try:
            async for chunk in rest:
                yield chunk
        except ApiError as error:
            fault = error
        except InvalidRequest:
            fault = ApiError(502, "the upstream's answer is not what the API says", "upstream_error")
        except Exception as error:  # its message may quote the answer
            _log.error("stream: %s", type(error).__name__)
            fault = ApiError(500, "the server failed", "internal_error")
        else:
            return
        yield b"\n\ndata: " + dump(fault.body()) + b"\n\n" + DONE


async def windowed(call: Call, values: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """A streamed chat completion whose text is released behind a window of checked text.

    Raises:
        ApiError: the answer is blocked; what went out before holds nothing of a flagged passage.
    """
    window = Window(call.state.config.streaming)
    held: list[dict[str, Any]] = []
    async for value in values:
        held.append(value)
        window.add(value)
        for index, text in window.due():
            await _allow(call, [{"content": text}])
            if released := window.release(index):
                yield event(_piece(value, index, released))
    await _allow(call, held)
    seen: dict[int, int] = {}
    for value in held:
        yield event(window.rest(value, seen))
        await asyncio.sleep(0)  # there may be a hundred thousand of them, and a client as fast as they are
    yield DONE


async def _allow(call: Call, values: Sequence[Any]) -> None:
    decision = await call.judge_output(values)
    if decision is not None and not decision.allowed:
        call.decision = decision
        raise answers.blocked(decision, call.summary(decision), param=None)


def _piece(value: dict[str, Any], index: int, text: str) -> dict[str, Any]:
    about = {key: value[key] for key in ("id", "object", "created", "model") if key in value}
    delta = {"role": "assistant", "content": text}
    return about | {"choices": [{"index": index, "delta": delta, "finish_reason": None, "logprobs": None}]}
