"""Streams: on the wire there is never output before its verdict, wherever the chunks are cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import SAID, Fake, ask, chunk, completion, config, in_pieces, live, says, served, sse, streamed, wire

from promptguard.errors import InvalidRequest
from promptguard.serve.app import create_app
from promptguard.serve.config import Streaming
from promptguard.serve.sse import event, events
from promptguard.serve.window import Window

CHAT = "/v1/chat/completions"
SECRET = "a bomb"
LONG = "All is well. " * 20
CHECKED: dict[str, Any] = {"output": {"check": True}}
WINDOW: dict[str, Any] = CHECKED | {"streaming": {"release": "window", "hold_back": 32, "stride": 8}}


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def text_of(stream: str, index: int = 0) -> str:
    """The text that a client puts together."""
    found = []
    for line in stream.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                if choice["index"] == index:
                    found.append(choice["delta"].get("content") or "")
    return "".join(found)


async def collect(chunks: list[bytes]) -> list[dict[str, Any]]:
    async def source() -> AsyncIterator[bytes]:
        for piece in chunks:
            yield piece

    return [value async for value in events(source())]


# Events.


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_events_are_the_same_wherever_the_stream_is_cut(data: st.DataObject) -> None:
    values: list[dict[str, Any]] = [{"a": "x\r\ny"}, {"b": 1}, {"c": "\u2028"}]
    end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream = b": comment\n\n" + sse(values) + sse([{"late": 1}])
    stream = stream.replace(b"\n", end)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert asyncio.run(collect(pieces)) == values


def test_events_are_strict_json_objects() -> None:
    for stream in (b'data: {"a": 1, "a": 2}\n\n', b"data: [1]\n\n", b"data: {\n\n"):
        with pytest.raises(InvalidRequest):
            asyncio.run(collect([stream]))
    assert asyncio.run(collect([b'data: {"a":\ndata: 1}'])) == [{"a": 1}]
    assert asyncio.run(collect([b'data: {"a":\r', b"\ndata: 1}\r", b"\n\r\n"])) == [{"a": 1}]
    assert event({"type": "response.created"}).startswith(b"event: response.created\ndata: ")
    assert event({"type": "x\nevil: 1"}).startswith(b"data: ")


def test_a_mark_before_the_stream_is_left_out_and_what_is_no_stream_is_refused() -> None:
    mark = b"\xef\xbb\xbf"
    assert asyncio.run(collect([mark[:1], mark[1:] + b'data: {"a": 1}\n\n'])) == [{"a": 1}]
    aside = b": a comment\nevent: x\nid: 1\nretry\ndata\n:\n"
    assert asyncio.run(collect([aside + b'data: {"a": 1}\n\n'])) == [{"a": 1}]
    for stream in (
        b'{"a": 1}',
        b'{"a": 1}\n\n',
        b"<html>\n",
        b'data: {"a": 1}\n\n' + mark + b"data: {}\n\n",
        b"datum: {}",
    ):
        with pytest.raises(InvalidRequest):
            asyncio.run(collect([stream]))
    fake = Fake(says(json.dumps(completion()).encode()))  # an answer as a whole that calls itself a stream
    with served(config(**CHECKED), fake) as client:
        assert client.post(CHAT, json=ask(stream=True)).status_code == 502


# The whole way.


@pytest.mark.parametrize("more", [{}, CHECKED, WINDOW])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_clean_stream_arrives_whole(more: dict[str, Any], size: int) -> None:
    fake = Fake(in_pieces(streamed(LONG), size))
    with served(config(**more), fake) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert text_of(answer.text) == LONG
    assert answer.text.count("data: [DONE]") == 1


@pytest.mark.parametrize("release", [CHECKED, WINDOW])
@pytest.mark.parametrize("before", ["", "x" * 5, LONG])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_secret_split_over_chunks_never_leaves_on_the_wire(release: dict[str, Any], before: str, size: int) -> None:
    fake = Fake(in_pieces(streamed(before + SECRET + " and more", size), 11))
    transport = httpx2.ASGITransport(app=fake.app())
    with live(create_app(config(**release), upstream_transport=transport)) as url:
        answer = wire(url, CHAT, json.dumps(ask(stream=True)).encode())
    seen = text_of(body_of(answer).decode(errors="replace").replace("\r\n", "\n"))
    assert len(fake.bodies) == 1
    assert SECRET[:1] + SECRET[1:2] not in seen.removeprefix(before) or not seen[len(before) :]
    assert before.startswith(seen)
    assert b"bomb" not in answer
    assert b"and more" not in answer
    assert b"content_filter" in answer
    if release is CHECKED or not seen:
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"data:" not in answer
    else:
        assert answer.rstrip().endswith(b"0") or b"data: [DONE]" in answer


@pytest.mark.parametrize("more", [{}, CHECKED, WINDOW])
def test_a_blocked_request_streams_nothing_of_a_model(more: dict[str, Any]) -> None:
    fake = Fake(in_pieces(streamed(SAID), 3))
    transport = httpx2.ASGITransport(app=fake.app())
    with live(create_app(config(**more), upstream_transport=transport)) as url:
        answer = wire(url, CHAT, json.dumps(ask("a bomb", stream=True)).encode())
    assert fake.bodies == []
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"cake" not in answer


def test_window_releases_before_the_end() -> None:
    fake = Fake(in_pieces(streamed(LONG + SECRET), 11))
    with served(config(**WINDOW), fake) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    seen = text_of(answer.text)
    assert answer.status_code == 200
    assert len(LONG) - 60 < len(seen) <= len(LONG)
    assert '"code":"content_filter"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("size", [5, 40, 1000])
def test_a_window_holds_back_what_lies_before_the_end_too(size: int) -> None:
    with served(config(**WINDOW), Fake(says(streamed(f"{LONG}{SECRET}. {LONG}", size)))) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert "bo" not in answer.text
    assert "content_filter" in answer.text
    split = [chunk(LONG + "a bo"), chunk("mb. "), chunk(LONG)]
    with served(config(**WINDOW), Fake(says(sse(split)))) as client:
        assert "a bo" not in client.post(CHAT, json=ask(stream=True)).text


def test_what_cannot_be_read_ends_a_window_like_what_is_harmful() -> None:
    values = [chunk(LONG), chunk(None, audio={"data": "AAAA"})]
    with served(config(**WINDOW), Fake(says(sse(values)))) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert "content_filter" in answer.text
    assert "AAAA" not in answer.text


def test_a_window_that_breaks_says_so_without_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError(SECRET)

    oops = Fake(says(sse([chunk(LONG)], done=False) + b"data: {oops\n\n"))
    with served(config(**WINDOW), oops) as client:
        assert '"code":"upstream_error"' in client.post(CHAT, json=ask(stream=True)).text
    monkeypatch.setattr(Window, "rest", breaks)
    with served(config(**WINDOW), Fake(says(streamed(LONG)))) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert '"code":"internal_error"' in answer.text
    assert SECRET not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text


def test_tool_calls_wait_for_the_verdict_in_a_window() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"q": "a '}}
    more = {"index": 0, "function": {"arguments": 'bomb"}'}}
    values = [chunk(LONG), chunk(None, tool_calls=[call]), chunk(None, tool_calls=[more]), chunk(None, reason="stop")]
    with served(config(**WINDOW), Fake(says(sse(values)))) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert "tool_calls" not in answer.text
    assert "arguments" not in answer.text
    assert "content_filter" in answer.text


@pytest.mark.parametrize("release", [CHECKED, WINDOW])
def test_choices_are_watched_apart(release: dict[str, Any]) -> None:
    text = "a quiet word " * 10
    values = []
    for one, other in zip(text, ("b.o.m.b " * 40)[: len(text)], strict=True):
        values += [chunk(one, 0), chunk(other, 1)]
    with served(config(**release), Fake(says(sse(values)))) as client:
        answer = client.post(CHAT, json=ask(stream=True, n=2))
    assert answer.status_code == 200
    assert text_of(answer.text, 0) == text
    assert len(text_of(answer.text, 1)) == len(text)
    split = [chunk("a bo", 0), chunk("xx", 1), chunk("mb", 0)]
    with served(config(**release), Fake(says(sse(split)))) as client:
        assert client.post(CHAT, json=ask(stream=True, n=2)).status_code == 400


def test_the_moderation_chunk_ends_a_stream_that_asked_for_it() -> None:
    with served(config(), Fake(says(streamed("a bomb")))) as client:
        answer = client.post(CHAT, json=ask(stream=True, moderation={"model": "x"}))
    last = json.loads(answer.text.split("data: ")[-2])
    assert last["choices"] == []
    assert last["moderation"]["output"]["results"][0]["flagged"] is True
    assert last["moderation"]["input"]["results"][0]["flagged"] is False


def test_a_client_s_wish_is_served_in_a_window_too() -> None:
    wish = {"policy": {"output": {"mode": "block"}}}
    observing = config(**WINDOW, policy={"on_harmful": "allow"})
    with served(observing, Fake(says(streamed(LONG + SECRET)))) as client:
        assert client.post(CHAT, json=ask(stream=True)).headers["x-promptguard-verdict"] == "allow"
        answer = client.post(CHAT, json=ask(stream=True, moderation=wish))
    assert answer.status_code == 400
    assert "All is well" not in answer.text


def test_a_stream_that_is_blocked_before_it_begins_says_so() -> None:
    with served(config(**WINDOW), Fake(says(streamed(SECRET)))) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert (answer.status_code, answer.headers["x-promptguard-verdict"]) == (400, "block")


@pytest.mark.parametrize("path", ["completions", "responses"])
def test_streams_of_other_routes_are_buffered(path: str) -> None:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a bomb"}]}
    forms: dict[str, list[dict[str, Any]]] = {
        "completions": [{"choices": [{"index": 0, "text": "a bo"}]}, {"choices": [{"index": 0, "text": "mb"}]}],
        "responses": [
            {"type": "response.output_text.delta", "item_id": "i", "content_index": 0, "delta": "a bo"},
            {"type": "response.output_text.delta", "item_id": "i", "content_index": 0, "delta": "mb"},
        ],
    }
    streams = [forms[path]] + (
        [[{"type": "response.completed", "response": {"output": [item]}}]] * (path == "responses")
    )
    for values in streams:
        with served(config(**WINDOW), Fake(says(sse(values)))) as client:
            answer = client.post(f"/v1/{path}", json={"model": "m", "input": "hi", "stream": True})
        assert answer.status_code == 400
        assert "mb" not in answer.text


@pytest.mark.parametrize("more", [CHECKED, WINDOW])
@pytest.mark.parametrize(
    "stream", [b"data: {oops\n\n", b'data: {"choices": 5}\n\n', b'data: {"choices": [5]}\n\n', b"data: 5\n\n"]
)
def test_a_broken_stream_is_an_error_and_not_an_answer(more: dict[str, Any], stream: bytes) -> None:
    with served(config(**more), Fake(says(sse([chunk("x" * 4)], done=False) + stream))) as client:
        answer = client.post(CHAT, json=ask(stream=True))
    assert answer.status_code in {200, 400, 500, 502}
    assert answer.status_code != 200 or "xxxx" in answer.text
    assert "oops" not in answer.text


def test_an_upstream_that_breaks_off_ends_the_stream_with_an_error() -> None:
    class Breaks(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield sse([chunk("Here")], done=False)
            raise httpx2.ReadError("gone")

    class Transport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Breaks())

    with live(create_app(config(), upstream_transport=Transport())) as url:
        answer = wire(url, CHAT, json.dumps(ask(stream=True)).encode())
    assert b"Here" in answer
    assert b'"code":"upstream_error"' in answer
    assert b"[DONE]" in answer
    with live(create_app(config(**CHECKED), upstream_transport=Transport())) as url:
        assert wire(url, CHAT, json.dumps(ask(stream=True)).encode()).startswith(b"HTTP/1.1 502")


def test_a_stream_that_is_answered_whole_is_checked_too() -> None:
    fake = Fake(says(json.dumps(completion("a bomb")).encode(), "application/json"))
    with served(config(**WINDOW), fake) as client:
        assert client.post(CHAT, json=ask(stream=True)).status_code == 400


# The window alone.


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_character_of_a_flagged_passage_is_released(data: st.DataObject) -> None:
    """Any text, any chunks: what is out never reaches into a passage of at most `hold_back` characters."""
    hold_back, stride = data.draw(st.integers(16, 24)), data.draw(st.integers(1, 9))
    text = data.draw(st.text("ab", max_size=120))
    passage = "!" * data.draw(st.integers(1, hold_back))
    at = data.draw(st.integers(0, len(text)))
    said = text[:at] + passage + text[at:]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=20)))
    window = Window(Streaming(release="window", hold_back=hold_back, stride=stride))  # type: ignore[arg-type]
    out, held, blocked = "", [], False
    for i, j in zip([0, *cuts], [*cuts, len(said)], strict=True):
        held.append(chunk(said[i:j]))
        window.add(held[-1])
        for index, text in window.due():
            blocked = blocked or passage in text
            if not blocked:
                out += window.release(index)
        if blocked:
            break
    assert out == said[: len(out)]
    assert len(out) <= at
    seen: dict[int, int] = {}
    if not blocked:
        assert out + "".join(window.rest(v, seen)["choices"][0]["delta"]["content"] for v in held) == said


@pytest.mark.parametrize("at", [17, 30, 40])
def test_the_longest_passage_that_is_promised_stays_inside(at: int) -> None:
    window = Window(Streaming(release="window", hold_back=16, stride=1))  # type: ignore[arg-type]
    out = ""
    for character in "a" * at + "!" * 15:  # one more would make the passage
        window.add(chunk(character))
        for index, _ in window.due():
            out += window.release(index)
    assert out
    assert "!" not in out
