"""Reading a request's body, and noticing that nobody waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from promptguard.serve.answers import ApiError

_T = TypeVar("_T")


class ClientGone(Exception):
    """The client left before the answer."""


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body of a JSON request.

    Args:
        request: not read yet.
        limit: bytes; they are counted, whatever Content-Length says.
        seconds: for all of it.

    Raises:
        ApiError: 415 for anything but uncompressed JSON in UTF-8, 413 if it is too large, 408 if it comes too slowly.
        ClientGone: it ended before its end.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.replace('"', "").strip().lower()
    if kind.strip().lower() != "application/json" or charset not in {"", "charset=utf-8", "charset=utf8"}:
        raise ApiError(415, "send application/json in UTF-8", "unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise ApiError(415, "send the body without compression", "unsupported_media_type")
    too_large = ApiError(413, f"the body is over the limit of {limit} bytes", "body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", "request_timeout") from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of work, which is cancelled when the client leaves.

    Args:
        receive: of a request whose body was read, so that all it can say is that the client left.
        work: what the client waits for.

    Raises:
        ClientGone: the client left first.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
