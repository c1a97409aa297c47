"""From the answer of an OpenAI-style endpoint to what `Guard.check` takes.

One reading serves chat completions, completions and responses, whole or streamed. The strings of all events are
collected by the place they have in an event, so the pieces of a stream come together again, each choice, tool call and
kind of event on its own. Words of the format (ids, names of models, reasons to stop) are left out by the name of their
field; what holds an image, sound or a file is unscannable.

Source: the response models of OpenAI's Python client, version 3.54; server-sent events, WHATWG HTML section 9.2.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from promptguard.errors import InvalidRequest
from promptguard.guard.strict_json import parse

_FORMAT = frozenset({
    "id", "object", "model", "created", "created_at", "role", "type", "index", "finish_reason", "native_finish_reason",
    "stop_reason", "system_fingerprint", "service_tier", "status", "item_id", "call_id", "output_index",
    "content_index", "sequence_number", "obfuscation", "usage", "logprobs", "encrypted_content", "provider", "format",
    "embedding",
})  # fmt: skip
_MEDIA = frozenset({
    "b64_json", "image", "images", "image_url", "audio", "input_audio", "partial_image_b64", "file_data", "video",
})  # fmt: skip
# Where the answer is in an object that also repeats the request.
_ANSWERS = ("choices", "output")
_ORDER = ("output_index", "content_index", "index")
_DONE = b"[DONE]"
_Path = tuple[object, ...]


def read_events(body: bytes, content_type: str) -> list[Any] | None:
    """The JSON values in a response: one, or those of an event stream. None if there is anything else in it.

    Args:
        body: the whole body, not compressed.
        content_type: the header.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == "text/event-stream":
            return [parse(data) for data in _data(body) if data != _DONE]
        return [parse(body)]
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
        for path, text in _strings(event, ()):
            unscannable = unscannable or text is None
            texts.setdefault(path, []).append(text or "")
    joined = dict.fromkeys("".join(parts) for parts in texts.values())
    messages: list[object] = [{"role": "assistant", "content": text} for text in joined if text.strip()]
    return (*messages, None) if unscannable else tuple(messages)


def is_answer(events: Iterable[Any]) -> bool:
    """Whether any of the values is of a form whose text is known to be read: a choice, an output, a streamed part."""
    return any(isinstance(event, dict) and ({*_ANSWERS, "delta", "response"} & event.keys()) for event in events)


def _strings(value: Any, path: _Path) -> Iterator[tuple[_Path, str | None]]:
    """Every string of the answer with its place; None for what is not text."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _strings(item, (*path, _index(item, i)))
    elif isinstance(value, dict):
        found = [name for name in _ANSWERS if isinstance(value.get(name), list)]
        here = (*path, *_index_of_event(value)) if not found else path
        for name in found or value:
            if (name in _MEDIA and value[name]) or (name == "result" and value.get("type") == "image_generation_call"):
                yield path, None
            elif name not in _FORMAT:
                yield from _strings(value[name], (*here, name))


def _index(item: Any, position: int) -> object:
    # A chunk of a stream lists only the choices and tool calls that go on, and numbers them.
    return item.get("index", position) if isinstance(item, dict) else position


def _index_of_event(value: dict[str, Any]) -> _Path:
    kind = value.get("type")
    return (kind if isinstance(kind, str) else None, *(value.get(name) for name in _ORDER))


def _data(body: bytes) -> Iterator[bytes]:
    """The data of each event of a stream."""
    lines: list[bytes] = []
    for line in (*body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), b""):
        if not line:
            if lines:
                yield b"\n".join(lines)
            lines = []
        elif line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
