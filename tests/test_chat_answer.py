"""What is read of an answer: everything but words of the format, and of an event stream nothing beside its data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from doubles import CANARY

from promptguard.guard.chat_answer import is_answer, read_answer, read_events

STREAM = "text/event-stream"
GOOD = b'data: {"delta":"x"}\n\n'
BOMB = f"a {CANARY}"


def contents(*events: Any) -> list[str]:
    return [message["content"] for message in read_answer(events) if isinstance(message, dict)]


def is_readable(*events: Any) -> bool:
    return None not in read_answer(events)


def chat(**message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "fine", **message}, "finish_reason": "stop"}
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": "a/b:c", "choices": [choice]}


# Event streams


@pytest.mark.parametrize(
    "body",
    [
        BOMB.encode(),
        json.dumps({"response": BOMB}).encode() + b"\n",
        b"\xef\xbb\xbf" + GOOD + GOOD,
        b"event: " + BOMB.encode() + b"\n" + GOOD,
        b"id: " + b"x" * 65 + b"\n" + GOOD,
        b": " + BOMB.encode() + b"\n" + GOOD,
        b": bomb\n\n" + GOOD,
        b": ping - bomb\n\n" + GOOD,
        b": ping\n: " + BOMB.encode() + b"\n\n" + GOOD,
        b"answer: bomb\n" + GOOD,
        b" data: {}\n\n" + GOOD,
        b"data\n\n" + GOOD,
        GOOD + BOMB.encode(),
        b": ping\n\n",
        b"\n\n",
    ],
)
def test_a_stream_with_anything_beside_its_data_is_unreadable(body: bytes) -> None:
    assert read_events(body, STREAM) is None


@pytest.mark.parametrize(
    "line",
    [
        b"event: response.output_text.delta",
        b"event:ping",
        b"id: 5f0c-12",
        b"retry: 3000",
        b":",
        b": ping",
        b":keepalive",
        b": keep-alive",
        b": OPENROUTER PROCESSING",
        b": ping - 2026-01-31 12:00:00.123456+00:00",
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_what_servers_send_to_keep_a_stream_alive_is_no_text(line: bytes, end: bytes) -> None:
    body = end.join([line, b"", line, b'data: {"delta":"x"}', b"", b"data: [DONE]", b"", line, b""])
    assert read_events(body, f"{STREAM}; charset=utf-8") == [{"delta": "x"}]


def test_a_stream_of_its_end_alone_holds_no_text() -> None:
    assert read_events(b"data: [DONE]\n\n", STREAM) == []
    assert read_events(b"", STREAM) == []


# Fields beside the answer

BESIDE: dict[str, Any] = {
    "citations": chat() | {"citations": [BOMB]},
    "search results": chat() | {"search_results": [{"title": BOMB}]},
    "text beside choices": chat() | {"output_text": BOMB},
    "prompt beside choices": chat() | {"instructions": BOMB},
    "quiz": {"question": BOMB, "choices": ["a", "b"]},
    "text beside output": {"object": "response", "output": [], "output_text": BOMB},
    "text of a response": {"object": "response", "output": [], "text": BOMB},
    "setting of a response": {"object": "response", "output": [], "reasoning": {"summary": BOMB}},
    "truncation": {"object": "response", "output": [], "truncation": BOMB},
    "item with an output": {"object": "response", "output": [{"type": "mcp_call", "output": [], "arguments": BOMB}]},
    "not a response": {"object": "list", "output": [], "instructions": BOMB},
    "response inside": {"output": [{"object": "response", "instructions": BOMB}]},
    "event that is none": {"type": "x", "response": {"object": "response", "instructions": BOMB}},
    "event in an event": {
        "type": "response.x",
        "response": {
            "object": "x",
            "type": "response.x",
            "response": {"object": "response", "instructions": BOMB},
        },
    },
    "chunk": {"choices": [{"index": 0, "delta": {"content": "x"}}], "citations": [BOMB]},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_answer_is_read(name: str) -> None:
    assert is_answer([BESIDE[name]])
    assert BOMB in contents(BESIDE[name])


def response() -> dict[str, Any]:
    part = {"type": "output_text", "text": "fine", "annotations": [], "logprobs": []}
    item = {"id": "m", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    thought = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAAAAB_x-" * 50 + "=="}
    asked = {
        "instructions": BOMB, "tools": [{"type": "function", "name": BOMB}], "metadata": {"k": BOMB}, "user": BOMB,
        "tool_choice": {"type": "function", "name": BOMB}, "prompt": None, "temperature": 1.0, "top_logprobs": 0,
        "text": {"format": {"type": "json_schema", "description": BOMB}}, "truncation": "disabled",
        "reasoning": {"effort": "low", "summary": None}, "parallel_tool_calls": True, "billing": {"payer": "developer"},
        "incomplete_details": {"reason": "max_output_tokens"}, "previous_response_id": None,
        "image": {"context_compression": "enabled"}, "access_programs": {"cyber": "standard"},
        "prompt_cache_diagnostics": {"type": "cache_miss", "reason": "model_changed", "cache_missed_tokens": 1},
    }  # fmt: skip
    usage = {"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}}
    about = {"id": "resp_1", "object": "response", "status": "incomplete", "model": "m", "usage": usage}
    return about | {"output": [thought, item]} | asked


def test_of_a_response_what_repeats_the_request_is_left_out() -> None:
    assert contents(response()) == ["fine"]
    event = {"type": "response.completed", "sequence_number": 9, "response": response()}
    assert contents(event) == ["fine"]
    assert is_readable(response(), event)


def test_an_ordinary_completion_is_its_text_alone() -> None:
    more = {
        "provider": "azure", "service_tier": "default", "system_fingerprint": "fp_1", "x_groq": {"id": "req_1"},
        "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}],
        "usage": {"prompt_tokens": 1, "completion_tokens_details": {"audio_tokens": 0}}, "prompt_logprobs": None,
    }  # fmt: skip
    moderation = {"input": {"model": "m", "results": [{"flagged": False, "categories": {"self-harm/intent": False}}]}}
    call = {"id": "call_1|fc_2", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    answer = chat(tool_calls=[call], audio=None) | more | {"moderation": moderation}
    assert contents(answer) == ["fine", "f", "{}"]
    assert is_readable(answer)


# Words of the format, and keys

NAMES = ("id", "status", "type", "provider", "model", "call_id", "role", "format", "object")


@pytest.mark.parametrize("name", NAMES)
def test_only_single_words_are_words_of_the_format(name: str) -> None:
    assert BOMB in contents({"output": "ok", name: BOMB})
    assert BOMB in contents({"delta": "x", "items": [{name: BOMB}]})
    assert "x" * 129 in contents({"delta": "x", name: "x" * 129})
    assert "怎么" in contents({"delta": "x", name: "怎么"})
    assert BOMB in contents({"delta": "x", name: [BOMB]})
    assert contents({"delta": "x", name: "completed"}) == ["x"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["arguments", "parsed", "input"])
def test_in_what_the_model_makes_up_every_word_is_read(field: str, name: str) -> None:
    assert "bomb" in contents(chat(**{field: {"deep": [{name: "bomb"}]}}))
    assert "bomb" in contents(chat(**{field: {"deep": [{"bomb": 1}]}}))


def test_keys_that_are_no_names_of_fields_are_read() -> None:
    for answer in (chat(parsed={BOMB: 1}), chat() | {BOMB: None}, chat(**{"x" * 49: 1}), chat() | {"怎么": 1}):
        assert len(contents(answer)) == 2
    assert contents(chat() | {"encrypted_content": BOMB}) == ["fine", BOMB]


def test_what_is_neither_text_nor_a_number_is_unscannable() -> None:
    for odd in (b"bomb", {1: "x"}, object(), {"a", "b"}):
        assert not is_readable(chat(more=odd))
        assert not is_readable(chat(logprobs=odd))
    assert BOMB in contents(chat(more=(BOMB,)))


def test_an_index_that_is_no_number_is_none() -> None:
    assert BOMB in contents({"choices": [{"index": [1], "delta": {"content": BOMB}}]})
    assert BOMB in contents({"type": ["x"], "index": {}, "delta": BOMB})


# Probabilities of tokens


def test_tokens_are_read_as_one_text_which_is_the_answer_once_more() -> None:
    def part(token: str) -> dict[str, Any]:
        others = [{"token": token, "logprob": -1.0, "bytes": [1]}, {"token": " bomb", "logprob": -2.0, "bytes": None}]
        found = {"content": [{"token": token, "logprob": -1.0, "bytes": [1], "top_logprobs": others}], "refusal": None}
        return {"choices": [{"index": 0, "delta": {"content": token}, "logprobs": found}]}

    assert contents(part("a "), part("cake")) == ["a cake"]
    legacy = {"tokens": ["a ", "cake"], "token_logprobs": [-1.0, None], "top_logprobs": [{" bomb": -2.0}, None]}
    assert contents({"choices": [{"index": 0, "text": "a cake", "logprobs": legacy}]}) == ["a cake"]


def test_text_in_the_probabilities_is_read() -> None:
    long = f"{BOMB} " * 5
    for found in (
        {"content": [{"token": "a "}, {"token": CANARY}]},
        {"content": [{"top_logprobs": [{"token": long}]}]},
        {"top_logprobs": [{long: 1.0}]},
        {BOMB: 1},
    ):
        assert any(CANARY in text for text in contents({"choices": [{"index": 0, "logprobs": found}]}))
