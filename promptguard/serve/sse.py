"""Server-sent events of the OpenAI API: bytes in chunks of any size to JSON values, and back.

Source: the WHATWG HTML standard, section 9.2.6 (parsing an event stream); the API sends `data: [DONE]` at the end.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard.strict_json import dump
from promptguard.serve.large import parsed

DONE = b"data: [DONE]\n\n"
_LINE = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # the line feed behind a last \\r may be in the next chunk
_MARK = b"\xef\xbb\xbf"
_ASIDE = re.compile(rb"(?:event|id|retry)?:|(?:data|event|id|retry)\Z")
_NAME = re.compile(r"[a-z_.]{1,64}")


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The values of a stream, up to `[DONE]` or its end; comments, names and ids of events are left out.

    Args:
        chunks: the stream, cut anywhere.

    Raises:
        InvalidRequest: an event is not a JSON object, or a line is not of an event stream.
    """
    data: list[bytes] = []
    is_first = True
    async for found in _lines(chunks):
        line, is_first = found.removeprefix(_MARK) if is_first else found, False
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            body = b"\n".join(data)
            data = []
            if body.strip() == b"[DONE]":
                return
            value = await parsed(body)
            if not isinstance(value, dict):
                raise InvalidRequest("an event is not a JSON object")
            yield value
        elif line and not _ASIDE.match(line):  # an answer of another type, which would be lost without a word
            raise InvalidRequest("a line of the event stream is none")


def event(value: dict[str, Any]) -> bytes:
    """The bytes of one event; those of the responses API bear their type as a name."""
    kind = value.get("type")
    name = f"event: {kind}\n".encode() if isinstance(kind, str) and _NAME.fullmatch(kind) else b""
    return name + b"data: " + dump(value) + b"\n\n"


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest: list[bytes] = []  # of one line, which may be as long as the answer
    async for chunk in chunks:
        begun = rest.pop() if rest and rest[-1] == b"\r" else b""
        first, *lines = _LINE.split(begun + chunk)
        rest.append(first)
        for line in lines:
            yield b"".join(rest)
            rest = [line]
        # Kept apart: whether it ends the line alone or with a line feed is told by the next chunk.
        if rest[-1].endswith(b"\r"):
            rest[-1:] = [rest[-1][:-1], b"\r"]
    yield b"".join(rest).removesuffix(b"\r")
    yield b""
