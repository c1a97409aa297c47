"""From the JSON body of an OpenAI-style request to what `Guard.check` takes.

One reading serves chat completions, completions, responses, embeddings and their relatives, because a client chooses
the path and the fields: `messages`, `input` and `prompt` become messages, whichever of them is there, and every other
field that can bring text to a model (tools, instructions, prediction, response_format, metadata, fields that nobody has
heard of) is context. A field is left out only if it is a known setting whose strings are single words, such as `model`,
or fixed ones, such as those of `reasoning_effort`. What holds text that cannot be read here (tokens instead of text,
histories and prompts stored elsewhere, templates, embeddings, tools that the client points at a server or at files) is
unscannable, and the policy blocks it by default; so is what lets the client cut the text that was checked.

Source: the OpenAI API reference and the request models of its Python client, version 3.54; vLLM's further fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard.reading import MEDIA, is_nothing, names_any, strings_of

# Settings of the answer: numbers, switches and words, which no chat template prints.
_SETTINGS = frozenset({
    "model", "models", "stream", "stream_options", "n", "best_of", "temperature", "top_p", "top_k", "min_p",
    "typical_p", "seed", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "max_tool_calls",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "logit_bias", "service_tier", "store", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "reasoning_effort", "reasoning", "verbosity", "modalities", "parallel_tool_calls",
    "truncation", "background", "include", "moderation", "encoding_format", "dimensions", "audio", "thinking", "stop",
    "stop_token_ids", "use_beam_search", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "add_generation_prompt", "continue_final_message", "add_special_tokens", "priority",
    "keep_alive", "guardrails",
})  # fmt: skip
# The words that some settings may hold; any other word there is text.
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto"})
_THOUGHTS = _EFFORTS | {
    "type", "enabled", "disabled", "adaptive", "budget_tokens", "max_tokens", "effort", "summary", "generate_summary",
    "concise", "detailed", "exclude", "display", "summarized", "omitted",
}  # fmt: skip
_WORDS = {
    "reasoning_effort": _EFFORTS,
    "verbosity": _EFFORTS,
    "thinking": _THOUGHTS,
    "reasoning": _THOUGHTS,
    "modalities": frozenset({"text", "audio", "image"}),
    "truncation": frozenset({"disabled"}),
    "include": frozenset({
        "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
        "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content",
        "web_search_call.action.sources", "web_search_call.results",
    }),
}  # fmt: skip
_WORD = re.compile(r"[\w.:/@+~=<>|-]{0,128}", re.ASCII)  # no blank: too little for a sentence
# Fields that are text by their nature: their own names carry nothing, so only what is inside is read.
_TEXTS = frozenset({
    "tools", "functions", "tool_choice", "function_call", "response_format", "text", "metadata", "prediction",
    "instructions", "system", "suffix", "documents", "web_search_options", "stop_sequences", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
})  # fmt: skip
# Text that is not in the request, or not as text.
_ELSEWHERE = frozenset({
    "previous_response_id", "conversation", "chat_template", "chat_template_kwargs", "prompt_embeds",
    "prompt_token_ids", "input_ids", "inputs_embeds", "multi_modal_data", "context", "raw", "template", "images",
    "image", "file", "files", "mm_processor_kwargs", "kv_transfer_params", "container",
    "input_file_id", "file_id", "file_ids", "vector_store_ids", "server_url", "connector_id", "truncate_prompt_tokens",
})  # fmt: skip
_CONVERSATION = frozenset({"messages", "input", "prompt"})
_KNOWN = _SETTINGS | _TEXTS | _ELSEWHERE | _CONVERSATION
# Fields inside a tool by which a client chooses whose text the model reads.
_SOURCES = MEDIA | {"server_url", "connector_id", "vector_store_ids", "container_id"}
_OF_TOOLS = _SOURCES | {"skills", "skill_id"}
_SCHEMAS = frozenset(
    {"parameters", "input_schema", "output_schema", "schema", "json_schema"}
)  # there any name may stand
_STRUCTURES = frozenset({"tools", "functions", "tool_choice", "system", "instructions", "prediction", "suffix"})
_INSIDE = _SOURCES | _ELSEWHERE | _CONVERSATION  # what no unknown field may hold
_STATUSES = frozenset({"in_progress", "completed", "incomplete"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What `Guard.check(request.messages, context=request.context)` takes.

    Attributes:
        messages: one entry per message, prompt or input item; None stands for something that cannot be read, so that
            the guard reports it as unscannable.
        context: every further text.
    """

    messages: tuple[object, ...]
    context: tuple[str, ...]


def read_request(body: object) -> ChatRequest:
    """The texts of a request body.

    Args:
        body: the parsed JSON, from `strict_json.parse`.

    Raises:
        InvalidRequest: it is no JSON object, or nests too deep to be read.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest("the body is not a JSON object")
    messages: list[object] = []
    context: list[str] = []
    for name, value in body.items():
        match name:
            case "messages":
                messages.extend(value if isinstance(value, list) else [None])
            case "input":
                messages.extend(_input(value))
            case "prompt":
                messages.extend(_prompt(value, body.get("suffix")))
            case _ if name in _ELSEWHERE:
                messages.extend([] if is_nothing(value) else [None])
            case _:
                context.extend(_field(name, value))
                messages.extend([None] if _is_unreadable(name, value) else [])
    return ChatRequest(tuple(messages), tuple(context))


def _field(name: str, value: Any) -> tuple[str, ...]:
    words = _WORDS.get(name)
    if words is not None:
        if _is_of(value, words):
            return ()
    elif name in _SETTINGS and _is_setting(value):
        return ()
    if name in _SETTINGS and isinstance(value, list) and all(map(_is_word, value)):
        value = [" ".join(value)]
    return _strings(value if name in _KNOWN else {name: value})


def _strings(value: Any) -> tuple[str, ...]:
    strings = strings_of(value)
    if strings is None:
        raise InvalidRequest("the body is nested too deep")
    return strings


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_setting(value: Any) -> bool:
    if isinstance(value, str):
        return _is_word(value)
    if isinstance(value, dict):
        return all(_is_setting(key) and _is_setting(item) for key, item in value.items())
    if isinstance(value, list):  # several words can make a sentence
        words = [item for item in value if isinstance(item, str | list | dict)]
        return len(words) <= 1 and all(map(_is_setting, words))
    return True


def _is_of(value: Any, words: frozenset[str]) -> bool:
    if isinstance(value, str):
        return value in words
    if isinstance(value, dict):
        return all(key in words and _is_of(item, words) for key, item in value.items())
    return all(_is_of(item, words) for item in value) if isinstance(value, list) else True


def _is_unreadable(name: str, value: Any) -> bool:
    """Whether a field that is read as context can bring more than its strings, or cut what was checked."""
    if name == "truncation":
        return not (is_nothing(value) or value == "disabled")
    if name in _STRUCTURES:
        return names_any(value, _OF_TOOLS, _SCHEMAS) or (name == "tools" and _has_container(value))
    if name in _KNOWN:
        return False
    # A server that ignores case would take it for the conversation; a list of numbers, for tokens.
    return name.casefold() in _KNOWN or names_any({name: value}, _INSIDE) or _holds_tokens(value)


def _has_container(tools: Any) -> bool:
    """Whether a tool runs in a container of the past, named by its id: nobody knows what files lie there."""
    given = tools if isinstance(tools, list) else [tools]
    return any(isinstance(tool, dict) and isinstance(tool.get("container"), str) for tool in given)


def _prompt(value: Any, suffix: Any) -> Iterator[object]:
    """A text, several, or tokens. The texts are parts of one message, since a server may put them side by side."""
    items = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
    texts = [item for item in items if isinstance(item, str)]
    if texts and isinstance(suffix, str) and suffix:
        texts.append(suffix)
    if texts:
        yield {"role": "user", "content": texts[0] if len(texts) == 1 else texts}
    yield from (None for item in items if not isinstance(item, str))


def _input(value: Any) -> Iterator[object]:
    """A text, texts, tokens, content parts, or the items of a response."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            yield _item(item)
        elif item is not None:
            yield {"role": "user", "content": item} if isinstance(item, str) else None


def _holds_tokens(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tokens, value.values()))
    return isinstance(value, list) and any(isinstance(item, int | float) or _holds_tokens(item) for item in value)


def _item(item: dict[str, Any]) -> object:
    """An item of the responses API as a message; of an unknown kind it has no role, which makes it unscannable."""
    kind = item.get("type")
    if "role" in item:
        return _rest(item) if kind in (None, "message") else item
    match kind:
        case "text" | "input_text" | "image_url" | "input_image":  # parts of one input, as moderations take them
            return {"role": "user", "content": [item]}
        case "reasoning" if not item.get("encrypted_content"):
            return {"role": "assistant", "reasoning": _rest(item)}
        case "function_call" | "custom_tool_call":
            return {"role": "assistant", "tool_calls": [_rest(item)]}
        case "function_call_output" | "custom_tool_call_output":
            about = {key: value for key, value in _rest(item).items() if key != "output"}
            return {"role": "tool", "content": item.get("output"), "annotations": about}
    return item


def _rest(item: dict[str, Any]) -> dict[str, Any]:
    """An item without the words of its format."""
    is_known = item.get("status") in _STATUSES
    return {key: value for key, value in item.items() if key != "type" and not (key == "status" and is_known)}
