"""ASGI middleware: a guard in front of any Starlette, FastAPI or other ASGI application.

    app.add_middleware(PromptGuardMiddleware, guard=Guard(certifier))
    vllm serve MODEL --middleware promptguard.middleware.asgi.PromptGuardMiddleware

The promise: the body of a request reaches the application only if it is JSON that all parsers read alike, and the guard
allows every text in it: whatever the path and the method. What is forwarded is not what the client sent but the checked
value, written again. A body that calls itself something else than JSON is refused: an application would take it for a
form, and a web page of somebody else may send it without asking. Websockets are refused. Paths named in `unguarded` are
the only exception. Texts in the URL and in headers are not read, so an application must not give them to a model.

In vLLM the middleware runs outside of its own: a request is checked before its key is, and answers of the guard have no
CORS headers and no request id. Trailers of a request, which ASGI does not know, are not passed on.

Without a guard the middleware takes the default one, or what the variables of `promptguard.guard.environment` describe.

Source of the contract: the ASGI specification, HTTP and WebSocket messages, version 2.5.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard import Guard
from promptguard.guard.chat_answer import is_answer, read_answer, read_events
from promptguard.guard.chat_request import ChatRequest, read_request
from promptguard.guard.environment import guard_of
from promptguard.guard.reading import strings_of
from promptguard.guard.strict_json import dump, parse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
_Headers = list[tuple[bytes, bytes]]

MAX_BODY = 4 * 2**20
# Headers that describe the client's bytes, which are not the ones that are forwarded.
_OF_THE_BODY = frozenset({
    b"content-length", b"content-encoding", b"transfer-encoding", b"content-md5", b"digest", b"content-digest",
    b"repr-digest", b"trailer",
})  # fmt: skip
_JSON = re.compile(rb"application/(?:[\w.-]+\+)?json\s*(?:;\s*charset=\"?utf-?8\"?\s*)?;?")  # in lower case
_LARGE = 65_536  # bytes that are read in a thread, so that the application goes on


class PromptGuardMiddleware:
    """Checks request bodies, and answers if the owner wants that.

    A block is answered with status 400 and an error in OpenAI's form, code "content_filter"; a body that cannot be read
    with 400, 413 or 415. With `check_output` the answer to a request that held text is collected, checked and only then
    sent, status line included; one that is neither JSON nor an event stream of JSON is withheld. Answers to requests
    without a body are not looked at.

    Args:
        app: the application.
        guard: what decides; by default the guard that the environment describes. It is loaded here, so that a server
            without its filter does not start.
        check_output: check answers as well.
        unguarded: paths as in `scope["path"]`, prefixes of mounts included, whose requests pass unseen, websockets too.
        max_body: bytes of the longest body accepted.
    """

    def __init__(
        self,
        app: App,
        guard: Guard | None = None,
        *,
        check_output: bool = False,
        unguarded: Collection[str] = (),
        max_body: int = MAX_BODY,
    ) -> None:
        self._app = app
        self._guard = guard if guard is not None else guard_of(os.environ)
        self._check_output = check_output
        self._unguarded = frozenset(unguarded)
        self._max_body = max_body

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        match scope["type"]:
            case "lifespan":
                await self._app(scope, receive, send)
            case "http" | "websocket" if scope["path"] in self._unguarded:
                await self._app(scope, receive, send)
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": "websockets are not guarded"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            given = await self._body(scope, receive)
            if given is None:
                return
            request, body = await asyncio.to_thread(_opened, given) if len(given) > _LARGE else _opened(given)
        except _Refused as refused:
            await _error(send, refused.status, str(refused), "invalid_request")
            return
        except InvalidRequest as error:
            await _error(send, 400, str(error), "invalid_request")
            return
        if request is not None:
            decision = await self._guard.acheck(request.messages, context=request.context)
            if not decision.allowed:
                await _block(send)
                return
        forwarded = _forwarded(scope, body) if body else scope
        replay = _Replay(body, receive)
        if request is None or not self._check_output:
            await self._app(forwarded, replay, send)
            return
        held = _Held()
        await self._app(_without_shortcuts(forwarded), replay, held)
        if not held.complete:
            return  # the server answers for an application that did not
        answer = await asyncio.to_thread(_answer, held) if len(held.body) > _LARGE else _answer(held)
        if answer is None or (await self._guard.acheck(answer.messages, context=answer.context)).allowed:
            await held.release(send)
        else:
            await _block(send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away.

        Raises:
            _Refused: it is too long, compressed or called something else than JSON.
        """
        body = bytearray()
        more = True
        while more:  # counted here, since a content-length is optional and the client's word
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body:
                raise _Refused(413, f"the body is over {self._max_body} bytes")
        if body and any(value != b"identity" for value in _values(scope["headers"], b"content-encoding")):
            raise _Refused(415, "a compressed body cannot be checked: send it as it is")
        kinds = _values(scope["headers"], b"content-type")
        if body and (len(kinds) > 1 or not all(map(_JSON.fullmatch, kinds))):
            raise _Refused(415, "send application/json in UTF-8")
        return bytes(body)


class _Refused(Exception):
    """A body that is not read.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class _Replay:
    """Gives the application the body that was checked, then what the client still has to say: that it is gone."""

    body: bytes
    receive: Receive
    is_given: bool = False

    async def __call__(self) -> Message:
        if self.is_given:
            return await self.receive()
        self.is_given = True
        return {"type": "http.request", "body": self.body, "more_body": False}


@dataclass(slots=True)
class _Held:
    """Takes an answer and keeps it."""

    start: Message | None = None
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body" and not self.complete:
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)

    @property
    def headers(self) -> _Headers:
        return list(self.start["headers"]) if self.start and "headers" in self.start else []

    async def release(self, send: Send) -> None:
        if self.start is not None:
            # Trailers are not kept, so none are announced.
            await send({**self.start, "trailers": False})
            await send({"type": "http.response.body", "body": bytes(self.body)})


def _opened(body: bytes) -> tuple[ChatRequest | None, bytes]:
    """What is to be checked of a JSON body, None if there is no text in it, and the bytes to forward.

    Raises:
        InvalidRequest: it cannot be read.
    """
    value = parse(body) if body else None
    if not isinstance(value, dict | list | str):
        return None, dump(value) if body else b""
    request = read_request(value if isinstance(value, dict) else {"input": value})
    return request if request.messages or request.context else None, dump(value)


def _answer(held: _Held) -> ChatRequest | None:
    """What is to be checked of an answer; None if there is no text in it."""
    if not held.body:
        return None
    kinds = _values(held.headers, b"content-type")
    is_plain = len(kinds) == 1 and not _values(held.headers, b"content-encoding")
    events = read_events(bytes(held.body), kinds[0].decode("latin-1")) if is_plain else None
    if events is None:
        return ChatRequest((None,), ())
    if is_answer(events):
        answer = ChatRequest(read_answer(events), ())
    else:
        texts = strings_of(events)
        answer = ChatRequest((None,), ()) if texts is None else ChatRequest((), texts)
    return answer if answer.messages or answer.context else None


def _forwarded(scope: Message, body: bytes) -> Message:
    """The scope of the request with the body that was checked."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _OF_THE_BODY]
    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}


def _without_shortcuts(scope: Message) -> Message:
    """The scope for an application whose answer comes through `send` as it is: no files by path, no compression."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
    return {**scope, "headers": headers, "extensions": {}}


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value.strip().lower() for key, value in headers if key.lower() == name]


async def _block(send: Send) -> None:
    await _error(send, 400, "blocked by promptguard", "content_filter")


async def _error(send: Send, status: int, message: str, code: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = dump({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
