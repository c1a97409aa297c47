"""Gradio: the example application, driven through its real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from doubles import CANARY, Words

from promptguard.guard import Guard, Policy

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
pytest.importorskip("gradio", reason="gradio has an environment of its own: make integrations")

import gradio
from gradio_client import Client
from test_examples import load

pytestmark = pytest.mark.filterwarnings("default")

CAKE, BOMB = "bake a cake", f"a {CANARY}"
REFUSAL = Policy().refusal


def client_of(app: Any) -> Client:
    app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    return Client(app.local_url, verbose=False)


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    apps: list[Any] = []
    yield apps
    for app in apps:
        app.close(verbose=False)


def test_the_example_answers_and_blocks_also_for_earlier_turns(
    monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> None:
    monkeypatch.setenv("PGUARD_FILTER", "keyword:bomb")
    example = load("chat_gradio")
    opened.append(example.app)
    client = client_of(example.app)
    assert client.predict(CAKE, api_name="/reply") == f"You said: {CAKE}"
    assert client.predict(BOMB, api_name="/reply") == REFUSAL
    assert client.predict(CAKE, api_name="/reply") == REFUSAL  # the turn before is still in the chat


def test_a_streaming_function_makes_nothing_before_the_verdict(opened: list[Any]) -> None:
    asked: list[str] = []

    def stream(prompt: str) -> Iterator[str]:
        asked.append(prompt)
        for end in range(1, 4):
            yield "abc"[:end]

    guarded = Guard(Words()).wrap(stream)

    def reply(message: str, history: list[Any]) -> Iterator[str]:
        yield from guarded(message)

    app = gradio.ChatInterface(reply)
    opened.append(app)
    client = client_of(app)
    assert client.predict(BOMB, api_name="/reply") == REFUSAL
    assert asked == []
    assert client.predict(CAKE, api_name="/reply") == "abc"


def test_files_in_a_multimodal_chat_block(opened: list[Any]) -> None:
    def answer(messages: list[Any]) -> str:
        return "seen"

    guarded = Guard(Words()).wrap(answer)

    def reply(message: dict[str, Any], history: list[Any]) -> str:
        files = [{"type": "file", "path": path} for path in message["files"]]
        return guarded([{"role": "user", "content": [{"type": "text", "text": message["text"]}, *files]}])

    app = gradio.ChatInterface(reply, multimodal=True)
    opened.append(app)
    client = client_of(app)
    assert client.predict({"text": CAKE, "files": []}, api_name="/reply") == "seen"
    assert reply({"text": CAKE, "files": ["cat.png"]}, []) == REFUSAL
