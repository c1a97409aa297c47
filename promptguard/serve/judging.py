"""The routes that judge and forward nothing: moderations, certify, LiteLLM's generic guardrail.

Sources: the OpenAI API's moderations; LiteLLM 1.106, `generic_guardrail_api`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from promptguard.errors import InvalidRequest
from promptguard.guard.chat_request import ChatRequest, read_apart, read_request
from promptguard.guard.strict_json import parse
from promptguard.serve.answers import json_response, moderation
from promptguard.serve.call import Call
from promptguard.serve.config import Limits

_ROUTINE = frozenset({"litellm_call_id", "litellm_trace_id", "litellm_version", "request_headers", "request_data"})


async def moderations(call: Call) -> Response:
    """`POST /v1/moderations`: one result for each text of a list, one for a list of parts.

    What cannot be checked is flagged. Under the key `promptguard` a result has the decision and its certificate.
    """
    content = await call.body()
    limits = call.state.config.limits
    judged = await call.judge(lambda: (_inputs(content, limits), None))
    results = [moderation(one, call.state.config) | {"promptguard": call.about(one)} for one in judged.decisions]
    return json_response({"id": f"modr-{call.id}", "model": call.state.config.model, "results": results})


def _inputs(content: bytes, limits: Limits) -> list[ChatRequest]:
    """A request for each text of a list, which are judged apart, or one for all parts.

    Raises:
        InvalidRequest: there is no input, too much of it, or something else.
    """
    given = _object(content, limits.depth).get("input")
    if not isinstance(given, str | list) or not given:
        raise InvalidRequest("input must be a text, a list of texts or a list of parts")
    if len(given) > limits.messages and isinstance(given, list):
        raise InvalidRequest(f"more than {limits.messages} inputs")
    if isinstance(given, str) or all(isinstance(item, str) for item in given):
        return read_apart({"input": given})
    return [ChatRequest(({"role": "user", "content": given},), ())]


async def certify(call: Call) -> Response:
    """`POST /v1/certify`: the decision about `{"text": ...}` or `{"messages": [...]}`, with every certificate."""
    content = await call.body()
    depth = call.state.config.limits.depth

    def read() -> tuple[list[ChatRequest], None]:
        value = _object(content, depth)
        if set(value) == {"text"} and isinstance(value["text"], str):
            return [ChatRequest(({"role": "user", "content": value["text"]},), ())], None
        if set(value) == {"messages"}:
            return [read_request(value)], None
        raise InvalidRequest("send text or messages, and nothing else")

    judged = await call.judge(read)
    meanings = [certificate.sentence() for certificate in judged.decision.certificates]
    return json_response(call.about(judged.decision) | {"meaning": meanings})


async def litellm(call: Call) -> Response:
    """`POST /beta/litellm_basic_guardrail_api`: NONE or BLOCKED; images cannot be checked, so they block."""
    content = await call.body()
    depth = call.state.config.limits.depth
    judged = await call.judge(lambda: ([_guardrail(_object(content, depth))], None))
    if judged.decision.allowed:
        return json_response({"action": "NONE"})
    return json_response({"action": "BLOCKED", "blocked_reason": call.state.config.policy.refusal})


def _guardrail(value: Mapping[str, Any]) -> ChatRequest:
    """The texts of LiteLLM's call; what it says about itself and its user is no text."""
    about = {key: item for key, item in value.items() if key not in _ROUTINE | {"texts", "structured_messages"}}
    about = {key: item for key, item in about.items() if item and key not in {"input_type", "tool_calls"}}
    texts, messages = value.get("texts") or [], value.get("structured_messages") or []
    tool_calls = value.get("tool_calls") or []
    if not all(isinstance(item, list) for item in (texts, messages, tool_calls)):
        raise InvalidRequest("texts, structured_messages and tool_calls must be lists")
    # Two readings, so that no field of the call stands in for another.
    found, further = read_request({"messages": messages, "input": texts}), read_request(about)
    calls = ({"role": "assistant", "tool_calls": tool_calls},) if tool_calls else ()
    return ChatRequest((*found.messages, *further.messages, *calls), (*found.context, *further.context))


def _object(content: bytes, depth: int) -> dict[str, Any]:
    value = parse(content, max_depth=depth)
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object")
    return value
