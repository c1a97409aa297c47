"""The server's routes: nothing unguarded goes through, and every answer has the API's shape."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import BASE, BOMB, CANARY, SAID, Fake, ask, completion, config, says, served, sse
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from promptguard.guard.request_fields import KNOWN
from promptguard.guard.strict_json import dump
from promptguard.serve.app import Edge
from promptguard.serve.bodies import read_body
from promptguard.serve.certifier import price
from promptguard.serve.config import CATEGORIES
from promptguard.serve.state import Holder, State

CASES = int(os.environ.get("PGUARD_FUZZ", "60"))  # 20000 and more by hand
CHAT = "/v1/chat/completions"


def test_an_allowed_request_reaches_the_model_with_the_bytes_that_were_checked() -> None:
    fake = Fake()
    with served(fake=fake) as client:
        body = b'{ "model": "m",\n "messages": [{"role": "user", "content": "caf\\u00e9"}], "x-unknown": {"a": 1.50} }'
        answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.json() == completion()
    assert fake.bodies == [dump(json.loads(body))]
    assert answer.headers["x-promptguard-verdict"] == "allow"
    assert answer.headers["x-promptguard-certificate"] == "none"
    assert len(answer.headers["x-promptguard-request-id"]) == 32


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings"])
def test_a_flagged_request_never_reaches_the_model(path: str) -> None:
    fake = Fake()
    with served(fake=fake) as client:
        for field in (
            {"messages": [{"role": "tool", "content": "a bomb"}]},
            {"prompt": "bomb"},
            {"input": ["a", "bomb"]},
        ):
            answer = client.post(f"/v1/{path}", json={"model": "m", **field})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "content_filter")
            assert error["promptguard"]["certificate"]["threat"]["kind"] == "suffix"
            assert answer.headers["x-promptguard-verdict"] == "block"
            assert answer.headers["x-promptguard-certificate"].startswith("kind=suffix; budget=20; unit=word")
    assert fake.bodies == []


def test_an_image_an_unknown_role_and_an_empty_request_are_blocked() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/never-fetched.png"}}
    odd: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": [image]}]},
        {"messages": [{"role": "alien", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "hologram", "text": "hi"}]}]},
        {"messages": []},
        {},
        {**ask(), "previous_response_id": "r"},
    ]
    fake = Fake()
    with served(fake=fake) as client:
        assert [client.post(CHAT, json=body).status_code for body in odd] == [400] * len(odd)
    assert fake.bodies == []


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_the_shape_of_an_answer(path: str, stream: bool) -> None:
    with served(config(block_mode="refusal"), Fake()) as client:
        answer = client.post(f"/v1/{path}", json={"model": "m", "input": "a bomb", "stream": stream})
    assert answer.status_code == 200
    assert "can't assist" in answer.text
    assert answer.headers["x-promptguard-verdict"] == "block"
    if stream:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.endswith("data: [DONE]\n\n")
    elif path != "responses":
        assert answer.json()["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": "application/json; charset=utf-16"}, 415),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 415),
        (b'{"a": 1, "a": 2}', {"content-type": "application/json"}, 400),
        (b"[]", {"content-type": "application/json"}, 400),
        (b'{"messages": [], "x": "' + b"y" * 3000 + b'"}', {"content-type": "application/json"}, 413),
        (b'{"stream": "yes", "prompt": "x"}', {"content-type": "application/json"}, 400),
        (b'{"moderation": 5, "prompt": "x"}', {"content-type": "application/json"}, 400),
        (b'{"prompt": "x", "a": [[[[[[[[["x"]]]]]]]]]}', {"content-type": "application/json"}, 400),
        (b'{"moderation": {"policy": {"input": {"mode": "off"}}}}', {"content-type": "application/json"}, 400),
    ],
)
def test_unreadable_requests_are_refused(content: bytes, headers: dict[str, str], status: int) -> None:
    fake = Fake()
    with served(config(limits={"body_bytes": 2000, "depth": 8}), fake) as client:
        answer = client.post(CHAT, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"]
    assert fake.bodies == []


def test_chunked_bodies_are_counted() -> None:
    with served(config(limits={"body_bytes": 2000}), Fake()) as client:
        answer = client.post(CHAT, content=iter([b"x" * 1500] * 2), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("limits", "body", "status"),
    [
        ({"messages": 2}, {"messages": [{"role": "user", "content": "a"}] * 3}, 400),
        ({"parts": 2}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 3}]}, 400),
        ({"checks": 10}, ask("word " * 30), 413),
        ({"characters": 100}, ask("word " * 30), 413),
        ({"work_per_minute": 10}, None, 429),
    ],
)
def test_costs_are_bounded_before_inference(limits: dict[str, Any], body: dict[str, Any] | None, status: int) -> None:
    fake = Fake()
    with served(config(limits=limits), fake) as client:
        if body is None:
            assert client.post(CHAT, json=ask()).status_code == 200  # a full bucket serves one, and is in debt
            body = ask()
        answer = client.post(CHAT, json=body)
    assert answer.status_code == status
    assert len(fake.bodies) == (status == 429)
    assert (status != 429) or int(answer.headers["retry-after"]) > 60


def test_what_the_filter_reads_is_charged_beyond_the_bytes_of_the_request() -> None:
    with served(config(limits={"work_per_minute": 1500}), Fake()) as client:
        assert len(dump(ask("word " * 30))) < 500
        assert [client.post(CHAT, json=ask("word " * 30)).status_code for _ in range(2)] == [200, 429]


def test_what_is_over_a_limit_is_charged_every_text_that_was_joined_of_it() -> None:
    parts = [{"type": "text", "text": f"{n} {'word ' * 20}"} for n in range(20)]
    body = {"messages": [{"role": "user", "content": parts}]}
    limits = {"checks": 10, "work_per_minute": 2 * len(dump(body))}
    with served(config(limits=limits), Fake()) as client:
        codes = [client.post(CHAT, json=body).json()["error"]["code"] for _ in range(2)]
    assert codes == ["over_budget", "rate_limit_exceeded"]


def test_every_key_pays_for_itself() -> None:
    keys = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in "ab"]
    keys[1] |= {"work_per_minute": 10}  # type: ignore[dict-item]
    with served(config(keys=keys, limits={"work_per_minute": 100_000}), Fake()) as client:
        for name, status in (("b", 200), ("b", 429), ("a", 200), ("a", 200), ("b", 429)):
            assert client.post(CHAT, json=ask(), headers={"x-api-key": name}).status_code == status


def test_the_inputs_of_moderations_cost_together_what_a_request_may() -> None:
    with served(config(BOMB, limits={"characters": 300, "checks": 50})) as client:
        for many, flagged in ((1, 0), (50, 50)):
            texts = [f"cake {n} cake" for n in range(many)]
            results = client.post("/v1/moderations", json={"input": texts}).json()["results"]
            assert [result["flagged"] for result in results].count(True) == flagged
            assert len(results) == many
    with served(config(BOMB, limits={"work_per_minute": 100})) as client:
        assert client.post("/v1/moderations", json={"input": ["cake"] * 20}).status_code == 200
        assert client.post("/v1/moderations", json={"input": "cake"}).status_code == 429


def test_too_many_texts_are_charged_what_they_were_to_read() -> None:
    with served(config(limits={"work_per_minute": 1000}), Fake()) as client:
        body = ask(zz=[f"a{n}" for n in range(3000)])
        codes = [client.post(CHAT, json=body).json()["error"]["code"] for _ in range(2)]
    assert codes == ["over_budget", "rate_limit_exceeded"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("chat/completions", b"x" * 1000, "invalid_request"),
        ("chat/completions", b'{"a": 1, "a": "' + b"x" * 1000 + b'"}', "invalid_request"),
        ("chat/completions", b'{"stream": "' + b"x" * 1000 + b'"}', "invalid_request"),
        ("chat/completions", json.dumps({"messages": [{}] * 400}).encode(), "invalid_request"),
        ("moderations", b'{"input": 5, "x": "' + b"x" * 1000 + b'"}', "invalid_request"),
        ("moderations", json.dumps({"input": ["cake"] * 400}).encode(), "invalid_request"),
        ("certify", b'{"x": "' + b"x" * 1000 + b'"}', "invalid_request"),
        ("chat/completions", json.dumps({"input_file_id": "x" * 1000}).encode(), "content_filter"),
    ],
)
def test_reading_is_charged_whatever_comes_of_it(path: str, body: bytes, code: str) -> None:
    about = {"content-type": "application/json"}
    with served(config(limits={"work_per_minute": 1000, "messages": 300}), Fake()) as client:
        codes = [client.post(f"/v1/{path}", content=body, headers=about).json()["error"]["code"] for _ in range(2)]
    assert codes == [code, "rate_limit_exceeded"]


def test_an_owner_may_observe_and_a_client_may_only_tighten() -> None:
    observing = config(policy={"on_harmful": "allow"})
    fake = Fake()
    with served(observing, fake) as client:
        assert client.post(CHAT, json=ask("a bomb")).headers["x-promptguard-verdict"] == "observed"
        strict = ask("a bomb", moderation={"model": "x", "policy": {"input": {"mode": "block"}}})
        assert client.post(CHAT, json=strict).status_code == 400
    assert len(fake.bodies) == 1
    loose = ask("a bomb", moderation={"model": "x", "policy": {"input": {"mode": "score"}}})
    with served(config(), fake) as client:
        assert client.post(CHAT, json=loose).status_code == 400


def test_the_official_moderation_field_is_answered_and_not_forwarded() -> None:
    fake = Fake(says(json.dumps(completion("a bomb")).encode(), "application/json"))
    with served(config(), fake) as client:
        answer = client.post(CHAT, json=ask(moderation={"model": "x"}))
    field = answer.json()["moderation"]
    assert field["input"]["results"][0]["flagged"] is False
    assert field["output"]["results"][0]["flagged"] is True
    assert field["output"]["results"][0]["type"] == "moderation_result"
    assert "moderation" not in fake.asked[0]
    with served(config(), fake) as client:
        tight = ask(moderation={"policy": {"output": {"mode": "block"}}})
        blocked = client.post(CHAT, json=tight)
    assert blocked.status_code == 400
    assert "a bomb" not in blocked.text


def test_moderation_is_an_error_object_where_there_is_no_verdict() -> None:
    silent = completion("")
    fake = Fake(says(json.dumps(silent).encode(), "application/json"))
    with served(config(), fake) as client:
        field = client.post(CHAT, json=ask(moderation={"model": "x"})).json()["moderation"]
    assert (field["output"]["type"], field["output"]["code"]) == ("error", "not_moderated")


# Output.


def outputs() -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"q": "a bomb"}'}}
    several = completion()
    several["choices"].append({"index": 1, "message": {"role": "assistant", "content": "a bomb"}})
    silent = {"role": "assistant", "content": None}
    return [
        completion("a bomb"),
        completion() | {"choices": [{"index": 0, "message": silent | {"tool_calls": [call]}}]},
        completion() | {"choices": [{"index": 0, "message": silent | {"reasoning_content": "a bomb"}}]},
        completion() | {"choices": [{"index": 0, "message": silent | {"audio": {"data": "AAAA"}}}]},
        several,
        {"object": "text_completion", "choices": [{"index": 0, "text": "a bomb"}]},
        {"object": "response", "output": [{"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "a bomb"}]}]},
    ]  # fmt: skip


@pytest.mark.parametrize("value", outputs())
def test_flagged_output_is_held_back_when_output_is_checked(value: dict[str, Any]) -> None:
    fake = Fake(says(json.dumps(value).encode(), "application/json"))
    with served(config(output={"check": True}), fake) as client:
        answer = client.post(CHAT, json=ask())
    assert answer.status_code == 400
    assert "bomb" not in answer.text
    assert answer.json()["error"]["param"] is None


EMBEDDING = {"object": "embedding", "index": 0}
VECTORS: list[Any] = [[0.5, -1.0], "AACAPwAAAEA="]


@pytest.mark.parametrize("path", ["completions", "responses", "embeddings"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_the_answers_of_every_route_are_checked_whatever_their_shape(path: str, kind: str) -> None:
    body = json.dumps(completion("a bomb")).encode()
    fake = Fake(says(body if kind == "application/json" else sse([completion("a bomb")]), kind))
    with served(config(output={"check": True}), fake) as client:
        answer = client.post(f"/v1/{path}", json={"model": "m", "input": "hi"})
    assert (answer.status_code, len(fake.bodies)) == (400, 1)
    assert "bomb" not in answer.text


@pytest.mark.parametrize("vector", VECTORS)
def test_embeddings_pass_and_texts_beside_them_do_not(vector: Any) -> None:
    for more, status in (({}, 200), ({"text": "a bomb"}, 400), ({"embedding": "a bomb"}, 400)):
        value = {"object": "list", "data": [{**EMBEDDING, "embedding": vector, **more}], "model": "m"}
        with served(
            config(output={"check": True}), Fake(says(json.dumps(value).encode(), "application/json"))
        ) as client:
            answer = client.post("/v1/embeddings", json={"model": "m", "input": "hi"})
        assert answer.status_code == status
        assert (answer.json() == value) == (status == 200)


def test_the_inputs_of_embeddings_and_moderations_are_judged_apart_and_those_of_responses_joined() -> None:
    fake = Fake()
    halves, whole = {"model": "m", "input": ["a bo", "mb"]}, {"model": "m", "input": ["cake", "a bomb"]}
    with served(config(), fake) as client:
        assert client.post("/v1/embeddings", json=halves).status_code == 200
        results = client.post("/v1/moderations", json=halves).json()["results"]
        assert [result["flagged"] for result in results] == [False, False]
        assert client.post("/v1/responses", json=halves).status_code == 400
        refused = client.post("/v1/embeddings", json=whole)
        assert (refused.status_code, refused.headers["x-promptguard-verdict"]) == (400, "block")
        assert client.post("/v1/embeddings", json={"input": ["cake", "tart"], "file_id": "f"}).status_code == 400
    assert len(fake.bodies) == 1


def test_what_is_over_the_limit_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text beside many inputs would be priced with each of them."""
    read: list[str] = []

    def noted(certifier: Any, text: str) -> Any:
        read.append(text)
        return price(certifier, text)

    monkeypatch.setattr("promptguard.serve.checks.price", noted)
    body = {"model": "m", "input": [f"cake {n}" for n in range(50)]}
    with served(config(limits={"characters": 100}), Fake()) as client:
        results = client.post("/v1/moderations", json=body).json()["results"]
        assert [result["flagged"] for result in results] == [True] * 50
        assert 0 < len(read) < 25
        answer = client.post("/v1/embeddings", json=body | {"nobody_knows": "a tart"})
        assert (answer.status_code, answer.json()["error"]["promptguard"]["reason"]) == (413, "over_budget")


def test_what_is_only_observed_of_one_input_is_said_of_all() -> None:
    with served(config(policy={"on_harmful": "allow"}), Fake()) as client:
        answer = client.post("/v1/embeddings", json={"model": "m", "input": ["cake", "a bomb", "tart"]})
    assert (answer.status_code, answer.headers["x-promptguard-verdict"]) == (200, "observed")


def test_clean_and_empty_output_passes() -> None:
    for text in (SAID, ""):
        fake = Fake(says(json.dumps(completion(text)).encode(), "application/json"))
        with served(config(output={"check": True}), fake) as client:
            assert client.post(CHAT, json=ask()).json()["choices"][0]["message"]["content"] == text


def test_output_may_have_a_certifier_of_its_own() -> None:
    fake = Fake(says(json.dumps(completion("a recipe")).encode(), "application/json"))
    own = {"check": True, "certifier": {"filter": "keyword:recipe"}}
    with served(config(output=own), fake) as client:
        assert client.post(CHAT, json=ask()).status_code == 400
        assert client.post(CHAT, json=ask("a recipe")).status_code == 400
    assert len(fake.bodies) == 2


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_instead_of_an_answer_holds_nothing_of_it(path: str, stream: bool) -> None:
    value = completion(f"{CANARY} bomb")
    body = sse([value]) if stream else json.dumps(value).encode()
    fake = Fake(says(body, "text/event-stream" if stream else "application/json"))
    asked = {"model": "m", "input": "hi", "stream": stream, "moderation": {"policy": {"output": {"mode": "block"}}}}
    with served(config(block_mode="refusal"), fake) as client:
        answer = client.post(f"/v1/{path}", json=asked)
    assert (answer.status_code, answer.headers["x-promptguard-verdict"], len(fake.bodies)) == (200, "block", 1)
    assert "can't assist" in answer.text
    assert CANARY not in answer.text
    if not stream:
        field = answer.json()["moderation"]
        assert field["input"]["type"] == "error"
        assert field["output"]["results"][0]["flagged"] is True


# The upstream's faults.


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (lambda _: JSONResponse({"error": {"message": CANARY}}, 400), 400, "upstream_refused"),
        (lambda _: JSONResponse({"error": {"message": CANARY}}, 429, {"retry-after": "7"}), 429, "upstream_rate_limit"),
        (lambda _: JSONResponse({"error": {"message": CANARY}}, 401), 502, "upstream_unauthorized"),
        (lambda _: JSONResponse({"error": {"message": CANARY}}, 500), 502, "upstream_error"),
        (lambda _: Response(CANARY, 200, media_type="text/html"), 502, "upstream_error"),
        (lambda _: Response(b'{"a": 1, "a": 2}', 200, media_type="application/json"), 502, "upstream_error"),
        (lambda _: Response(status_code=302, headers={"location": f"http://{CANARY}/"}), 502, "upstream_error"),
        (lambda _: JSONResponse({"x": "y" * 5000}), 502, "upstream_error"),
    ],
)
def test_upstream_faults_have_a_status_and_no_text(reply: Any, status: int, code: str) -> None:
    with served(config(upstream={"url": "http://upstream/v1", "max_bytes": 4096}), Fake(reply)) as client:
        answer = client.post(CHAT, json=ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert CANARY not in answer.text + repr(answer.headers)
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_large_answers_are_read_as_strictly_and_written_the_same() -> None:
    whole = completion("caf\u00e9 " * 60_000, more=[0.5, "\u4e2d"] * 20_000)
    filler = b'"x": "' + b"x" * 300_000 + b'"}'
    for body, status in (
        (json.dumps(whole).encode(), 200),
        (b'{"a": 1, "a": 2, ' + filler, 502),
        (b'{"a": NaN, ' + filler, 502),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", 502),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b", " + filler, 502),
    ):
        with served(config(), Fake(says(body, "application/json"))) as client:
            answer = client.post(CHAT, json=ask())
        assert answer.status_code == status
        assert (answer.content == dump(whole)) == (status == 200)


@pytest.mark.parametrize("stream", [False, True])
def test_headers_of_the_upstream_pass_by_name_if_a_response_can_carry_them(stream: bool) -> None:
    given = {"x-ratelimit-limit-requests": "7", "x-promptguard-verdict": "allow", "set-cookie": "a=1"}

    def reply(body: dict[str, Any]) -> Response:
        answer = Fake().reply(body)
        answer.headers.update(given)
        answer.raw_headers.append((b"x-ratelimit-reset", "\u4e2d".encode()))
        return answer

    with served(config(), Fake(reply)) as client:
        answer = client.post(CHAT, json=ask(stream=stream))
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-requests"] == "7"
    assert answer.headers.get_list("x-promptguard-verdict") == ["allow"]
    assert not {"set-cookie", "x-ratelimit-reset"} & set(answer.headers)


def test_an_unreachable_upstream_and_none_at_all() -> None:
    with served(config(upstream={"url": "http://127.0.0.1:1/v1"})) as client:
        assert client.post(CHAT, json=ask()).json()["error"]["code"] == "upstream_error"
        assert client.get("/v1/models").status_code == 502
    with served(config(BOMB)) as client:
        answer = client.post(CHAT, json=ask())
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "no_upstream")
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["promptguard"]


def test_a_slow_upstream_is_a_gateway_timeout() -> None:
    class Slow(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ReadTimeout(CANARY)

    from promptguard.serve.app import create_app

    with TestClient(create_app(config(), upstream_transport=Slow())) as client:
        answer = client.post(CHAT, json=ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


def test_whose_key_goes_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    sent = {"authorization": "Bearer theirs", "x-api-key": CANARY, "cookie": CANARY}
    monkeypatch.setenv("SOME_KEY", "ours")
    for section, expected in (
        ({}, None),
        ({"key_env": "SOME_KEY"}, "Bearer ours"),
        ({"forward_authorization": True}, "Bearer theirs"),
    ):
        with served(config(upstream={"url": "http://upstream/v1", **section}), fake) as client:
            client.post(CHAT, json=ask(), headers=sent)
        assert fake.headers[-1].get("authorization") == expected
        assert CANARY not in repr(fake.headers[-1])
    with served(config(upstream={"url": "http://upstream/v1", "forward_authorization": True}), fake) as client:
        assert client.post(CHAT, json=ask(), headers={b"authorization": b"Bearer \xe9"}).status_code == 401


# Other routes.


def test_moderations_have_all_categories_and_our_verdict() -> None:
    with served(config(BOMB)) as client:
        answer = client.post("/v1/moderations", json={"input": ["hi", "a bomb"]}).json()
        whole = client.post(
            "/v1/moderations", json={"input": [{"type": "text", "text": "a bo"}, {"type": "text", "text": "mb"}]}
        )
        single = client.post("/v1/moderations", json={"model": "any", "input": "hi"}).json()
    clean, flagged = answer["results"]
    assert (clean["flagged"], flagged["flagged"]) == (False, True)
    for result in (clean, flagged):
        for table in ("categories", "category_scores", "category_applied_input_types"):
            assert tuple(result[table]) == CATEGORIES
    assert [name for name, is_set in flagged["categories"].items() if is_set] == ["illicit"]
    assert flagged["category_scores"]["illicit"] == 1.0
    assert flagged["category_applied_input_types"]["violence"] == []
    assert flagged["promptguard"]["certificate"]["label"] == "harmful"
    assert '"score"' not in json.dumps(flagged["promptguard"])
    assert len(whole.json()["results"]) == len(single["results"]) == 1
    assert whole.json()["results"][0]["flagged"]
    assert whole.headers["x-promptguard-verdict"] == "block"


@pytest.mark.parametrize("value", [{}, {"input": []}, {"input": 5}, {"input": {}}, {"input": ""}, {"input": ["a"] * 3}])
def test_moderations_without_input_are_refused(value: dict[str, Any]) -> None:
    with served(config(BOMB, limits={"messages": 2})) as client:
        assert client.post("/v1/moderations", json=value).status_code == 400


def test_moderations_flag_what_cannot_be_checked_and_take_another_category() -> None:
    odd = {"input": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]}
    with served(config(BOMB, category="violence", expose_scores=True)) as client:
        result = client.post("/v1/moderations", json=odd).json()["results"][0]
        scored = client.post("/v1/moderations", json={"input": "a bomb"}).json()["results"][0]
    assert result["flagged"]
    assert result["categories"]["violence"]
    assert scored["promptguard"]["parts"][0]["verdict"]["score"] == scored["category_scores"]["violence"]


def test_a_block_tells_why_and_what_is_proved_and_no_more() -> None:
    with served(config(), Fake()) as client:
        about = client.post(CHAT, json=ask("a bomb")).json()["error"]["promptguard"]
        certified = client.post("/v1/certify", json={"text": "a bomb"}).json()
    assert about.keys() == {"request_id", "reason", "certificate"}
    verdict = certified["parts"][0]["verdict"]
    assert not {"score", "witness", "calls", "checks", "milliseconds"} & (certified.keys() | verdict.keys())


def test_certify_tells_the_verdict_and_its_meaning() -> None:
    with served(config(BOMB)) as client:
        answer = client.post("/v1/certify", json={"text": "a bomb"}).json()
        assert client.post("/v1/certify", json={"messages": ask("hi")["messages"]}).json()["allowed"]
        assert client.post("/v1/certify", json={"text": "a", "max_erase": 0}).status_code == 400
    assert answer["parts"][0]["verdict"]["certificate"] == answer["certificate"]
    assert answer["meaning"][0].startswith("With up to 20 whole words appended")
    assert "score" not in answer["parts"][0]["verdict"]


def test_litellm_generic_guardrail() -> None:
    about: dict[str, Any] = {
        "input_type": "request",
        "litellm_call_id": "x",
        "request_data": {"user": "a bomb"},
        "request_headers": {"a": "bomb"},
        "images": [],
        "tools": None,
    }
    path = "/beta/litellm_basic_guardrail_api"
    with served(config(BOMB)) as client:
        assert client.post(path, json={**about, "texts": ["hi"]}).json() == {"action": "NONE"}
        for field in (
            {"texts": ["a bomb"]},
            {"structured_messages": [{"role": "user", "content": "a bomb"}]},
            {"tool_calls": [{"function": {"name": "f", "arguments": "a bomb"}}]},
            {"tools": [{"function": {"description": "a bomb"}}]},
            {"texts": ["hi"], "images": ["data:image/png;base64,AAAA"]},
        ):
            assert client.post(path, json={**about, **field}).json()["action"] == "BLOCKED"


def test_probes_and_models_ask_no_key_but_the_api_does() -> None:
    keys = [{"name": "a", "sha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}]  # of "secret"
    with served(config(keys=keys), Fake()) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert "promptguard_checks_inside" in client.get("/metrics").text
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "secret"}):
            refused = client.post(CHAT, json=ask(), headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}, {"x-promptguard-key": "secret"}):
            assert client.post(CHAT, json=ask(), headers=headers).status_code == 200
        assert {model["id"] for model in client.get("/v1/models", headers={"x-api-key": "secret"}).json()["data"]} == {
            "m",
            "promptguard",
        }


def test_a_key_of_this_server_is_not_forwarded_and_slow_hashes_work() -> None:
    fake = Fake()
    # Of "secret", with the cheapest settings.
    stored = (
        "scrypt$2$8$1$c2FsdA==$" + base64.b64encode(hashlib.scrypt(b"secret", salt=b"salt", n=2, r=8, p=1)).decode()
    )
    upstream = {"url": "http://upstream/v1", "forward_authorization": True}
    with served(config(upstream=upstream, keys=[{"name": "a", "scrypt": stored}]), fake) as client:
        ours = client.post(CHAT, json=ask(), headers={"authorization": "Bearer secret"})
        assert ours.status_code == 401
        both = {"authorization": "Bearer theirs", "x-promptguard-key": "secret"}
        assert client.post(CHAT, json=ask(), headers=both).status_code == 200
    assert [headers["authorization"] for headers in fake.headers] == ["Bearer theirs"]
    assert "secret" not in repr(fake.headers)


def test_unknown_routes_and_methods_have_the_api_s_shape() -> None:
    with served(config(BOMB)) as client:
        assert client.post("/v1/files", json={}).json()["error"]["code"] == "not_found"
        assert client.get(CHAT).status_code == 405


def test_the_playground_is_there_unless_there_are_keys() -> None:
    with served(config(BOMB | {"playground": None})) as client:
        assert client.get("/").headers["content-type"].startswith("text/html")
        assert client.get("/playground/menu").json()
    with served(config(BOMB)) as client:
        assert client.get("/").status_code == 404


def test_a_reload_that_brings_keys_closes_the_playground(monkeypatch: pytest.MonkeyPatch) -> None:
    holders: list[Holder] = []

    class Kept(Holder):
        def __init__(self, state: State) -> None:
            super().__init__(state)
            holders.append(self)

    monkeypatch.setattr("promptguard.serve.app.Holder", Kept)
    keyed = State.of(config(BOMB | {"playground": None}, keys=[{"name": "a", "sha256": "0" * 64}]))

    async def swap() -> None:
        holders[0].swap(keyed)

    with served(config(BOMB | {"playground": None})) as client:
        assert client.post("/playground/check", json=_question("a bomb")).status_code == 200
        assert client.portal is not None
        client.portal.call(swap)
        for path in ("/", "/playground/menu", "/playground/app.js"):
            assert client.get(path).status_code == 404
        for name in ("check", "cost", "prefixes", "attack"):
            assert client.post(f"/playground/{name}", json=_question("a bomb")).status_code == 404


def test_a_request_is_judged_by_the_configuration_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    holders: list[Holder] = []
    fake = Fake()

    class Kept(Holder):
        def __init__(self, state: State) -> None:
            super().__init__(state)
            holders.append(self)

    async def reload_meanwhile(*args: Any) -> bytes:
        body = await read_body(*args)
        if holders[0].current is not later:
            holders[0].swap(later)
        return body

    monkeypatch.setattr("promptguard.serve.app.Holder", Kept)
    monkeypatch.setattr("promptguard.serve.call.read_body", reload_meanwhile)
    other = config(certifier={"filter": "keyword:cake"})
    later = State.of(other, httpx2.ASGITransport(app=fake.app()))
    with served(config(), fake) as client:
        assert [client.post(CHAT, json=ask(text)).status_code for text in ("a bomb", "a cake", "a bomb")] == [
            400,
            400,
            200,
        ]
    assert fake.asked == [ask("a bomb")]


def test_the_playground_is_charged() -> None:
    with served(config(BOMB | {"playground": None}, limits={"work_per_minute": 50})) as client:
        assert client.post("/playground/check", json=_question("a cake is not a bomb")).status_code == 200
        refused = client.post("/playground/check", json=_question("a cake"))
        assert (refused.status_code, refused.json()["error"]["kind"]) == (400, "Throttled")
        assert client.post("/v1/certify", json={"text": "a cake"}).status_code == 429


def _question(text: str) -> dict[str, Any]:
    return {"text": text, "choice": {"filter": "keyword", "mode": "suffix", "budget": 5, "unit": "word"}}


def test_no_text_of_a_request_or_an_answer_reaches_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fake = Fake(says(json.dumps(completion(f"{CANARY} bomb")).encode(), "application/json"))
    with served(config(output={"check": True}), fake) as client:
        for body in (ask(CANARY), ask(f"{CANARY} bomb"), {**ask(), CANARY: 1}, {"messages": CANARY}):
            client.post(f"{CHAT}?{CANARY}=1", json=body, headers={"x-api-key": CANARY})
        client.post(CHAT, content=f'{{"{CANARY}": 1, "{CANARY}": 2}}', headers={"content-type": "application/json"})
    assert "promptguard" in caplog.text
    # The test client logs the addresses that it asks.
    assert not [record for record in caplog.records if CANARY in record.getMessage() and record.name != "httpx2"]


def test_a_fault_of_ours_is_an_error_without_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_body: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("promptguard.serve.proxy.read_request", breaks)
    fake = Fake()
    with served(config(), fake) as client:
        answer = client.post(CHAT, json=ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert CANARY not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text
    assert fake.bodies == []


@pytest.mark.parametrize("begins", [False, True])
async def test_the_edge_swallows_what_the_application_raises(begins: bool, caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(CANARY)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    holder = Holder(State.of(config(BOMB)))
    await Edge(application, holder)({"type": "http"}, receive, send)
    assert [message.get("status") for message in sent] == ([200] if begins else [500, None])
    assert CANARY not in caplog.text + repr(sent)
    assert holder.current.users == 0
    await holder.close()


# The JSON surface.

_leaf = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["user", "text", "a bomb", "", "tool", "\x00"])
_USUAL = (
    "messages", "role", "content", "type", "text", "input", "prompt", "tools", "stream", "model", "n", "moderation",
    "image_url", "tool_calls", "function", "arguments", "name", "x",
)  # fmt: skip
_name = st.sampled_from(_USUAL) | st.sampled_from(sorted(KNOWN))
_value: st.SearchStrategy[Any] = st.deferred(
    lambda: _leaf | st.lists(_value, max_size=3) | st.dictionaries(_name, _value, max_size=3)
)
_message = st.fixed_dictionaries({}, optional={"role": _leaf, "content": _value, "name": _value, "tool_calls": _value})


@pytest.fixture(scope="module")
def surface() -> Any:
    fake = Fake(says(json.dumps(completion()).encode(), "application/json"))
    with served(config(limits={"threads": 1}), fake) as client:
        yield client, fake


@given(
    st.sampled_from([CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations", "/v1/certify"]),
    st.dictionaries(_name, _value, max_size=5)
    | st.fixed_dictionaries({"messages": st.lists(_message, max_size=3)})
    | _value,
)
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_answered_and_a_bomb_never_goes_upstream(surface: Any, path: str, value: Any) -> None:
    client, fake = surface
    fake.bodies.clear()
    answer = client.post(path, content=dump(value), headers={"content-type": "application/json"})
    assert answer.status_code in {200, 400, 413}
    assert answer.json()
    assert len(fake.bodies) <= 1
    for body in fake.bodies:
        assert b"bomb" not in body
        assert body == dump({key: item for key, item in value.items() if key != "moderation"})


def test_the_base_configuration_is_what_the_tests_think() -> None:
    assert config(BASE).upstream.url == "http://upstream/v1"
