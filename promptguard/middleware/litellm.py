"""LiteLLM's proxy: a guard as two custom guardrails, named in its configuration by their dotted path.

    guardrails:
      - guardrail_name: pguard
        litellm_params:
          guardrail: promptguard.middleware.litellm.PGuardLiteLLMMultimodal
          mode: [pre_call, post_call]
          default_on: true
          guard_config: {filter: causal, mode: suffix}   # without it the default guard
          on_block: raise                                # or refuse: status 200 and the refusal as the answer

`PGuardLiteLLMMultimodal` reads whole requests by LiteLLM's native hooks and is the one to take: images, files and
whatever else it cannot read block. `PGuardLiteLLM` uses the newer `apply_guardrail` interface, which serves more routes
and LiteLLM's own tools, but LiteLLM does not show it messages that hold only an image, nor files: give it to text-only
models. Both collect a streamed answer before any of it is sent. LiteLLM runs guardrails in its proxy and in
`acompletion`; its synchronous `completion` runs none.

Source of the contract: `litellm/integrations/custom_guardrail.py` and `litellm/proxy/utils.py`, version 1.106.2.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.types.guardrails import GuardrailEventHooks
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

from promptguard.errors import InvalidArgument, InvalidRequest
from promptguard.guard import Decision, Guard, OnBlock, Reason
from promptguard.guard.chat_answer import read_answer, read_events
from promptguard.guard.chat_request import ChatRequest, read_request
from promptguard.guard.environment import VARIABLES, guard_of
from promptguard.guard.reading import strings_of

_PREFIX = "PGUARD_"
_HOOKS = [GuardrailEventHooks.pre_call, GuardrailEventHooks.during_call, GuardrailEventHooks.post_call]
# What the proxy adds to a request for itself; the model is given none of it.
_OF_THE_PROXY = frozenset({
    "proxy_server_request", "litellm_call_id", "litellm_logging_obj", "litellm_metadata", "litellm_trace_id",
    "metadata", "secret_fields", "deployment", "model_info", "api_key", "api_base", "api_version", "headers",
    "extra_headers", "litellm_session_id", "user_api_key_dict", "provider_specific_header", "ttl", "cache", "timeout",
    "num_retries", "tags", "mock_response", "disable_global_guardrails", "request_timeout",
    "_litellm_strip_stream_usage",
})  # fmt: skip
_UNREADABLE = ChatRequest((None,), ())


class PGuardLiteLLM(CustomGuardrail):  # type: ignore[misc]  # litellm is not in every environment
    """Text guardrail on LiteLLM's `apply_guardrail` interface.

    Args:
        guard: what decides; only for use from Python.
        guard_config: settings of the filter, as in the variables of `promptguard.guard.environment` but in lower case
            and without prefix: filter, mode, max_erase, unit, threshold. Without it the environment decides.
        on_block: "raise" answers with status 400, "refuse" with status 200 and the policy's refusal.
        options: LiteLLM's own, such as `guardrail_name`, `event_hook` and `default_on`.

    Raises:
        InvalidArgument: an unknown setting or `on_block`.
        PromptGuardError: the filter cannot be loaded.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        guard_config: Mapping[str, Any] | None = None,
        on_block: str = OnBlock.RAISE,
        **options: Any,
    ) -> None:
        self._guard = guard if guard is not None else _configured(guard_config)
        self._on_block = OnBlock.of(on_block)
        options.setdefault("supported_event_hooks", list(_HOOKS))
        super().__init__(**options)
        # LiteLLM reads these by name: hold back a streamed answer until all of it was checked, and mask nothing.
        self.streaming_buffer_until_moderated = True
        self.mask_response_content = False

    @classmethod
    def get_supported_event_hooks(cls) -> list[Any]:
        """Where it can run."""
        return list(_HOOKS)

    async def apply_guardrail(
        self, inputs: Any, request_data: dict[str, Any], input_type: str, logging_obj: Any = None
    ) -> Any:
        """Check the texts, messages, tools and tool calls that LiteLLM found in a request or an answer.

        Raises:
            GuardrailRaisedException: a block; LiteLLM answers with status 400.
            ModifyResponseException: a block, when the owner chose refusals.
        """
        found = _of_inputs(inputs, input_type)
        if found is not None:
            decision = await self._guard.acheck(found.messages, context=found.context)
            self._pass(decision, request_data)
        return inputs

    def _pass(self, decision: Decision, request_data: dict[str, Any]) -> None:
        if decision.allowed:
            return
        if self._on_block is OnBlock.REFUSE:
            self.raise_passthrough_exception(
                violation_message=self._guard.policy.refusal,
                request_data=request_data,
                detection_info={"reason": str(decision.reason)},
            )
        raise GuardrailRaisedException(
            guardrail_name=self.guardrail_name,
            message="blocked by promptguard",
            should_wrap_with_default_message=False,
            # Only what was judged harmful counts as a verdict; what could not be judged is a failure that blocks.
            blocked_content=decision.reason is Reason.HARMFUL,
        )


class PGuardLiteLLMMultimodal(PGuardLiteLLM):
    """Guardrail on LiteLLM's native hooks, which see whole requests: what is not text is unscannable, and blocks."""

    use_native_lifecycle_hooks: ClassVar[bool] = True

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> Any:
        """Check a request before the model is called.

        Raises:
            GuardrailRaisedException: a block; LiteLLM answers with status 400.
            ModifyResponseException: a block, when the owner chose refusals.
        """
        await self._check_request(data)
        return data

    async def async_moderation_hook(self, data: dict[str, Any], user_api_key_dict: Any, call_type: Any) -> Any:
        """As `async_pre_call_hook`, while the model is called: its answer waits for the verdict."""
        await self._check_request(data)
        return data

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Check an answer before it is sent; raises as `async_pre_call_hook`."""
        decision = await self._of_answer([response])
        if decision is not None:
            self._pass(decision, data)
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """Collect a streamed answer, check it, and only then give it out; raises as `async_pre_call_hook`."""
        chunks = [chunk async for chunk in response]
        decision = await self._of_answer(chunks)
        if decision is None or decision.allowed:
            for chunk in chunks:
                yield chunk
        elif self._on_block is OnBlock.REFUSE and all(isinstance(chunk, ModelResponseStream) for chunk in chunks):
            # LiteLLM turns a refusal that is raised here into an error.
            refusal = Delta(role="assistant", content=self._guard.policy.refusal)
            choice = StreamingChoices(index=0, delta=refusal, finish_reason="content_filter")
            yield ModelResponseStream(id=chunks[0].id, model=chunks[0].model, choices=[choice])
        else:
            self._pass(decision, request_data)

    async def _check_request(self, data: dict[str, Any]) -> None:
        found = _of_request(data)
        if found.messages or found.context:
            self._pass(await self._guard.acheck(found.messages, context=found.context), data)

    async def _of_answer(self, parts: Sequence[Any]) -> Decision | None:
        messages = _of_answer(parts)
        return await self._guard.acheck(messages) if messages else None


def _of_request(data: Mapping[str, Any]) -> ChatRequest:
    try:
        return read_request({name: value for name, value in data.items() if name not in _OF_THE_PROXY})
    except InvalidRequest:
        return _UNREADABLE


def _of_answer(parts: Sequence[Any]) -> tuple[object, ...]:
    """The messages of an answer in LiteLLM's objects, or in the bytes of an event stream."""
    # An encoding error would quote the text; what it would be about is no JSON for `read_events`.
    written = [
        part if isinstance(part, bytes) else part.encode(errors="surrogatepass") for part in parts if _is_written(part)
    ]
    streamed = b"".join(written)
    events = read_events(streamed, "text/event-stream") if streamed else []
    plain = [_plain(part) for part in parts if not _is_written(part)]
    if events is None or not all(isinstance(part, dict) for part in plain):
        return (None,)
    return read_answer([*events, *plain])


def _is_written(part: Any) -> bool:
    return isinstance(part, bytes | str)


def _of_inputs(inputs: Mapping[str, Any], input_type: str) -> ChatRequest | None:
    """What is to be checked of LiteLLM's inputs; None if there is no text in them."""
    role = "assistant" if input_type == "response" else "user"
    given = inputs.get("structured_messages") or ()
    messages: list[object] = list(given) if isinstance(given, list | tuple) else [None]
    read = set(strings_of(messages) or ())
    texts = [text for text in inputs.get("texts") or () if text and text not in read]
    messages.extend({"role": role, "content": text} for text in texts)
    if inputs.get("images"):
        messages.append(None)
    if calls := inputs.get("tool_calls"):
        messages.append({"role": "assistant", "tool_calls": [_plain(call) for call in calls]})
    try:
        tools = read_request({"tools": [_plain(tool) for tool in inputs.get("tools") or ()]})
    except InvalidRequest:  # nested too deep
        tools = ChatRequest((None,), ())
    messages.extend(tools.messages)
    return ChatRequest(tuple(messages), tools.context) if messages or tools.context else None


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


def _configured(config: Mapping[str, Any] | None) -> Guard:
    if not config:
        return guard_of(os.environ)
    given = {f"{_PREFIX}{name}".upper(): str(value) for name, value in config.items()}
    if unknown := given.keys() - set(VARIABLES):
        known = ", ".join(name.removeprefix(_PREFIX).lower() for name in VARIABLES)
        raise InvalidArgument(f"guard_config knows {known}; not {', '.join(sorted(unknown))}")
    return guard_of(given)
