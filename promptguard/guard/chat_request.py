"""From the JSON body of an OpenAI-style request to what `Guard.check` takes.

One reading serves chat completions, completions, responses, embeddings and their relatives, because a client chooses
the path and the fields: `messages`, `input` and `prompt` become messages, whichever of them is there, and every other
field that can bring text to a model (tools, instructions, prediction, response_format, metadata, fields that nobody has
heard of) is context. A field is left out only if it is a known setting whose strings are single words, such as `model`,
or fixed ones, such as those of `reasoning_effort`. What holds text that cannot be read here (tokens instead of text,
histories and prompts stored elsewhere, templates, embeddings, tools that the client points at a server or at files) is
unscannable, and the policy blocks it by default; so is what lets the client cut or join the text that was checked, or
switch other guards off. `promptguard.guard.request_fields` names them.

The texts of a `prompt` or an `input` are one message, whose parts the guard checks alone and joined, because a model
that answers may see them side by side. Embeddings and moderations are made of each text by itself: where the path says
that it is one of these, `read_apart` makes a request of each, and nothing is joined over two of them.

Source: the OpenAI API reference and the request models of its Python client, version 3.54; vLLM's further fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard import request_fields as fields
from promptguard.guard.reading import is_nothing, names_any, strings_of

_WORD = re.compile(r"[\w.:/@+~=<>|-]{0,128}", re.ASCII)  # no blank: too little for a sentence
_PARTS = ("text", "input_text", "image_url", "input_image")  # of one input, as moderations take them
_STATUSES = frozenset({"in_progress", "completed", "incomplete"})
_STORED_PROMPT = "@preset/"  # in the name of a model: OpenRouter then puts a stored prompt before the messages


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
            case "extra_body" if isinstance(value, Mapping):  # a LiteLLM proxy sends its fields beside the others
                extra = read_request(value)
                messages.extend(extra.messages)
                context.extend(extra.context)
            case "extra_body" if not is_nothing(value):
                messages.append(None)
            case "chat_template_kwargs" if _are_switches(value):
                pass
            case _ if name in fields.ELSEWHERE or name in fields.SWITCHES:
                messages.extend([] if is_nothing(value) else [None])
            case _ if name in fields.CUTS:
                messages.extend([] if is_nothing(value) or _is_no_cut(value) else [None])
            case _:
                context.extend(_field(name, value))
                messages.extend([None] if _is_unreadable(name, value) else [])
    return ChatRequest(tuple(messages), tuple(context))


def read_apart(body: object) -> list[ChatRequest]:
    """A request for each text of the body's `input`, all of them with the rest of the body.

    Args:
        body: as for `read_request`; if its `input` is no list of texts, it is one request.

    Raises:
        InvalidRequest: as `read_request`.
    """
    given = body.get("input") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(given, list) or not all(isinstance(x, str) for x in given):
        return [read_request(body)]
    rest = read_request({name: value for name, value in body.items() if name != "input"})
    inputs = [{"role": "user", "content": text} for text in given]
    return [ChatRequest((text, *rest.messages), rest.context) for text in inputs] or [rest]


def _field(name: str, value: Any) -> tuple[str, ...]:
    words = fields.WORDS.get(name)
    if words is not None:
        if _is_of(value, words):
            return ()
    elif name in fields.SETTINGS and (_is_bias(value) if name == "logit_bias" else _is_setting(value)):
        return ()
    if name in fields.SETTINGS and isinstance(value, list) and all(map(_is_word, value)):
        value = [" ".join(value)]
    return _strings(value if name in fields.KNOWN else {name: value})


def _strings(value: Any) -> tuple[str, ...]:
    strings = strings_of(value)
    if strings is None:
        raise InvalidRequest("the body is nested too deep")
    return strings


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_setting(value: Any) -> bool:
    """Whether there is no more than one word in it that is not the format's; several can make a sentence."""
    words = [word for word in _words(value) if word not in fields.OF_SETTINGS]
    return len(words) <= 1 and all(map(_is_word, words))


def _words(value: Any) -> Iterator[Any]:
    """The strings in a structure, and whatever else may be text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif not isinstance(value, int | float | None):
        yield value


def _is_bias(value: Any) -> bool:
    """Whether a `logit_bias` names tokens by their numbers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and key.isdecimal() for key in value) and _is_bias(list(value.values()))
    return not list(_words(value))


def _is_of(value: Any, words: frozenset[str]) -> bool:
    if isinstance(value, str):
        return value in words
    if isinstance(value, dict):
        return all(key in words and _is_of(item, words) for key, item in value.items())
    return all(_is_of(item, words) for item in value) if isinstance(value, list) else True


def _is_unreadable(name: str, value: Any) -> bool:
    """Whether a field that is read as context can bring more than its strings, or cut what was checked."""
    if name in _PECULIAR and not is_nothing(value) and not _PECULIAR[name](value):
        return True
    if name in fields.STRUCTURES:
        return names_any(value, fields.OF_TOOLS, fields.SCHEMAS) or (name == "tools" and _has_container(value))
    if name in fields.KNOWN:
        return False
    # A server that ignores case would take it for the conversation; a list of numbers, for tokens.
    return name.casefold() in fields.KNOWN or names_any({name: value}, fields.INSIDE) or _holds_tokens(value)


def _is_no_cut(value: Any) -> bool:
    return isinstance(value, str) and value.casefold() in fields.NO_CUT


def _shows_all(reasoning: Any) -> bool:
    """Whether a model is shown all reasoning that the request holds, or what its server decides."""
    return not isinstance(reasoning, dict) or reasoning.get("context") in (None, "auto", "all_turns")


def _is_model(value: Any) -> bool:
    return not any(isinstance(word, str) and _STORED_PROMPT in word for word in _words(value))


def _are_names(value: Any) -> bool:
    return all(map(_is_word, value if isinstance(value, list) else [value]))


def _are_switches(value: Any) -> bool:
    """Whether a chat template is told no more than to think or not."""
    return isinstance(value, Mapping) and all(
        name in fields.TEMPLATE_SWITCHES and isinstance(item, bool) for name, item in value.items()
    )


def _are_plugins(value: Any) -> bool:
    given = value if isinstance(value, list) else [value]
    names = [plugin.get("id") if isinstance(plugin, dict) else None for plugin in given]
    return all(isinstance(name, str) and name in fields.PLUGINS for name in names)


def _switches_nothing(metadata: Any) -> bool:
    return not names_any(metadata, fields.SWITCHES)


# Known fields of which some values do more than a setting or a text; the functions say which do not.
_PECULIAR: dict[str, Callable[[Any], bool]] = {
    "truncation": lambda value: bool(value == "disabled"),
    "reasoning": _shows_all,
    "model": _is_model,
    "models": _is_model,
    "guardrails": _are_names,  # of some to be run; what is no name sets one
    "plugins": _are_plugins,
    "metadata": _switches_nothing,
}


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
    """A text, texts, tokens, content parts, or the items of a response.

    Texts and parts that follow each other are one message, since a server may put them side by side.
    """
    loose: list[Any] = []
    given = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
    for item in [*given, None]:
        if isinstance(item, str) or (isinstance(item, dict) and "role" not in item and item.get("type") in _PARTS):
            loose.append(item)
            continue
        if loose:
            yield {"role": "user", "content": loose[0] if isinstance(loose[0], str) and len(loose) == 1 else loose}
            loose = []
        if item is not None:
            yield _item(item) if isinstance(item, dict) else None


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
    status = item.get("status")
    is_known = isinstance(status, str) and status in _STATUSES
    return {key: value for key, value in item.items() if key != "type" and not (key == "status" and is_known)}
