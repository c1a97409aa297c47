"""LiteLLM: the guardrails in a real proxy in this process, with models that answer from memory."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from doubles import CANARY, Does, Words

from promptguard.errors import InvalidArgument
from promptguard.guard import Action, Guard, Policy

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
pytest.importorskip("litellm.proxy", reason="litellm has an environment of its own: make integrations")

import litellm
from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import ModifyResponseException
from starlette.testclient import TestClient

from promptguard.middleware.litellm import PGuardLiteLLM, PGuardLiteLLMMultimodal

pytestmark = pytest.mark.filterwarnings("default")

CAKE, BOMB = "bake a cake", f"a {CANARY}"
PATH = "promptguard.middleware.litellm."
PNG = b"\x89PNG\r\n\x1a\n"
KINDS = ["PGuardLiteLLM", "PGuardLiteLLMMultimodal"]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
# The proxy gives its own providers what is here instead of calling them.
MODELS = {"fine": "fine answer", "harm": BOMB}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    from litellm.proxy.proxy_server import app, initialize

    guardrails = [
        {
            "guardrail_name": f"{kind}-{on_block}",
            "litellm_params": {
                "guardrail": PATH + kind,
                "mode": ["pre_call", "post_call"],
                "guard_config": {"filter": "keyword:bomb"},
                "on_block": on_block,
            },
        }
        for kind in KINDS
        for on_block in ("raise", "refuse")
    ]
    models = [
        {"model_name": name, "litellm_params": {"model": "openai/x", "api_key": "k", "mock_response": answer}}
        for name, answer in MODELS.items()
    ]
    config = tmp_path_factory.mktemp("litellm") / "config.yaml"
    config.write_text(json.dumps({"model_list": models, "guardrails": guardrails}), encoding="utf-8")
    asyncio.run(initialize(config=str(config)))
    yield TestClient(app)
    litellm.callbacks = []


def ask(
    proxy: TestClient, kind: str, content: Any, *, on_block: str = "raise", model: str = "fine", **more: Any
) -> Any:
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "guardrails": [f"{kind}-{on_block}"], **more}
    return proxy.post("/v1/chat/completions", json=body)


CARRIERS: dict[str, Any] = {
    "text": lambda text: text,
    "part": lambda text: [{"type": "text", "text": CAKE}, {"type": "text", "text": text}],
    "earlier turn": lambda text: [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": CAKE},
    ],
    "system": lambda text: [{"role": "system", "content": text}, {"role": "user", "content": CAKE}],
    "tool arguments": lambda text: [
        {"role": "user", "content": CAKE},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps([text])}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": CAKE},
    ],
    "tool result": lambda text: [
        {"role": "user", "content": CAKE},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": text},
    ],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocked_requests(proxy: TestClient, kind: str, name: str, stream: bool) -> None:
    response = ask(proxy, kind, CARRIERS[name](BOMB), stream=stream)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "blocked by promptguard"
    assert CANARY not in response.text
    response = ask(proxy, kind, CARRIERS[name](CAKE), stream=stream)
    assert response.status_code == 200
    assert "answer" in _content(response, stream)


@pytest.mark.parametrize("kind", KINDS)
def test_tool_schemas_are_checked(proxy: TestClient, kind: str) -> None:
    def schema(text: str) -> Any:
        return [{"type": "function", "function": {"name": "f", "description": text, "parameters": {"type": "object"}}}]

    assert ask(proxy, kind, CAKE, tools=schema(BOMB)).status_code == 400
    assert ask(proxy, kind, CAKE, tools=schema(CAKE)).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_are_answers(proxy: TestClient, kind: str) -> None:
    response = ask(proxy, kind, BOMB, on_block="refuse")
    choice = response.json()["choices"][0]
    assert (response.status_code, choice["finish_reason"]) == (200, "content_filter")
    assert choice["message"]["content"] == Policy().refusal
    response = ask(proxy, kind, BOMB, on_block="refuse", stream=True)
    assert _content(response, True) == Policy().refusal


def _content(response: Any, stream: bool) -> str:
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    deltas = [json.loads(line)["choices"] for line in lines]
    return "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_blocked_answers_are_not_sent_not_even_their_first_token(proxy: TestClient, kind: str, stream: bool) -> None:
    response = ask(proxy, kind, CAKE, model="harm", stream=stream)
    assert response.status_code == 400
    assert "canary" not in response.text
    response = ask(proxy, kind, CAKE, model="harm", on_block="refuse", stream=stream)
    assert "canary" not in response.text
    assert _content(response, stream) == Policy().refusal


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_routes_are_guarded(proxy: TestClient, kind: str, path: str) -> None:
    field = "prompt" if path == "/v1/completions" else "input"
    body = {"model": "fine", field: BOMB, "guardrails": [f"{kind}-raise"]}
    response = proxy.post(path, json=body)
    assert response.status_code == 400
    assert CANARY not in response.text


def test_images_block_where_the_interface_shows_them(proxy: TestClient) -> None:
    for content in ([IMAGE], [{"type": "text", "text": CAKE}, IMAGE]):
        assert ask(proxy, "PGuardLiteLLMMultimodal", content).status_code == 400
    assert ask(proxy, "PGuardLiteLLM", [{"type": "text", "text": CAKE}, IMAGE]).status_code == 400
    # LiteLLM never shows it to a text guardrail: the reason why there are two classes.
    assert ask(proxy, "PGuardLiteLLM", [IMAGE]).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"extra_body": {"messages": [{"role": "user", "content": BOMB}]}},
        {"extra_body": {"messages": [{"role": "user", "content": [IMAGE]}]}},
        {"prompt": BOMB},
        {"hidden": {"deep": [BOMB]}},
        {"fallbacks": [{"model": "fine", "messages": [{"role": "user", "content": BOMB}]}]},
    ],
)
def test_further_fields_are_no_way_round(proxy: TestClient, more: dict[str, Any]) -> None:
    assert ask(proxy, "PGuardLiteLLMMultimodal", CAKE, **more).status_code == 400


def test_no_text_in_our_logs(proxy: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "promptguard")
    for kind in KINDS:
        ask(proxy, kind, BOMB)
        ask(proxy, kind, CAKE, model="harm")
    found = [record for record in caplog.records if record.name.startswith("promptguard")]
    assert found
    assert all(CANARY not in record.getMessage() for record in found)


# Without a proxy


def made(kind: Any = PGuardLiteLLM, certifier: Any = None, policy: Policy | None = None, **options: Any) -> Any:
    guard = Guard(certifier or Words(), policy)
    return kind(guard=guard, guardrail_name="g", event_hook="pre_call", default_on=True, **options)


def apply(guardrail: Any, inputs: dict[str, Any], input_type: str = "request") -> Any:
    data: dict[str, Any] = {"model": "m", "metadata": {}}
    return asyncio.run(guardrail.apply_guardrail(inputs=inputs, request_data=data, input_type=input_type))


@pytest.mark.parametrize(
    "inputs",
    [
        {"texts": [CAKE, BOMB]},
        {"texts": ["canary-7f3a bo", "mb"], "structured_messages": [{"role": "user", "content": BOMB}]},
        {"texts": [BOMB], "structured_messages": [{"role": "user", "content": CAKE}]},
        {"texts": [CAKE], "tools": [{"type": "function", "function": {"description": BOMB}}]},
        {"tools": [{"type": "function", "function": {"description": BOMB}}]},
        {"texts": [], "tool_calls": [{"function": {"name": "f", "arguments": BOMB}}]},
        {"texts": [CAKE], "images": ["https://x.org/i.png"]},
        {"texts": [CAKE], "structured_messages": [{"role": "wizard", "content": CAKE}]},
        {"texts": [CAKE], "structured_messages": "odd"},
    ],
)
def test_everything_in_the_inputs_is_checked(inputs: dict[str, Any]) -> None:
    for input_type in ("request", "response"):
        with pytest.raises(GuardrailRaisedException) as caught:
            apply(made(), inputs, input_type)
        assert CANARY not in str(caught.value) + str(vars(caught.value))


def test_allowed_inputs_are_returned_unchanged() -> None:
    cases: list[dict[str, Any]] = [
        {"texts": [CAKE]},
        {"texts": []},
        {},
        {"texts": [CAKE], "structured_messages": [{"role": "user", "content": CAKE}]},
    ]
    for inputs in cases:
        assert apply(made(), inputs) is inputs


def test_only_a_verdict_counts_as_blocked_content() -> None:
    for certifier, is_verdict in ((Words(), True), (Does(RuntimeError(BOMB)), False)):
        with pytest.raises(GuardrailRaisedException) as caught:
            apply(made(certifier=certifier), {"texts": [BOMB]})
        assert caught.value.blocked_content is is_verdict


def test_refusals_hold_no_text() -> None:
    with pytest.raises(ModifyResponseException) as caught:
        apply(made(on_block="refuse"), {"texts": [BOMB]})
    assert CANARY not in str(vars(caught.value))


def test_a_native_hook_reads_event_streams_and_refuses_what_it_cannot_read() -> None:
    async def collected(*chunks: Any) -> list[Any]:
        async def stream() -> Any:
            for chunk in chunks:
                yield chunk

        guardrail = made(PGuardLiteLLMMultimodal)
        hook = guardrail.async_post_call_streaming_iterator_hook(None, stream(), {"model": "m"})
        return [chunk async for chunk in hook]

    def event(text: str) -> bytes:
        found = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return b"event: x\ndata: " + json.dumps(found).encode() + b"\n\n"

    cake = [event("a ca"), event("ke")]
    assert asyncio.run(collected(*cake)) == cake
    odd: list[list[Any]] = [
        [b"data: {odd\n\n"],
        [object()],
        [7],
        [BOMB],
        [CAKE],
        [": " + BOMB + "\n", event("x")],
        ["\ud800"],
    ]
    beside = {"choices": [{"index": 0, "message": {"content": "x"}}], "citations": [BOMB], "metadata": (BOMB,)}
    for chunks in ([event("a bo"), event("mb")], *odd, [beside]):
        with pytest.raises(GuardrailRaisedException):
            asyncio.run(collected(*chunks))


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="guard_config knows"):
        PGuardLiteLLM(guard_config={"filtre": "causal"}, guardrail_name="g")
    with pytest.raises(InvalidArgument, match="on_block"):
        made(on_block="block")


def test_the_asynchronous_sdk_is_guarded() -> None:
    guardrail = made(PGuardLiteLLMMultimodal, policy=Policy(on_error=Action.BLOCK))
    before, litellm.callbacks = litellm.callbacks, [guardrail]
    try:
        call = litellm.acompletion(
            model="openai/x",
            api_key="k",
            mock_response="fine",
            messages=[{"role": "user", "content": BOMB}],
            guardrails=["g"],
        )
        with pytest.raises(Exception, match="blocked by promptguard"):
            asyncio.run(call)
    finally:
        litellm.callbacks = before


def test_the_native_guardrail_judges_pictures_by_its_guard() -> None:
    from promptguard.types import Verdict

    class Images:
        max_pictures = 2
        seen: ClassVar[list[bytes]] = []

        def certify(self, x: bytes) -> Verdict:
            self.seen.append(x)
            return Words(word="harm").certify(x.decode("latin-1"))

    def ask_with(data: bytes) -> Any:
        url = f"data:image/png;base64,{base64.b64encode(PNG + data).decode()}"
        content = [{"type": "text", "text": CAKE}, {"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        kind = PGuardLiteLLMMultimodal(guard=Guard(Words(), images=Images()), guardrail_name="g", event_hook="pre_call")
        return body, asyncio.run(kind.async_pre_call_hook(None, None, body, "completion"))

    body, passed = ask_with(b"fine")
    assert passed == body
    with pytest.raises(GuardrailRaisedException):
        ask_with(b"harm")
    assert Images.seen == [PNG + b"fine", PNG + b"harm"]


def test_requests_are_checked_while_the_model_is_called_too() -> None:
    kind = PGuardLiteLLMMultimodal(guard=Guard(Words()), guardrail_name="g", event_hook="during_call")

    def ask_for(text: str) -> Any:
        data = {"model": "m", "messages": [{"role": "user", "content": text}]}
        return asyncio.run(kind.async_moderation_hook(data, None, "acompletion")) == data

    assert ask_for(CAKE)
    with pytest.raises(GuardrailRaisedException):
        ask_for(BOMB)


DEEP = json.loads("[" * 50 + "]" * 50)


@pytest.mark.parametrize(
    "more", [{"x": DEEP}, {"extra_body": {"x": DEEP}}, {"extra_body": [BOMB]}, {"extra_body": BOMB}]
)
def test_requests_that_cannot_be_read_and_texts_in_odd_places_are_blocked(more: dict[str, Any]) -> None:
    kind = PGuardLiteLLMMultimodal(guard=Guard(Words()), guardrail_name="g", event_hook="pre_call")
    data = {"model": "m", "messages": [{"role": "user", "content": CAKE}], **more}
    with pytest.raises(GuardrailRaisedException):
        asyncio.run(kind.async_pre_call_hook(None, None, data, "completion"))


def test_a_request_without_messages_is_checked() -> None:
    kind = PGuardLiteLLMMultimodal(guard=Guard(Words()), guardrail_name="g", event_hook="pre_call")
    with pytest.raises(GuardrailRaisedException):
        asyncio.run(kind.async_pre_call_hook(None, None, {"model": "m", "instructions": BOMB}, "responses"))


def test_tools_that_are_nested_too_deep_are_blocked() -> None:
    kind = PGuardLiteLLM(guard=Guard(Words()), guardrail_name="g", event_hook="pre_call")
    inputs = {"texts": [CAKE], "tools": [{"x": DEEP}]}
    with pytest.raises(GuardrailRaisedException):
        asyncio.run(kind.apply_guardrail(inputs, {}, "request"))
