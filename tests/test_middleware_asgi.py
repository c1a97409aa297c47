"""The ASGI middleware: what the application reads was allowed, to the byte; answers wait for their verdict."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from doubles import CANARY, Does, Words

from promptguard.guard import Action, Guard, Policy
from promptguard.middleware import asgi
from promptguard.middleware.asgi import PromptGuardMiddleware

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

CAKE, BOMB = "bake a cake", f"a {CANARY}"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class App:
    """Reads JSON as carelessly as Starlette does; keeps what it read."""

    def __init__(self, response: Any = None) -> None:
        self.given: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.response = response or (lambda: JSONResponse({"ok": True}))
        routes = [Route("/{path:path}", self.reply, methods=METHODS), WebSocketRoute("/v1/realtime", self.socket)]
        self.app = Starlette(routes=[*routes[1:], Mount("/api", routes=routes[:1]), routes[0]])

    async def reply(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))
        if self.bodies[-1]:
            self.given.append(await request.json())
        found: Response = self.response()
        return found

    async def socket(self, socket: WebSocket) -> None:
        await socket.accept()
        self.given.append(await socket.receive_text())
        await socket.close()

    def client(self, guard: Guard | None = None, **options: Any) -> TestClient:
        self.app.add_middleware(PromptGuardMiddleware, guard=guard or Guard(Words()), **options)
        return TestClient(self.app)


def chat(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


CARRIERS: dict[str, Any] = {
    "messages": chat,
    "part": lambda text: chat([{"type": "text", "text": CAKE}, {"type": "text", "text": text}]),
    "earlier turn": lambda text: {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}, *chat(CAKE)["messages"]]
    },
    "system": lambda text: {"messages": [{"role": "system", "content": text}, *chat(CAKE)["messages"]]},
    "tool call": lambda text: {
        "messages": [
            *chat(CAKE)["messages"],
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": text}}]},
        ]
    },
    "tool": lambda text: chat(CAKE, tools=[{"type": "function", "function": {"name": "f", "description": text}}]),
    "prompt": lambda text: {"prompt": text},
    "prompts": lambda text: {"prompt": [CAKE, text]},
    "input": lambda text: {"input": text},
    "items": lambda text: {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]},
    "instructions": lambda text: {"input": CAKE, "instructions": text},
    "both": lambda text: {"prompt": CAKE, **chat(text)},
    "own field": lambda text: {"question": {"deep": [text]}},
    "key": lambda text: {text: 1},
    "list": lambda text: [CAKE, text],
    "text": lambda text: text,
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/", "/api//v1/chat%2Fcompletions/", "/anything"])
@pytest.mark.parametrize("name", CARRIERS)
def test_blocked_text_never_reaches_the_application(name: str, path: str) -> None:
    app = App()
    client = app.client()
    assert client.post(path, json=CARRIERS[name](CAKE)).status_code == 200
    response = client.post(path, json=CARRIERS[name](BOMB))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "content_filter"
    assert CANARY not in response.text
    assert app.given == [CARRIERS[name](CAKE)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/x+json;charset="utf8"', None]
)
def test_no_method_goes_round_the_check(method: str, kind: str | None) -> None:
    app = App()
    headers = {"content-type": kind} if kind else {}
    client = app.client()
    assert client.request(method, "/x", content=raw(chat(BOMB)), headers=headers).status_code == 400
    assert client.request(method, "/x", content=raw(chat(CAKE)), headers=headers).status_code == 200
    assert app.given == [chat(CAKE)]
    assert app.headers[0].get("content-type") == kind


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "",
     "application/json; charset=utf-16", "application/json; charset=utf-8; x=y"],
)  # fmt: skip
def test_what_is_not_called_json_is_refused(kind: str) -> None:
    app = App()
    client = app.client()
    # As a form the text would be "prompt=" and the canary in percent signs; as JSON it is another one.
    assert client.post("/x", content=raw("prompt=%62omb"), headers={"content-type": kind}).status_code == 415
    both = [("content-type", "application/json"), ("content-type", kind)]
    assert client.post("/x", content=raw(chat(CAKE)), headers=both).status_code == 415
    assert app.bodies == []
    assert client.post("/x", headers={"content-type": kind}).status_code == 200  # there is no body


@pytest.mark.parametrize("name", ["digest", "Content-MD5", "content-digest", "repr-digest", "trailer"])
def test_what_a_client_says_of_its_bytes_is_not_said_of_the_others(name: str) -> None:
    app = App()
    app.client().post("/x", content=raw(chat(CAKE)), headers={name: "x", "x-other": "y"})
    assert name.lower() not in app.headers[0]
    assert app.headers[0]["x-other"] == "y"


@pytest.mark.parametrize("words", [1, 30_000])
def test_large_bodies_and_answers_are_read_beside_the_event_loop(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    is_beside: list[bool] = []

    def watched(work: Any) -> Any:
        def done(given: Any) -> Any:
            is_beside.append(threading.current_thread() is not threading.main_thread())
            return work(given)

        return done

    for name in ("_opened", "_answer"):
        monkeypatch.setattr(asgi, name, watched(getattr(asgi, name)))
    value = {"choices": [{"text": "word " * words}]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": raw(value)})

    sent = drive(PromptGuardMiddleware(app, Guard(Words()), check_output=True), request_of(raw({"x": "word " * words})))
    assert sent[0]["status"] == 200
    assert is_beside == [words > 1] * 2


AMBIGUOUS: dict[str, bytes] = {
    "utf-16": json.dumps(chat(CAKE)).encode("utf-16"),
    "utf-16-le": json.dumps(chat(CAKE)).encode("utf-16-le"),
    "utf-32": json.dumps(chat(CAKE)).encode("utf-32"),
    "byte order mark": b"\xef\xbb\xbf" + raw(chat(CAKE)),
    "key twice": b'{"prompt": "a cake", "prompt": "two cakes"}',
    "key twice inside": b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}',
    "nan": b'{"prompt": "a cake", "temperature": NaN}',
    "surrogate": b'{"prompt": "a cake \\ud800"}',
    "deep": b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    "form": b"prompt=a+cake",
    "two values": raw(chat(CAKE)) + raw(chat(CAKE)),
    "latin-1": b'{"prompt": "caf\xe9"}',
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_bodies_that_two_parsers_may_read_differently_are_refused(name: str) -> None:
    app = App()
    response = app.client().post("/v1/completions", content=AMBIGUOUS[name])
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert app.bodies == []


def test_compressed_bodies_are_refused() -> None:
    app = App()
    client = app.client()
    for encoding in ("gzip", "GZip", "br", "identity, gzip", "x-unknown"):
        response = client.post("/x", content=gzip.compress(raw(chat(BOMB))), headers={"content-encoding": encoding})
        assert response.status_code == 415
    two = [("content-encoding", "identity"), ("content-encoding", "gzip")]
    assert client.post("/x", content=raw(chat(CAKE)), headers=two).status_code == 415
    assert app.bodies == []
    assert client.post("/x", content=raw(chat(CAKE)), headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("length", [True, False])
def test_bodies_over_the_limit_are_refused(length: bool) -> None:
    app = App()
    client = app.client(max_body=100)

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        yield b"x" * 100
        yield b'"}'

    content: Any = b"".join(pieces()) if length else pieces()
    assert client.post("/x", content=content).status_code == 413
    assert app.bodies == []


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}], [7]])
def test_what_is_not_text_is_blocked_unless_the_policy_lets_it_pass(content: Any) -> None:
    app = App()
    assert app.client().post("/x", json=chat(content)).status_code == 400
    assert app.bodies == []
    client = App().client(Guard(Words(), Policy(on_unscannable=Action.ALLOW)))
    assert client.post("/x", json=chat([{"type": "text", "text": CAKE}, *content])).status_code == 200
    assert client.post("/x", json=chat([{"type": "text", "text": BOMB}, *content])).status_code == 400


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt_embeds", "chat_template"])
def test_text_that_is_not_in_the_request_is_blocked(field: str) -> None:
    app = App()
    assert app.client().post("/v1/responses", json={"input": CAKE, field: "resp_1"}).status_code == 400
    assert app.bodies == []


def test_the_application_gets_the_checked_value_and_not_the_clients_bytes() -> None:
    app = App()
    body = b'{ "prompt" :\n"caf\\u00e9 \xc3\xa9 \\ud83d\\ude00", "n": 1.50 }'
    assert app.client().post("/x", content=body, headers={"x-mine": "kept"}).status_code == 200
    assert app.bodies == [b'{"prompt":"caf\\u00e9 \\u00e9 \\ud83d\\ude00","n":1.5}']
    assert app.headers[0]["content-length"] == str(len(app.bodies[0]))
    assert app.headers[0]["x-mine"] == "kept"


def test_requests_without_text_pass() -> None:
    app = App()
    client = app.client()
    assert client.get("/health").status_code == 200
    values: list[Any] = [{}, {"model": "m"}, None, 7, []]
    for value in values:
        assert client.post("/x", content=raw(value)).status_code == 200
    assert app.given == values


def test_only_named_paths_are_unguarded() -> None:
    app = App()
    client = app.client(unguarded={"/upload"})
    assert client.post("/upload", content=raw(chat(BOMB))).status_code == 200
    for path in (
        "/upload/",
        "/upload/x",
        "//upload",
        "/UPLOAD",
        "/api/upload",
        "/upload%2f",
        "/upload;a",
    ):
        assert client.post(path, content=raw(chat(BOMB))).status_code == 400
    assert len(app.given) == 1


def test_websockets_are_refused_unless_their_path_is_named() -> None:
    app = App()
    with pytest.raises(WebSocketDisconnect), app.client().websocket_connect("/v1/realtime") as socket:
        socket.send_text(BOMB)
    assert app.given == []
    app = App()
    with app.client(unguarded=["/v1/realtime"]).websocket_connect("/v1/realtime") as socket:
        socket.send_text(CAKE)
    assert app.given == [CAKE]


def test_a_broken_certifier_blocks() -> None:
    app = App()
    assert app.client(Guard(Does(RuntimeError(BOMB)))).post("/x", json=chat(CAKE)).status_code == 400
    assert app.bodies == []


def test_no_text_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "promptguard")
    app = App(lambda: PlainTextResponse(BOMB))
    client = app.client(check_output=True)
    for text in (BOMB, CAKE):
        assert CANARY not in client.post("/x", json=chat(text)).text
    assert caplog.records
    assert CANARY not in caplog.text


# The protocol itself


def drive(app: Any, messages: list[dict[str, Any]], **scope: Any) -> list[dict[str, Any]]:
    """What an application sends for these messages; further `receive` calls find the client gone."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/x", "headers": [], "extensions": {}, **scope}
    asyncio.run(app(whole, receive, send))
    return sent


def request_of(*pieces: bytes) -> list[dict[str, Any]]:
    last = len(pieces) - 1
    return [{"type": "http.request", "body": piece, "more_body": i < last} for i, piece in enumerate(pieces)]


def test_text_split_over_messages_is_put_together() -> None:
    body = raw(chat(BOMB))

    async def never(*_: Any) -> None:
        pytest.fail("the application was called")

    middleware = PromptGuardMiddleware(never, Guard(Words()))
    sent = drive(middleware, request_of(*[body[i : i + 1] for i in range(len(body))]))
    assert sent[0]["status"] == 400


def test_a_client_that_leaves_early_gets_nothing_and_costs_nothing() -> None:
    certifier = Words()
    middleware = PromptGuardMiddleware(App().app, Guard(certifier))
    assert drive(middleware, request_of(b'{"prompt":', b"")[:1]) == []
    assert certifier.seen == []


def test_after_the_body_comes_the_real_disconnect() -> None:
    seen = []

    async def reads_on(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    drive(PromptGuardMiddleware(reads_on, Guard(Words())), request_of(raw(chat(CAKE))))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]


def test_lifespan_passes_and_other_protocols_do_not() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for kind in ("lifespan", "unheard-of"):
        drive(PromptGuardMiddleware(app, Guard(Words())), [], type=kind)
    assert seen == ["lifespan"]


# Answers


def sse(text: str) -> Response:
    events = [{"choices": [{"index": 0, "delta": {"content": letter}}]} for letter in text]
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
    return StreamingResponse(iter(lines), media_type="text/event-stream")


ANSWERS: dict[str, Any] = {
    "chat": lambda text: JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}}]}),
    "stream": sse,
    "responses": lambda text: JSONResponse({"output": [{"type": "message", "content": [{"text": text}]}]}),
    "own form": lambda text: JSONResponse({"id": text}),
    "list": lambda text: JSONResponse([{"reply": text}]),
    "error": lambda text: JSONResponse({"error": text}, status_code=500),
    "beside choices": lambda text: JSONResponse({"question": text, "choices": ["a", "b"]}),
    "words of the format": lambda text: JSONResponse({"output": "ok", "status": text, "type": text}),
    "deep id": lambda text: JSONResponse({"delta": "x", "items": [{"id": text}]}),
    "key": lambda text: JSONResponse({"choices": [{"message": {"parsed": {text: 1}}}]}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_blocked_answers_are_withheld(name: str) -> None:
    for text, status in ((CAKE, None), (BOMB, 400)):
        make = ANSWERS[name]
        bare = App(lambda make=make, text=text: make(text)).client()
        held = App(lambda make=make, text=text: make(text)).client(check_output=True)
        expected, found = bare.post("/x", json=chat("hi")), held.post("/x", json=chat("hi"))
        if status is None:
            assert (found.status_code, found.content) == (expected.status_code, expected.content)
        else:
            assert found.status_code == status
            assert "7f3a" not in found.text


@pytest.mark.parametrize(
    "make",
    [
        lambda: PlainTextResponse(CAKE),
        lambda: Response(b"\x89PNG", media_type="image/png"),
        lambda: Response(raw({"a": CAKE})),
        lambda: Response(b'{"a": "x", "a": "y"}', media_type="application/json"),
        lambda: Response(raw({"a": CAKE}), media_type="application/json", headers={"content-encoding": "br"}),
        lambda: JSONResponse({"choices": [{"message": {"audio": {"data": "eA=="}}}]}),
        lambda: Response(CAKE, media_type="text/event-stream"),
        lambda: Response(raw({"response": CAKE}) + b"\n", media_type="text/event-stream"),
        lambda: Response(b"\xef\xbb\xbfdata: {}\n\ndata: {}\n\n", media_type="text/event-stream"),
        lambda: Response(b"event: a cake\ndata: {}\n\n", media_type="text/event-stream"),
        lambda: Response(b": a cake\ndata: {}\n\n", media_type="text/event-stream"),
    ],
)
def test_answers_that_cannot_be_read_are_withheld(make: Any) -> None:
    assert App(make).client(check_output=True).post("/x", json=chat(CAKE)).status_code == 400


def test_no_byte_is_sent_before_the_verdict() -> None:
    order: list[str] = []

    class Tells(Words):
        def certify(self, x: str) -> Any:
            order.append(x)
            return super().certify(x)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (b'{"reply": ', b'"done"', b"}"):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != b"}"})
            order.append("app")

    class Order(list[Any]):
        def append(self, message: Any) -> None:
            order.append(message["type"])

    sent = Order()

    async def send(message: Any) -> None:
        sent.append(message)

    pending = request_of(raw({"prompt": "hi"}))

    async def receive() -> Any:
        return pending.pop(0)

    middleware = PromptGuardMiddleware(app, Guard(Tells()), check_output=True)
    asyncio.run(middleware({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send))
    assert order == [
        "hi", *["app"] * 3, "reply", "done", "replydone", "reply\ndone", "http.response.start", "http.response.body",
    ]  # fmt: skip


def test_an_application_that_ends_early_sends_nothing() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": BOMB.encode(), "more_body": True})

    assert drive(PromptGuardMiddleware(app, Guard(Words()), check_output=True), request_of(raw(chat(CAKE)))) == []


def test_files_by_path_and_compression_are_not_offered_to_the_application() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["extensions"], scope["headers"]))

    headers = [(b"accept-encoding", b"gzip")]
    extensions: dict[str, Any] = {"http.response.pathsend": {}}
    middleware = PromptGuardMiddleware(app, Guard(Words()), check_output=True)
    drive(middleware, request_of(raw(chat(CAKE))), headers=headers, extensions=extensions)
    assert seen[0][0] == {}
    assert b"accept-encoding" not in dict(seen[0][1])


def test_an_application_that_compresses_is_read_all_the_same() -> None:
    app = App(lambda: JSONResponse({"reply": BOMB + " " * 2000}))
    app.app.add_middleware(GZipMiddleware)
    assert app.client(check_output=True).post("/x", json=chat(CAKE)).status_code == 400


# Made by its class alone


def test_made_by_its_class_alone_it_asks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUARD_FILTER", "keyword:bomb")
    app = App()
    app.app.add_middleware(PromptGuardMiddleware)
    client = TestClient(app.app)
    assert client.post("/v1/completions", json={"prompt": BOMB}).status_code == 400
    assert client.post("/v1/completions", json={"prompt": CAKE}).status_code == 200


def test_it_needs_no_web_framework() -> None:
    probe = "import sys, promptguard.middleware.asgi; print([m for m in ('starlette', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
