"""What clients read: errors, refusals and moderations in the shapes of the OpenAI API.

Source: the response models of the OpenAI Python client, version 3.54.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from promptguard.guard import Decision, Reason
from promptguard.guard.strict_json import dump
from promptguard.serve.config import CATEGORIES, Config

BLOCKED_CODE = "content_filter"


class ApiError(Exception):
    """A request that gets no answer of a model. Nothing in it quotes the request.

    Attributes:
        status: HTTP status.
        code: for programs.
        headers: for the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self._extra = dict(extra or {})

    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code, **self._extra}}

    def response(self) -> Response:
        """The HTTP response of it."""
        return json_response(self.body(), self.status, self.headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as a JSON response."""
    return Response(dump(value), status, dict(headers or {}), media_type="application/json")


def blocked(decision: Decision, about: Mapping[str, Any], *, param: str | None) -> ApiError:
    """The error for a blocked request: HTTP 400, or 413 if it is over the budget of checks.

    Args:
        decision: why.
        about: what the client may know of it.
        param: the field that was judged.
    """
    is_costly = decision.reason is Reason.OVER_BUDGET
    what = "picture" if decision.parts and decision.parts[-1].is_picture else "text"
    message = "blocked by promptguard: " + {
        Reason.HARMFUL: f"the {what} was flagged",
        Reason.ABSTAIN: "the filter does not know",
        Reason.OVER_BUDGET: "checking it costs more than is allowed",
        Reason.UNSCANNABLE: "it holds something that cannot be checked",
    }.get(decision.reason, "it could not be checked")
    code = "over_budget" if is_costly else BLOCKED_CODE
    return ApiError(413 if is_costly else 400, message, code, extra={"param": param, "promptguard": dict(about)})


def refusal_chat(model: str, request_id: str, text: str) -> dict[str, Any]:
    """A chat completion that refuses."""
    message = {"role": "assistant", "content": text, "refusal": text}
    choice = {"index": 0, "message": message, "finish_reason": BLOCKED_CODE, "logprobs": None}
    return _answer("chat.completion", f"chatcmpl-{request_id}", model) | {"choices": [choice], "usage": _NOTHING}


def refusal_chunks(model: str, request_id: str, text: str) -> list[dict[str, Any]]:
    """The same as a stream."""
    about = _answer("chat.completion.chunk", f"chatcmpl-{request_id}", model)
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": text, "refusal": text}, None),
        ({}, BLOCKED_CODE),
    ]
    return [
        about | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}
        for delta, reason in deltas
    ]


def refusal_completion(model: str, request_id: str, text: str) -> dict[str, Any]:
    """A completion that refuses; a stream of it has this one chunk."""
    choice = {"index": 0, "text": text, "finish_reason": BLOCKED_CODE, "logprobs": None}
    return _answer("text_completion", f"cmpl-{request_id}", model) | {"choices": [choice], "usage": _NOTHING}


def refusal_response(model: str, request_id: str, text: str) -> dict[str, Any]:
    """A response (of the responses API) that refuses."""
    part = {"type": "refusal", "refusal": text}
    item = {"type": "message", "id": f"msg_{request_id}", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": f"resp_{request_id}", "object": "response", "created_at": int(time.time()), "model": model,
        "status": "incomplete", "incomplete_details": {"reason": BLOCKED_CODE}, "error": None, "output": [item],
        "parallel_tool_calls": False, "tool_choice": "none", "tools": [], "instructions": None, "metadata": {},
        "temperature": None, "top_p": None,
    }  # fmt: skip


def moderation(decision: Decision, config: Config) -> dict[str, Any]:
    """One result of `/v1/moderations`.

    A classifier of harm has no categories: its verdict stands under the configured one, the others are never
    invented. Without `expose_scores` a score is 1 or 0, the verdict itself.
    """
    is_flagged = decision.reason is not Reason.ALLOWED
    judged = [part for part in decision.parts if part.verdict]
    # The score of a picture is the share of votes for its class, whichever that is.
    scores = [p.verdict.score for p in judged if p.verdict and (not p.is_picture or p.reason is Reason.HARMFUL)]
    score = max(scores, default=float(is_flagged))
    given = score if config.expose_scores else float(is_flagged)
    kinds = sorted({"image" if part.is_picture else "text" for part in judged}) or ["text"]
    return {
        "flagged": is_flagged,
        "categories": {name: is_flagged and name == config.category for name in CATEGORIES},
        "category_scores": {name: given if name == config.category else 0.0 for name in CATEGORIES},
        "category_applied_input_types": {name: kinds if name == config.category else [] for name in CATEGORIES},
    }


def moderation_field(decision: Decision | None, config: Config) -> dict[str, Any]:
    """The `input` or `output` of a completion's `moderation` field; an error object where there is no verdict."""
    if decision is None or decision.reason in {Reason.ERROR, Reason.OVER_BUDGET, Reason.UNSCANNABLE}:
        code = str(decision.reason) if decision else "not_moderated"
        return {"type": "error", "code": code, "message": "there is no verdict"}
    result = {"type": "moderation_result", "model": config.model, **moderation(decision, config)}
    return {"type": "moderation_results", "model": config.model, "results": [result]}


_NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _answer(kind: str, name: str, model: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}
