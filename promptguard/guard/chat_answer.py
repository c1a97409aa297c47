"""From the answer of an OpenAI-style endpoint to what `Guard.check` takes.

One reading serves chat completions, completions and responses, whole or streamed. The strings of all events are
collected by the place they have in an event, so the pieces of a stream come together again, each choice, tool call and
kind of event on its own. Everything is read but single words of the format (ids, names of models, reasons to stop),
known by the name of their field, and the fields in which a response repeats its request. What the model makes up as a
structure, such as the arguments of a call, is read with all its keys. What holds an image, sound or a file is
unscannable.

Source: the response models of OpenAI's Python client, version 3.54; server-sent events, WHATWG HTML section 9.2.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard.strict_json import parse

# Fields whose strings are words of the format, as are those named "..._id"; longer strings in them are read.
_FORMAT = frozenset({
    "id", "object", "model", "role", "type", "finish_reason", "native_finish_reason", "stop_reason", "severity",
    "system_fingerprint", "service_tier", "status", "obfuscation", "provider", "format",
})  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_.:/+=@|~#-]{0,128}")
# Bytes that no client shows, written in base64.
_OPAQUE = frozenset({"encrypted_content", "embedding"})
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_NAME = re.compile(r"[A-Za-z0-9_.$/-]{1,48}")
_MEDIA = frozenset({
    "b64_json", "image", "images", "image_url", "audio", "input_audio", "partial_image_b64", "file_data", "video",
})  # fmt: skip
# Structures whose names are the model's own.
_FREE = frozenset({"arguments", "args", "parsed", "input"})
# Where a model's answer is in an object.
_ANSWERS = ("choices", "output")
# In which a response repeats its request; the second ones only as long as they hold single words.
_REPEATED = frozenset({
    "instructions", "tools", "tool_choice", "metadata", "prompt", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "previous_response_id", "conversation", "input_transformations",
})  # fmt: skip
_SETTINGS = frozenset({
    "reasoning", "incomplete_details", "billing", "access_programs", "truncation", "prompt_cache_retention",
    "prompt_cache_diagnostics", "image",
})  # fmt: skip
_LOGPROBS = frozenset({"logprobs", "prompt_logprobs"})
_MAX_TOKEN = 64
_ORDER = ("output_index", "content_index", "index")
_DONE = b"[DONE]"
# What a stream may say beside its data, which is not read.
_ASIDE = re.compile(rb"(?:event|id|retry): ?[A-Za-z0-9_.:/+=-]{0,64}")
_COMMENT = re.compile(
    rb": ?(?:(?:ping|keep-?alive|heartbeat|connected|openrouter processing)(?: - [0-9T:.+ -]{0,40}Z?)?)?\s*",
    re.IGNORECASE,
)
_Path = tuple[object, ...]
_Found = Iterator[tuple[_Path, str | None]]


def read_events(body: bytes, content_type: str) -> list[Any] | None:
    """The JSON values in a response: one, or those of an event stream. None if there is anything else in it.

    Args:
        body: the whole body, not compressed.
        content_type: the header.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind != "text/event-stream":
            return [parse(body)]
        data = list(_data(body))
        return [parse(event) for event in data if event != _DONE] if data or not body else None
    except InvalidRequest:
        return None


def read_answer(events: Iterable[Any]) -> tuple[object, ...]:
    """The messages of an answer, one per place; None among them stands for something that cannot be read.

    Args:
        events: JSON values, from `read_events`.
    """
    texts: dict[_Path, list[str]] = {}
    unscannable = False
    for event in events:
        for path, text in _strings(_without_request(event), ()):
            unscannable = unscannable or text is None
            texts.setdefault(path, []).append(text or "")
    joined = dict.fromkeys("".join(parts) for parts in texts.values())
    messages: list[object] = [{"role": "assistant", "content": text} for text in joined if text.strip()]
    return (*messages, None) if unscannable else tuple(messages)


def is_answer(events: Iterable[Any]) -> bool:
    """Whether any of the values is of a form whose text is known to be read: a choice, an output, a streamed part."""
    return any(isinstance(event, dict) and ({*_ANSWERS, "delta", "response"} & event.keys()) for event in events)


def _without_request(event: Any) -> Any:
    """An event less the fields in which a response, alone or in an event about it, repeats its request."""
    if not isinstance(event, dict):
        return event
    if event.get("object") == "response":
        return {name: value for name, value in event.items() if not _is_repeated(name, value)}
    kind, inner = event.get("type"), event.get("response")
    if isinstance(kind, str) and kind.startswith("response.") and isinstance(inner, dict):
        # One level only: what looks like an event inside an event is text.
        return event | {"response": _without_request(inner)} if inner.get("object") == "response" else event
    return event


def _is_repeated(name: str, value: Any) -> bool:
    if name == "text":
        return isinstance(value, dict)
    if name in _SETTINGS:
        words = value.values() if isinstance(value, dict) else (value,)
        return all(_WORD.fullmatch(word) if isinstance(word, str) else _is_bare(word) for word in words)
    return name in _REPEATED


def _strings(value: Any, path: _Path, is_free: bool = False) -> _Found:
    """Every string of the answer with its place; None for what is not text."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if not _is_bare(item):  # embeddings are long
                yield from _strings(item, (*path, i if is_free else _index(item, i)), is_free)
    elif isinstance(value, dict):
        yield from _fields(value, path, is_free)
    elif not _is_bare(value):
        yield path, None


def _fields(value: dict[Any, Any], path: _Path, is_free: bool) -> _Found:
    is_placed = is_free or any(isinstance(value.get(name), list) for name in _ANSWERS)
    here = path if is_placed else (*path, *_index_of_event(value))
    for name, item in value.items():
        if is_free or not _is_name(name):
            yield (*here, name, "key"), name if isinstance(name, str) else None
        if (name in _MEDIA and item) or (name == "result" and value.get("type") == "image_generation_call"):
            yield path, None
        elif is_free:
            yield from _strings(item, (*here, name), is_free)
        elif name in _LOGPROBS:
            yield from _tokens(item, (*here, name))
        elif not _is_of_format(name, item):
            # The names in a moderation's input are those of the API.
            yield from _strings(item, (*here, name), name in _FREE and path[-1:] != ("moderation",))


def _tokens(value: Any, path: _Path, name: object = None) -> _Found:
    """The tokens with their probabilities: in their order one text, which is the answer once more."""
    if isinstance(value, str):
        yield (*path, name), value
    elif isinstance(value, list | tuple):
        for item in value:
            if not _is_bare(item):
                yield from _tokens(item, path, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "top_logprobs" and _is_short(item):
                continue  # other tokens for each place, which make no text together
            if not _is_name(key):
                yield (*path, key, "key"), key if isinstance(key, str) else None
            yield from _tokens(item, path, key)
    elif not _is_bare(value):
        yield path, None


def _is_short(value: Any) -> bool:
    """Whether all strings in the alternatives to a token are tokens."""
    if isinstance(value, dict):
        return all(_is_short(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_short, value))
    return len(value.strip()) <= _MAX_TOKEN if isinstance(value, str) else _is_bare(value)


def _is_bare(value: object) -> bool:
    """Whether it holds no text."""
    return isinstance(value, int | float | None)


def _is_name(key: object) -> bool:
    return isinstance(key, str) and _NAME.fullmatch(key) is not None


def _is_of_format(name: object, value: Any) -> bool:
    """Whether it is a word of the format, of which a client shows nothing."""
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    if name in _OPAQUE:
        return _BASE64.fullmatch(value) is not None
    return (name in _FORMAT or name.endswith("_id")) and _WORD.fullmatch(value) is not None


def _index(item: Any, position: int) -> object:
    # A chunk of a stream lists only the choices and tool calls that go on, and numbers them.
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int | str) else position


def _index_of_event(value: dict[Any, Any]) -> _Path:
    places = (value.get(name) for name in ("type", *_ORDER))
    return tuple(place if isinstance(place, int | str) else None for place in places)


def _data(body: bytes) -> Iterator[bytes]:
    """The data of each event of a stream.

    Raises:
        InvalidRequest: a line is neither data nor one of the few others that hold no text.
    """
    lines: list[bytes] = []
    for line in (*body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), b""):
        if not line:
            if lines:
                yield b"\n".join(lines)
            lines = []
        elif line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not (_ASIDE.fullmatch(line) or _COMMENT.fullmatch(line)):
            raise InvalidRequest("a line of the event stream is not data")
