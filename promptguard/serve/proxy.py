"""The guarded routes to the upstream: nothing is forwarded before the verdict, and only what was read is forwarded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.responses import Response, StreamingResponse

from promptguard.errors import InvalidRequest
from promptguard.guard import Decision, Reason
from promptguard.guard.chat_request import ChatRequest, read_apart, read_request
from promptguard.guard.strict_json import dump, parse
from promptguard.serve import answers, streams
from promptguard.serve.answers import ApiError, json_response
from promptguard.serve.call import Call
from promptguard.serve.config import BlockMode, Release
from promptguard.serve.large import dumped
from promptguard.serve.sse import DONE, event, events
from promptguard.serve.tracing import span
from promptguard.serve.upstream import Upstream, passed_headers
from promptguard.serve.wish import Wish

EVENT_STREAM = "text/event-stream"
_Refusals = Callable[[str, str, str], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A route of the API.

    Attributes:
        path: below `/v1/`.
        param: the field that carries the conversation, for errors.
        refusal: answers instead of the model, or None where there is no such answer.
        refusal_stream: the same as the events of a stream.
        read: the texts of its requests, each with a decision of its own.
    """

    path: str
    param: str
    refusal: Callable[[str, str, str], dict[str, Any]] | None = None
    refusal_stream: _Refusals | None = None
    read: Callable[[object], Sequence[ChatRequest]] = lambda body: [read_request(body)]


SHAPES = (
    Shape("chat/completions", "messages", answers.refusal_chat, answers.refusal_chunks),
    Shape("completions", "prompt", answers.refusal_completion, lambda *about: [answers.refusal_completion(*about)]),
    Shape(
        "responses",
        "input",
        answers.refusal_response,
        lambda *about: [{"type": "response.incomplete", "response": answers.refusal_response(*about)}],
    ),
    Shape("embeddings", "input", read=read_apart),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for.

    Attributes:
        body: the bytes to forward: those of what was read.
        model: the model it named.
        is_stream: whether it wants a stream.
        wish: the moderation that it asks for in addition.
    """

    body: bytes
    model: str
    is_stream: bool
    wish: Wish


def handler(shape: Shape) -> Callable[[Call], Awaitable[Response]]:
    """The handler of a route."""

    async def handle(call: Call) -> Response:
        upstream = call.state.upstream
        if upstream is None:
            raise ApiError(501, "no upstream is configured: this server only judges texts", "no_upstream")
        content = await call.body()
        depth = call.state.config.limits.depth
        judged = await call.judge(lambda: _read(content, depth, shape))
        asked, decision = judged.value, judged.decision
        if not decision.allowed or (asked.wish.blocks_input and decision.reason is not Reason.ALLOWED):
            return _blocked(call, shape, asked, decision, shape.param)
        return await _Exchange(call, upstream, shape, asked, decision).response()

    return handle


def _read(content: bytes, depth: int, shape: Shape) -> tuple[Sequence[ChatRequest], Asked]:
    value = parse(content, max_depth=depth)
    texts = shape.read(value)
    wish = Wish.of(value.get("moderation"))
    is_stream = value.get("stream", False)
    if not isinstance(is_stream, bool | None):
        raise InvalidRequest("stream must be true or false")
    model = value.get("model")
    # Who serves the moderation is this server; an upstream may not know the field.
    forwarded = dump({key: item for key, item in value.items() if key != "moderation"})
    return texts, Asked(forwarded, model if isinstance(model, str) else "unknown", bool(is_stream), wish)


def _blocked(call: Call, shape: Shape, asked: Asked, decision: Decision, param: str | None) -> Response:
    config = call.state.config
    about = call.summary(decision)
    if config.block_mode is BlockMode.ERROR or shape.refusal is None or shape.refusal_stream is None:
        return answers.blocked(decision, about, param=param).response()
    words = (asked.model, call.id, config.policy.refusal)
    if asked.is_stream:
        body = b"".join(map(event, shape.refusal_stream(*words))) + DONE
        return Response(body, media_type=EVENT_STREAM)
    value = shape.refusal(*words) | {"promptguard": about}
    if asked.wish.is_asked:
        is_input = param is not None
        field = answers.moderation_field(decision, config)
        nothing = answers.moderation_field(None, config)
        value["moderation"] = {"input": field if is_input else nothing, "output": nothing if is_input else field}
    return json_response(value)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """An allowed request and its answer."""

    call: Call
    upstream: Upstream
    shape: Shape
    asked: Asked
    decision: Decision

    @property
    def is_checked(self) -> bool:
        return self.call.state.config.output.check or self.asked.wish.is_asked

    async def response(self) -> Response:
        stack = AsyncExitStack()
        try:
            return await self._response(stack)
        finally:
            # A stream has taken over what it needs.
            await stack.aclose()

    async def _response(self, stack: AsyncExitStack) -> Response:
        start = time.perf_counter()
        with span("upstream", {"route": self.shape.path, "request_id": self.call.id}):
            received = await self.call.while_there(self._send(stack))
        self.call.services.metrics.upstream.labels(self.shape.path).observe(time.perf_counter() - start)
        kind = received.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != EVENT_STREAM:
            return await self._whole(received)
        config = self.call.state.config
        is_window = config.streaming.release is Release.WINDOW and self.shape.path == "chat/completions"
        if not self.is_checked:
            stream = self.upstream.chunks(received)
        elif is_window and not self.asked.wish.is_asked:
            stream = streams.windowed(self.call, events(self.upstream.chunks(received)))
        else:
            return await self._buffered(received)
        first = await self.call.while_there(_first(stream))
        kept = stack.pop_all()
        return StreamingResponse(
            streams.guarded(first, stream, kept), headers=passed_headers(received), media_type=EVENT_STREAM
        )

    async def _send(self, stack: AsyncExitStack) -> httpx2.Response:
        sending = self.upstream.send("POST", self.shape.path, self.asked.body, self.call.request.headers)
        return await stack.enter_async_context(sending)

    async def _whole(self, received: httpx2.Response) -> Response:
        value, size = await self._in_time(self.upstream.json(received))
        if self.is_checked:
            decision = await self._judged([value])
            if decision is not None and self._is_blocked(decision):
                return self._refused(decision)
            if self.asked.wish.is_asked:
                value["moderation"] = self._moderation(decision)
        body = await dumped(value, size)
        return Response(body, headers=passed_headers(received), media_type="application/json")

    async def _buffered(self, received: httpx2.Response) -> Response:
        values = await self._in_time(streams.collected(events(self.upstream.chunks(received))))
        decision = await self._judged(values)
        if decision is not None and self._is_blocked(decision):
            return self._refused(decision)
        if self.asked.wish.is_asked and values:
            about = {key: values[-1][key] for key in ("id", "object", "created", "model") if key in values[-1]}
            values = [*values, about | {"choices": [], "moderation": self._moderation(decision)}]
        body = await asyncio.to_thread(lambda: b"".join(map(event, values)) + DONE)
        return Response(body, headers=passed_headers(received), media_type=EVENT_STREAM)

    async def _in_time(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self.call.state.config.limits.answer_seconds):
                return await self.call.while_there(work)
        except TimeoutError:
            raise ApiError(504, "the upstream did not answer in time", "upstream_timeout") from None
        except InvalidRequest:
            raise ApiError(502, "the upstream's answer is not what the API says", "upstream_error") from None

    async def _judged(self, values: Sequence[Any]) -> Decision | None:
        return await self.call.while_there(self.call.judge_output(values))

    def _is_blocked(self, decision: Decision) -> bool:
        if self.call.state.config.output.check and not decision.allowed:
            return True
        return self.asked.wish.blocks_output and decision.reason is not Reason.ALLOWED

    def _refused(self, decision: Decision) -> Response:
        self.call.decision = decision
        return _blocked(self.call, self.shape, self.asked, decision, None)

    def _moderation(self, output: Decision | None) -> Mapping[str, Any]:
        config = self.call.state.config
        return {
            "input": answers.moderation_field(self.decision, config),
            "output": answers.moderation_field(output, config),
        }


async def _first(stream: AsyncIterator[bytes]) -> bytes:
    """The first bytes: until they are there, what goes wrong still has an HTTP status.

    Raises:
        ApiError: what goes wrong.
    """
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return b""
    except InvalidRequest:
        raise ApiError(502, "the upstream's answer is not what the API says", "upstream_error") from None
