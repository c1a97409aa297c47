"""OpenAI's client: what is on the wire was allowed, whichever method sent it; answers wait for their verdict."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from doubles import CANARY, Does, Words

from promptguard.errors import Blocked, InvalidArgument, MissingDependency, PromptGuardError
from promptguard.guard import Action, Guard, Policy
from promptguard.guard.chat_answer import read_answer, read_events

pytest.importorskip("openai")
pytest.importorskip("starlette")

import httpx2
import openai
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from promptguard.middleware.openai import (
    BlockedRequest,
    GuardedAsyncOpenAI,
    GuardedOpenAI,
    check_version,
    wrap_openai,
)

CAKE, BOMB = "bake a cake", f"a {CANARY}"
URL = "http://testserver/v1"


def user_says(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


class Upstream:
    """An endpoint in this process: keeps the bodies it got, answers with `answer`."""

    def __init__(self, answer: str = "fine", **extra: Any) -> None:
        self.bodies: list[bytes] = []
        self.answer = answer
        self.extra = extra
        methods = ["GET", "POST", "PUT", "DELETE"]
        self.app = Starlette(routes=[Route("/{path:path}", self.reply, methods=methods)])

    async def reply(self, request: Request) -> Response:
        body = await request.body()
        self.bodies.append(body)
        path = request.url.path
        try:
            streams = json.loads(body or b"{}").get("stream")
        except ValueError:
            streams = False
        if path.endswith("/models"):
            return JSONResponse({"object": "list", "data": [{"id": f"m {CANARY}", "object": "model"}]})
        if path.endswith("/cake"):
            return JSONResponse({"object": "list", "data": [{"id": "m1", "content": CAKE}], "has_more": False})
        if request.method == "GET":
            return JSONResponse({"object": "list", "data": [{"id": "m1", "content": BOMB}], "has_more": False})
        if path.endswith("/odd"):
            return JSONResponse({"odd": "form"})
        if path.endswith("/embeddings"):
            row = {"object": "embedding", "index": 0, "embedding": [0.5]}
            return JSONResponse({"object": "list", "data": [row], "model": "m"})
        if "/responses" in path:
            return self.events(self.response_events()) if streams else JSONResponse(self.response())
        if streams:
            return self.events(self.chunks())
        message = {"role": "assistant", "content": self.answer, **self.extra}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "text": self.answer}
        return JSONResponse({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    def events(self, found: list[Any]) -> Response:
        lines = [f"data: {json.dumps(event)}\n\n" for event in found] + ["data: [DONE]\n\n"]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

    def chunks(self) -> list[Any]:
        """One character at a time, of two choices in turn."""
        return [
            {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
             "choices": [{"index": i, "delta": {"content": letter}, "finish_reason": None, "text": letter}]}
            for letter in self.answer for i in (0, 1)
        ]  # fmt: skip

    def response(self) -> dict[str, Any]:
        part = {"type": "output_text", "text": self.answer, "annotations": []}
        message = {"id": "m", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
        asked = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "instructions": BOMB}
        return {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [message], **asked}

    def response_events(self) -> list[Any]:
        place = {"item_id": "m", "output_index": 0, "content_index": 0}
        letters = [
            {"type": "response.output_text.delta", "delta": letter, "sequence_number": i, "logprobs": [], **place}
            for i, letter in enumerate(self.answer)
        ]
        return [*letters, {"type": "response.completed", "response": self.response(), "sequence_number": 99}]

    def sync(self, guard: Guard | None = None, **options: Any) -> Any:
        http: Any = TestClient(self.app)
        return GuardedOpenAI(
            guard=guard or Guard(Words()), api_key="x", base_url=URL, http_client=http, max_retries=0, **options
        )

    def bare(self, kind: Any = openai.OpenAI, **options: Any) -> Any:
        return kind(api_key="x", base_url=URL, http_client=TestClient(self.app), max_retries=0, **options)

    def asynchronous(self, guard: Guard | None = None, **options: Any) -> Any:
        http: Any = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app))
        return GuardedAsyncOpenAI(
            guard=guard or Guard(Words()), api_key="x", base_url=URL, http_client=http, max_retries=0, **options
        )


class Answer(BaseModel):
    text: str


def chat(client: Any, text: Any, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=user_says(text), **more)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "chat": chat,
    "stream": lambda client, text: chat(client, text, stream=True),
    "raw": lambda client, text: client.chat.completions.with_raw_response.create(model="m", messages=user_says(text)),
    "options": lambda client, text: chat(client.with_options(timeout=9), text),
    "copy": lambda client, text: chat(client.copy().copy(), text),
    "responses": lambda client, text: client.responses.create(model="m", input=text),
    "responses stream": lambda client, text: client.responses.create(model="m", input=text, stream=True),
    "completions": lambda client, text: client.completions.create(model="m", prompt=text),
    "embeddings": lambda client, text: client.embeddings.create(model="m", input=text, encoding_format="float"),
    "post": lambda client, text: client.post("/own", body={"messages": user_says(text)}, cast_to=object),
    "put": lambda client, text: client.put("/own", body={"anything": [text]}, cast_to=object),
    "extra_body": lambda client, text: chat(client, CAKE, extra_body={"messages": user_says(text)}),
    "extra field": lambda client, text: chat(client, CAKE, extra_body={"hidden": {"deep": [text]}}),
    "extra_body of post": lambda client, text: client.post(
        "/own",
        body={"messages": user_says(CAKE)},
        options={"extra_json": {"messages": user_says(text)}},
        cast_to=object,
    ),
    "tool arguments": lambda client, text: client.chat.completions.create(
        model="m",
        messages=[
            *user_says(CAKE),
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": CAKE},
        ],
    ),
    "tool schema": lambda client, text: chat(
        client, CAKE, tools=[{"type": "function", "function": {"name": "f", "description": text, "parameters": {}}}]
    ),
    "earlier turn": lambda client, text: client.chat.completions.create(
        model="m", messages=[*user_says(text), {"role": "assistant", "content": "ok"}, *user_says(CAKE)]
    ),
    "part": lambda client, text: chat(client, [{"type": "text", "text": CAKE}, {"type": "text", "text": text}]),
    "instructions": lambda client, text: client.responses.create(model="m", input=CAKE, instructions=text),
    "metadata": lambda client, text: chat(client, CAKE, metadata={"k": text}),
    "prediction": lambda client, text: chat(client, CAKE, prediction={"type": "content", "content": text}),
}


@pytest.mark.parametrize("name", CALLS)
def test_blocked_text_is_never_on_the_wire(name: str) -> None:
    upstream = Upstream()
    CALLS[name](upstream.sync(), CAKE)
    assert len(upstream.bodies) == 1
    assert CAKE in upstream.bodies[0].decode()
    with pytest.raises(BlockedRequest):
        CALLS[name](upstream.sync(), BOMB)
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize("name", CALLS)
def test_the_asynchronous_client_does_the_same(name: str) -> None:
    upstream = Upstream()
    asyncio.run(_await(CALLS[name](upstream.asynchronous(), CAKE)))
    assert len(upstream.bodies) == 1
    with pytest.raises(BlockedRequest):
        asyncio.run(_await(CALLS[name](upstream.asynchronous(), BOMB)))
    assert len(upstream.bodies) == 1


async def _await(call: Any) -> Any:
    return await call


UNREADABLE: dict[str, Callable[[Any], Any]] = {
    "image": lambda client: chat(client, [{"type": "image_url", "image_url": {"url": "https://x.org/i.png"}}]),
    "sound": lambda client: chat(client, [{"type": "input_audio", "input_audio": {"data": "eA==", "format": "wav"}}]),
    "history": lambda client: client.responses.create(model="m", input=CAKE, previous_response_id="resp_1"),
    "conversation": lambda client: client.responses.create(model="m", input=CAKE, conversation="conv_1"),
    "stored prompt": lambda client: client.responses.create(model="m", prompt={"id": "pmpt_1"}),
    "tokens": lambda client: client.completions.create(model="m", prompt=[1, 2, 3]),
    "upload": lambda client: client.files.create(file=("a.txt", b"a cake"), purpose="assistants"),
    "transcription": lambda client: client.audio.transcriptions.create(model="m", file=("a.wav", b"x"), prompt=CAKE),
    "bytes": lambda client: client.post("/own", content=b"\xff\xfe{\x00}\x00", cast_to=object),
    "utf-16": lambda client: client.post("/own", content='{"messages":[]}'.encode("utf-16"), cast_to=object),
    "twice": lambda client: client.post("/own", content=b'{"prompt":"x","prompt":"y"}', cast_to=object),
    "role": lambda client: client.chat.completions.create(model="m", messages=[{"role": "wizard", "content": CAKE}]),
    "nothing": lambda client: chat(client, ""),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_not_sent(name: str) -> None:
    upstream = Upstream()
    with pytest.raises(BlockedRequest):
        UNREADABLE[name](upstream.sync())
    with pytest.raises(BlockedRequest):
        asyncio.run(_await(UNREADABLE[name](upstream.asynchronous())))
    assert upstream.bodies == []


def test_the_owner_may_let_unreadable_things_and_paths_pass() -> None:
    upstream = Upstream()
    lenient = Guard(Words(), Policy(on_unscannable=Action.ALLOW))
    UNREADABLE["image"](upstream.sync(lenient))
    CALLS["embeddings"](upstream.sync(unguarded=["/embeddings"]), BOMB)
    assert len(upstream.bodies) == 2
    with pytest.raises(BlockedRequest):
        chat(upstream.sync(unguarded=["/embeddings"]), BOMB)
    with pytest.raises(BlockedRequest):
        chat(upstream.sync(unguarded=["/embeddings"]).copy(), BOMB)


def test_requests_without_a_body_pass() -> None:
    assert Upstream().sync(check_output=True).models.list().data[0].id == f"m {CANARY}"


@pytest.mark.parametrize("place", ["realtime", "beta.realtime", "responses", "beta.responses", "live"])
def test_websockets_are_refused(place: str) -> None:
    pytest.importorskip("websockets")
    client = Upstream().sync()
    resource: Any = client
    for name in place.split("."):
        resource = getattr(resource, name, None)
    if not hasattr(resource, "connect"):
        pytest.skip("this version of openai has no such connection")
    with pytest.raises((InvalidArgument, TypeError), match=r"(?i)websockets"):
        resource.connect(**({"model": "m"} if "realtime" in place else {})).enter()


def test_websockets_of_copies_are_refused() -> None:
    pytest.importorskip("websockets")
    with pytest.raises((InvalidArgument, TypeError), match=r"(?i)websockets"):
        Upstream().sync(websocket_base_url="ws://localhost:1").copy().realtime.connect(model="m").enter()


# Blocks


def test_a_block_is_one_of_openais_errors_and_one_of_ours() -> None:
    caught: Any
    with pytest.raises(openai.BadRequestError) as caught:
        chat(Upstream().sync(), BOMB)
    error: Any = caught.value
    assert all(issubclass(type(error), kind) for kind in (Blocked, PromptGuardError))
    assert (error.status_code, error.code, error.type) == (400, "content_filter", "invalid_request_error")
    assert error.decision.certificate is not None
    assert error.__cause__ is error.__context__ is None
    everything = [str(error), repr(error), error.args, vars(error), error.request.content, error.response.text]
    assert CANARY not in str(everything)


def test_nothing_is_retried_after_a_block() -> None:
    certifier = Words()
    client = Upstream().sync(Guard(certifier)).with_options(max_retries=3)
    with pytest.raises(BlockedRequest):
        chat(client, BOMB)
    assert certifier.seen == [BOMB]


def test_a_broken_certifier_blocks() -> None:
    upstream = Upstream()
    with pytest.raises(BlockedRequest):
        chat(upstream.sync(Guard(Does(RuntimeError(BOMB)))), CAKE)
    assert upstream.bodies == []


def test_no_text_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "promptguard")
    for client, text in ((Upstream().sync(), BOMB), (Upstream(BOMB).sync(check_output=True), CAKE)):
        with pytest.raises(BlockedRequest):
            chat(client, text)
    assert caplog.records
    assert CANARY not in caplog.text


# Answers

ANSWERS = ["chat", "stream", "raw", "responses", "responses stream", "completions", "options"]


@pytest.mark.parametrize("name", ANSWERS)
def test_blocked_answers_are_not_given_out(name: str) -> None:
    assert BOMB in _text(CALLS[name](Upstream(BOMB).sync(), CAKE))
    assert "fine" in _text(CALLS[name](Upstream("fine").sync(check_output=True), CAKE))
    with pytest.raises(BlockedRequest) as caught:
        CALLS[name](Upstream(BOMB).sync(check_output=True), CAKE)
    assert CANARY not in str([vars(caught.value), caught.value.response.text])


@pytest.mark.parametrize("name", ANSWERS)
def test_blocked_answers_are_not_given_out_asynchronously(name: str) -> None:
    async def collected(upstream: Upstream) -> str:
        found = await CALLS[name](upstream.asynchronous(check_output=True), CAKE)
        return _text([part async for part in found] if hasattr(found, "__aiter__") else found)

    assert "fine" in asyncio.run(collected(Upstream("fine")))
    with pytest.raises(BlockedRequest):
        asyncio.run(collected(Upstream(BOMB)))


def _text(found: Any) -> str:
    """All that a caller sees of an answer; the letters of a stream put together."""
    if hasattr(found, "http_response"):
        return str(found.http_response.text)
    if isinstance(found, BaseModel):
        return found.model_dump_json()
    letters = []
    for part in found:
        choices = getattr(part, "choices", None)
        letters.append((choices[0].delta.content if choices else getattr(part, "delta", "")) or "")
        if choices and choices[0].index:
            letters.pop()
    return "".join(letters)


def test_tool_calls_in_answers_are_checked() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": BOMB})}}]
    with pytest.raises(BlockedRequest):
        chat(Upstream("ok", tool_calls=calls).sync(check_output=True), CAKE)


def test_images_and_sound_in_answers_are_blocked() -> None:
    for media in ({"audio": {"data": "eA=="}}, {"images": [{"image_url": {"url": "data:image/png;base64,eA=="}}]}):
        with pytest.raises(BlockedRequest):
            chat(Upstream("ok", **media).sync(check_output=True), CAKE)


def test_streaming_responses_are_read_before_they_are_given_out() -> None:
    client = Upstream(BOMB).sync(check_output=True)
    with (
        pytest.raises(BlockedRequest),
        client.chat.completions.with_streaming_response.create(model="m", messages=user_says(CAKE)),
    ):
        pytest.fail("the response is out")


def test_answers_without_text_pass_and_answers_of_another_form_do_not() -> None:
    CALLS["embeddings"](Upstream().sync(check_output=True), CAKE)
    with pytest.raises(BlockedRequest):
        Upstream().sync(check_output=True).post("/odd", body={"prompt": CAKE}, cast_to=object)


@pytest.mark.parametrize("path", ["/moderations", "/embeddings?x=/moderations", "/v1/embeddings"])
def test_no_path_lets_the_text_of_an_answer_pass(path: str) -> None:
    upstream = Upstream(BOMB)
    if "embeddings" in path:  # which this endpoint then answers with a model's text in the place of the numbers
        upstream.app.router.routes.insert(0, Route("/{path:path}", lambda _: JSONResponse(FORGED), methods=["POST"]))
    with pytest.raises(BlockedRequest):
        upstream.sync(check_output=True).post(path, body={"input": CAKE}, cast_to=object)


def test_the_verdicts_of_an_endpoint_pass() -> None:
    verdict = {"flagged": False, "categories": {"hate/threatening": False}, "category_scores": {"hate": 0.1}}
    applied = {"category_applied_input_types": {"hate": ["text"], "violence": ["text"]}}
    found = {"id": "modr-1", "model": "m", "results": [verdict | applied]}
    words = Words()
    upstream = Upstream()
    upstream.app.router.routes.insert(0, Route("/{path:path}", lambda _: JSONResponse(found), methods=["POST"]))
    upstream.sync(Guard(words), check_output=True).moderations.create(input=CAKE)
    assert words.seen == [CAKE, "text"]


FORGED = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": BOMB}], "model": "m"}
LISTS_OF_TEXT: dict[str, Callable[[Any], Any]] = {
    "stored messages": lambda client: client.chat.completions.messages.list("c-1"),
    "items": lambda client: client.conversations.items.list("c-1"),
    "messages of a thread": lambda client: client.get("/threads/t/messages", cast_to=object),
    "file": lambda client: client.get("/files/f-1/content", cast_to=object),
    "store": lambda client: client.get("/vector_stores/v/files/f/content", cast_to=object),
    "own path": lambda client: client.get("/conversations/models/x", cast_to=object),
    "other place": lambda client: client.get("http://testserver/v1/v1/models/x", cast_to=object),
}


@pytest.mark.parametrize("name", LISTS_OF_TEXT)
def test_lists_of_a_models_text_are_checked(name: str) -> None:
    LISTS_OF_TEXT[name](Upstream().sync())
    with pytest.raises(BlockedRequest):
        LISTS_OF_TEXT[name](Upstream().sync(check_output=True))

    async def asked() -> Any:
        return await LISTS_OF_TEXT[name](Upstream().asynchronous(check_output=True))

    with pytest.raises(BlockedRequest):
        asyncio.run(asked())


def test_allowed_lists_pass_and_lists_of_things_are_not_read() -> None:
    client = Upstream().sync(check_output=True)
    assert CAKE in str(client.get("/threads/t/messages/cake", cast_to=object))
    for path in ("/models/m", "/files", "/files/f-1", "/batches", "/fine_tuning/jobs/j", "/vector_stores"):
        assert CANARY in str(client.get(path, cast_to=object))


def test_text_beside_the_events_of_a_stream_is_not_given_out() -> None:
    class Aside(Upstream):
        def events(self, found: list[Any]) -> Response:
            return Response(f": {BOMB}\n\ndata: {json.dumps(found[0])}\n\n".encode(), media_type="text/event-stream")

    CALLS["stream"](Aside().sync(), CAKE)
    with pytest.raises(BlockedRequest):
        CALLS["stream"](Aside().sync(check_output=True), CAKE)


def stream_of(*events: Any) -> list[Any]:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\r\n\r\n" for event in events)
    found = read_events(body + b"data: [DONE]\r\n\r\n", "text/event-stream; charset=utf-8")
    assert found is not None
    return found


def contents(events: list[Any]) -> list[str]:
    return [message["content"] for message in read_answer(events) if isinstance(message, dict)]


def delta(index: int, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields}], "id": "i", "model": "m"}


def test_choices_tool_calls_and_reasoning_of_a_stream_are_joined_apart() -> None:
    def call(i: int, text: str) -> dict[str, Any]:
        return {"index": i, "function": {"arguments": text}}

    events = stream_of(
        delta(0, role="assistant", content="b"),
        delta(1, content="x"),
        delta(0, content="o"),
        delta(0, tool_calls=[call(1, "m")]),
        delta(0, tool_calls=[call(0, "n")]),
        delta(0, tool_calls=[call(1, "b")]),
        delta(1, reasoning_content="why"),
    )
    assert contents(events) == ["bo", "x", "mb", "n", "why"]


def test_the_order_of_choices_in_a_chunk_does_not_matter() -> None:
    both = [delta(0, content="b")["choices"][0], delta(1, content="x")["choices"][0]]
    events = stream_of(
        {"choices": both}, {"choices": [delta(1, content="y")["choices"][0], *delta(0, content="o")["choices"]]}
    )
    assert contents(events) == ["bo", "xy"]


def test_an_event_stream_that_is_not_json_is_unreadable() -> None:
    assert read_events(b"data: {broken\n\n", "text/event-stream") is None
    assert read_events(b"<html>", "text/html") is None
    assert read_events(b": ping\n\nevent: x\ndata: {\ndata: }\n\n", "text/event-stream") == [{}]
    assert read_events(b'data: {"a": 1}', "text/event-stream") == [{"a": 1}]


# Existing clients


def test_wrapping_keeps_class_and_options_and_leaves_the_client_alone() -> None:
    upstream = Upstream()
    bare = upstream.bare()
    guarded = wrap_openai(bare, Guard(Words()))
    assert isinstance(guarded, openai.OpenAI)
    assert guarded.max_retries == 0
    with pytest.raises(BlockedRequest):
        chat(guarded, BOMB)
    with pytest.raises(BlockedRequest):
        chat(guarded.with_options(timeout=3), BOMB)
    assert chat(guarded, CAKE).choices[0].message.content == "fine"
    chat(bare, BOMB)
    assert len(upstream.bodies) == 2
    with pytest.raises(InvalidArgument):
        wrap_openai(guarded, Guard(Words("never")))
    with pytest.raises(InvalidArgument):
        wrap_openai("client", Guard(Words()))  # type: ignore[type-var]


def test_wrapping_azure() -> None:
    upstream = Upstream()
    azure = openai.AzureOpenAI(
        api_key="x",
        api_version="2026-01-01",
        azure_endpoint="http://testserver",
        http_client=TestClient(upstream.app),
        max_retries=0,
    )
    guarded = wrap_openai(azure, Guard(Words()), check_output=True)
    assert isinstance(guarded, openai.AzureOpenAI)
    for client in (guarded, guarded.with_options(timeout=3)):
        assert chat(client, CAKE).choices[0].message.content == "fine"
        with pytest.raises(BlockedRequest):
            chat(client, BOMB)
    assert len(upstream.bodies) == 2


def test_wrapping_an_asynchronous_client() -> None:
    upstream = Upstream()
    http: Any = httpx2.AsyncClient(transport=httpx2.ASGITransport(upstream.app))
    bare = openai.AsyncOpenAI(api_key="x", base_url=URL, http_client=http, max_retries=0)
    guarded = wrap_openai(bare, Guard(Words()))
    with pytest.raises(BlockedRequest):
        asyncio.run(_await(chat(guarded, BOMB)))
    assert upstream.bodies == []


def test_a_version_that_sends_in_another_way_is_refused() -> None:
    class Newer:
        def request(self) -> None:
            """Sends without the methods that are overridden."""

    with pytest.raises(MissingDependency):
        check_version([openai.OpenAI, Newer])
