"""JSON that is read in one way only, and what of a request is text."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptguard.errors import InvalidRequest
from promptguard.guard.chat_request import read_request
from promptguard.guard.strict_json import dump, parse

CASES = int(os.environ.get("PGUARD_FUZZ", "150"))  # 20000 and more by hand
CANARY = "canary-5d1e"

_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    _scalars | _texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4)
)


@given(values)
@settings(max_examples=CASES, deadline=None)
def test_what_is_dumped_is_read_alike_by_us_and_by_the_standard_parser(value: Any) -> None:
    body = dump(value)
    assert body.isascii()
    assert parse(body) == value
    assert json.loads(body) == value
    assert dump(parse(body)) == body


_near = st.text('{}[]",:0123456789.eE+-\\u truefalsnNaInity\ud800\ufeff', max_size=40)


@given(st.binary(max_size=40) | _near.map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=CASES, deadline=None)
def test_any_bytes_are_read_strictly_or_refused(body: bytes) -> None:
    try:
        value = parse(body)
    except InvalidRequest:
        return
    assert json.loads(body.decode("utf-8")) == value
    assert parse(dump(value)) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{} {}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": 1, "\\u0061": 2}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e999",
        b"18446744073709551617",
        b"[" + b"9" * 5000 + b"]",
        b'"\\ud800"',
        b'{"\\udc00": 1}',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'\xef\xbb\xbf"a"',
        '"a"'.encode("utf-16"),
        '"a"'.encode("utf-16-le"),
        '"a"'.encode("utf-32"),
        b'"\x00"',
        b'"a\nb"',
        b"'a'",
        b"[1,]",
        b"{a: 1}",
        b"/**/1",
        b"[" * 33 + b"]" * 33,
        b"[" * 100_000,
        b'{"a":' * 33 + b"1" + b"}" * 33,
    ],
)
def test_ambiguous_bodies_are_refused_without_a_trace(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_errors_quote_nothing() -> None:
    for body in (f'{{"{CANARY}": 1, "{CANARY}": 2}}', f'"{CANARY}', f'"{CANARY}\\ud800"'):
        with pytest.raises(InvalidRequest) as caught:
            parse(body.encode())
        assert CANARY not in repr(caught.value)


def test_limits_are_exact() -> None:
    assert parse(b"[" * 32 + b"]" * 32)
    assert parse(b"18446744073709551616") == 2**64
    assert parse(b"[[1]]", max_depth=2) == [[1]]
    with pytest.raises(InvalidRequest):
        parse(b"[[[1]]]", max_depth=2)
    assert parse(b'"\\ud83d\\ude00"') == "\U0001f600"


# What of a request is text.


def texts(body: dict[str, Any]) -> str:
    found = read_request(body)
    return json.dumps([found.messages, found.context])


@pytest.mark.parametrize(
    "field",
    [
        {"messages": [{"role": "system", "content": CANARY}]},
        {"prompt": CANARY},
        {"prompt": ["ok", CANARY]},
        {"input": CANARY},
        {"input": ["ok", CANARY]},
        {"input": [{"type": "input_text", "text": CANARY}]},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": CANARY}]}]},
        {"input": [{"type": "function_call", "name": "f", "arguments": CANARY, "call_id": "c"}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": CANARY}]},
        {"input": [{"type": "function_call_output", "call_id": CANARY, "output": "x"}]},
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": CANARY}]}]},
        {"input": [{"type": "mcp_call", "output": CANARY}]},
        {"instructions": CANARY},
        {"system": [{"type": "text", "text": CANARY}]},
        {"tools": [{"type": "function", "function": {"name": CANARY}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {CANARY: {}}}}}]},
        {"functions": [{"name": "f", "description": CANARY}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"description": CANARY}}}},
        {"metadata": {"a": CANARY}},
        {"metadata": {CANARY: "a"}},
        {"prediction": {"type": "content", "content": CANARY}},
        {"suffix": CANARY},
        {"user": f"is {CANARY}"},
        {"stop": [f"\n{CANARY} "]},
        {"documents": [{"text": CANARY}]},
        {"nobody_knows": {"deep": [CANARY]}},
        {CANARY: 1},
    ],
)
def test_text_anywhere_in_a_request_is_read(field: dict[str, Any]) -> None:
    assert CANARY in texts({"model": "m", **field})


def test_settings_are_no_text() -> None:
    body = {
        "model": "org/some-model:7b", "stream": True, "temperature": 0.5, "reasoning_effort": "low", "user": "u-17",
        "stop": ["</s>"], "logit_bias": {"50256": -100}, "stream_options": {"include_usage": True}, "n": 2,
        "moderation": {"model": "x", "policy": {"input": {"mode": "block"}}},
    }  # fmt: skip
    assert read_request(body).messages == read_request(body).context == ()


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": [1, 2, 3]},
        {"prompt": [[1], [2]]},
        {"input": [1, 2]},
        {"messages": "no list"},
        {"messages": None},
        {"prompt": {"id": "pmpt_1"}},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"chat_template": "{{ 'bo' + 'mb' }}"},
        {"prompt_embeds": "AAAA"},
        {"images": ["AAAA"]},
        {"Messages": []},
        {"me\u017f\u017fages": []},
        {"tokens": [1, 2]},
        {"tokens": [[1, 2]]},
    ],
)
def test_what_cannot_be_read_is_unscannable(field: dict[str, Any]) -> None:
    assert None in read_request({"messages": [], **field}).messages


@pytest.mark.parametrize("field", [{"previous_response_id": None}, {"images": []}, {"raw": False}, {"input": None}])
def test_nothing_is_not_unscannable(field: dict[str, Any]) -> None:
    assert read_request(field).messages == ()


@pytest.mark.parametrize("body", [None, 1, "x", [], [{"messages": []}]])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        read_request(body)


def test_items_keep_their_order_and_roles() -> None:
    body = {"input": [{"role": "user", "content": "a"}, {"type": "message", "role": "assistant", "content": "b"}, "c"]}
    assert read_request(body).messages == (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    )


_fields = st.sampled_from(
    ["messages", "input", "prompt", "tools", "metadata", "stop", "user", "role", "content", "type"]
)


@given(st.dictionaries(_fields | _texts, values, max_size=5))
@settings(max_examples=CASES, deadline=None)
def test_every_long_string_of_a_request_is_read_or_something_is_unscannable(body: dict[str, Any]) -> None:
    body = {**body, "x": [f"{CANARY} with blanks"]}
    found = read_request(body)
    assert f"{CANARY} with blanks" in found.context
