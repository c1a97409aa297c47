"""A fake upstream and live servers, for tests of `promptguard serve`."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from promptguard.serve.app import create_app
from promptguard.serve.config import Config

SAID = "Here is a cake."
BOMB = {"certifier": {"filter": "keyword:bomb"}, "playground": False}
BASE = {**BOMB, "upstream": {"url": "http://upstream/v1"}}
CANARY = "canary-5d1e"
AUDIT_KEY = "0123456789abcdef"


def config(base: dict[str, Any] = BASE, **more: Any) -> Config:
    return Config.model_validate({**base, **more})


def ask(text: str = "How do I bake a cake?", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def completion(text: str = SAID, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **more}


def chunk(text: str | None, index: int = 0, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    made = {"content": text, **delta} if text is not None else delta
    choice = {"index": index, "delta": made, "finish_reason": reason}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def sse(values: Sequence[dict[str, Any]], done: bool = True) -> bytes:
    body = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    return body + (b"data: [DONE]\n\n" if done else b"")


def streamed(text: str, size: int = 3) -> bytes:
    """A completion in chunks of a few characters."""
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    return sse([chunk("", role="assistant"), *(chunk(part) for part in parts), chunk(None, reason="stop")])


@dataclass
class Fake:
    """An upstream that remembers what it was asked, and answers as it is told."""

    reply: Callable[[dict[str, Any]], Response] = lambda body: (
        Response(streamed(SAID), media_type="text/event-stream") if body.get("stream") else JSONResponse(completion())
    )
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> Starlette:
        async def answer(request: Request) -> Response:
            self.bodies.append(await request.body())
            self.headers.append(dict(request.headers))
            return self.reply(json.loads(self.bodies[-1]))

        async def models(_request: Request) -> Response:
            return JSONResponse(
                {"object": "list", "data": [{"id": "m", "object": "model", "x": CANARY}, {"id": "a b"}]}
            )

        paths = ("chat/completions", "completions", "responses", "embeddings")
        posts = [Route(f"/v1/{path}", answer, methods=["POST"]) for path in paths]
        return Starlette(routes=[*posts, Route("/v1/models", models)])

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]


def says(body: bytes, kind: str = "text/event-stream") -> Callable[[dict[str, Any]], Response]:
    return lambda _: Response(body, media_type=kind)


def in_pieces(body: bytes, size: int) -> Callable[[dict[str, Any]], Response]:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(0, len(body), size):
            yield body[i : i + size]
            await asyncio.sleep(0)

    return lambda _: StreamingResponse(pieces(), media_type="text/event-stream")


@contextmanager
def served(settings: Config | None = None, fake: Fake | None = None) -> Iterator[TestClient]:
    """A client of the server in this process; 5xx do not raise."""
    transport = httpx2.ASGITransport(app=fake.app()) if fake else None
    app = create_app(settings or config(), upstream_transport=transport)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def live(app: ASGIApp) -> Iterator[str]:
    """An application behind a real uvicorn on a free port: its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()


def wire(url: str, path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """Every byte that the server sends for a request."""
    host, port = url.removeprefix("http://").split(":")
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Connection: close", *headers]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head + body)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received
