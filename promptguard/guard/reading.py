"""From a request to the texts that must be checked.

Every string in a message that is not from a trusted role is text: content, names, tool calls, reasoning, ids, fields
that nobody has heard of. Each is checked alone, each turn is checked as a whole, and the turns are checked joined,
because a payload can be split over any of them. Parts of one message are joined both with nothing and with a line
break between them, since chat templates do either. What is not text is reported as unscannable, never skipped; only
pictures in the forms of `promptguard.guard.images` are handed on, if there is something that judges them.
Text is taken as written: escapes and encodings inside it are not decoded. Only the arguments of a tool call are read
without their escapes too, since servers open that JSON before a template prints it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from promptguard.guard.images import Picture, picture
from promptguard.guard.policy import Policy

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
_TEXT_KEYS = frozenset({"text", "refusal"})
# Fields of a message that may hold structures; of any other field only strings are read.
_FIELDS = frozenset({
    "name", "tool_calls", "function_call", "tool_call_id", "id", "reasoning", "reasoning_content", "thinking",
    "refusal", "annotations",
})  # fmt: skip
# Words of the formats themselves, which carry no message: names of fields, and values of "type".
_KEYS = _FIELDS | frozenset({
    "type", "function", "index", "arguments", "description", "parameters", "properties", "required", "items", "enum",
    "default", "title", "text", "content", "strict", "additionalProperties", "anyOf", "oneOf", "allOf", "return",
    "cache_control",
})  # fmt: skip
_TYPES = frozenset(
    {"function", "custom", "object", "string", "number", "integer", "boolean", "array", "null", "text", "ephemeral"}
)
_OFTEN_EMPTY = _KEYS | frozenset({"audio", "parsed", "images", "files", "logprobs", "reasoning_details", "prefix"})
# Fields that stand for what is not text: pictures, sounds, files, tokens. No text part has one; "uuid" makes vLLM take
# a part for the picture of that name, whatever its type is.
MEDIA = frozenset({
    "image", "images", "image_url", "image_pil", "image_embeds", "image_file", "input_image", "image_data", "audio",
    "audio_url", "audio_embeds", "input_audio", "video", "videos", "video_url", "input_video", "file", "files",
    "file_id", "file_ids", "file_data", "file_url", "file_uri", "input_file", "input_file_id", "inline_data",
    "inlinedata", "filedata", "prompt_embeds", "prompt_token_ids", "input_ids",
})  # fmt: skip
_IN_PARTS = MEDIA | {"uuid"}
_KINDS = MEDIA | {"document"}  # as values of "type"
_NOTES = frozenset({"annotations", "citations", "logprobs"})  # of a part: a quoted file is named there, not shown
_EXTRAS = frozenset({"cache_control", "extras", "extra_content"})
_PAYLOADS = frozenset({"arguments", "input"})  # of a tool call: data of the application
_DATA_URL = re.compile(r"data:[\w/+.;=-]*;base64,[\w/+=-]*", re.ASCII)
_ESCAPES = re.compile(r"""(?:\\u[0-9A-Fa-f]{4})+|\\["\\/bfnrt]""")
_MAX_DEPTH = 32
_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and where it comes from."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request holds: distinct texts and pictures to check, and the places of what is neither."""

    pieces: tuple[Piece, ...]
    unscannable: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class _Turn:
    where: str
    content: tuple[Piece, ...]
    others: tuple[Piece, ...] = ()

    @property
    def texts(self) -> list[Piece]:
        return [piece for piece in (*self.content, *self.others) if piece.text.strip()]

    def joined(self, glue: str) -> str:
        content = glue.join(piece.text for piece in self.content)
        return "\n".join(text for text in (content, *(piece.text for piece in self.others)) if text)


def read(x: object, policy: Policy, context: Sequence[str] = (), *, with_pictures: bool = False) -> Reading:
    """The texts of a request.

    Args:
        x: a text, or a list of messages.
        policy: known and trusted roles.
        context: texts that reach the model together with x.
        with_pictures: somebody judges pictures; otherwise they are unscannable.
    """
    reader = _Reader(policy, with_pictures)
    before = tuple(Piece(f"context[{i}]", text) for i, text in enumerate(context))
    if isinstance(x, str):
        # Context may be glued to a plain text, as a prefix is.
        turns = [_Turn("text", (*before, Piece("text", x)))]
    elif isinstance(x, list | tuple):
        turns = [_Turn("context", before), *reader.turns(x)]
    else:
        reader.unscannable.append("input")
        turns = [_Turn("context", before)]
    distinct: dict[str, Piece] = {}
    for piece in _to_check([turn for turn in turns if turn.texts]):
        distinct.setdefault(piece.text, piece)
        if policy.max_texts is not None and len(distinct) > policy.max_texts:
            break  # too many to be checked: the rest, and all of them joined, are not made
    shown: dict[bytes, Picture] = {}
    for each in reader.pictures:
        shown.setdefault(each.data, each)
    return Reading(tuple(distinct.values()), tuple(reader.unscannable), tuple(shown.values()))


def _to_check(turns: list[_Turn]) -> Iterator[Piece]:
    for turn in turns:
        match turn.texts:
            case [only]:
                yield Piece(turn.where, only.text)
            case several:
                yield from several
                yield from (Piece(turn.where, turn.joined(glue)) for glue in ("", "\n"))
    if len(turns) > 1:
        yield from (Piece("conversation", "\n".join(turn.joined(glue) for turn in turns)) for glue in ("", "\n"))


class _Reader:
    """Reads messages; what it cannot read is listed in `unscannable`."""

    def __init__(self, policy: Policy, with_pictures: bool = False) -> None:
        self._policy = policy
        self._with_pictures = with_pictures
        self.unscannable: list[str] = []
        self.pictures: list[Picture] = []

    def turns(self, messages: Sequence[object]) -> Iterator[_Turn]:
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            if not isinstance(message, dict):
                self.unscannable.append(where)
                yield _Turn(where, (), tuple(self._strings(message, where)))
                continue
            role = message.get("role")
            if isinstance(role, str) and role in self._policy.trusted_roles:
                continue
            if not isinstance(role, str) or role not in self._policy.roles:
                self.unscannable.append(f"{where}.role")  # its text is read all the same
            yield self._turn(message, where)

    def _turn(self, message: dict[object, object], where: str) -> _Turn:
        content: list[Piece] = []
        others: list[Piece] = []
        for key, value in message.items():
            if key == "content":
                content = self._content(value, f"{where}.content", others)
            elif isinstance(key, str) and key in _FIELDS:
                skip = _PAYLOADS if key in {"tool_calls", "function_call"} else frozenset()
                if names_any(value, MEDIA, skip):
                    self.unscannable.append(f"{where}.{key}")
                others.extend(self._strings(value, f"{where}.{key}"))
            elif key != "role":
                others.extend(self._unknown(key, value, f"{where}.other"))
        return _Turn(where, tuple(content), tuple(others))

    def _content(self, content: object, where: str, others: list[Piece]) -> list[Piece]:
        if content is None:
            return []
        if isinstance(content, str):
            return [Piece(where, content)]
        if not isinstance(content, list | tuple):
            self.unscannable.append(where)
            others.extend(self._strings(content, where))  # a policy may let it pass, but not its text
            return []
        return [piece for i, part in enumerate(content) for piece in self._part(part, f"{where}[{i}]", others)]

    def _part(self, part: object, where: str, others: list[Piece]) -> Iterable[Piece]:
        if isinstance(part, str):
            return [Piece(where, part)]
        if self._with_pictures and (data := picture(part)) is not None:
            self.pictures.append(Picture(where, data))
            return []
        if not isinstance(part, dict) or not _is_text_part(part):
            self.unscannable.append(where)
            others.extend(self._words(part, where))
            return []
        hidden = {key for key, value in part.items() if _hides(key, value)}
        if hidden:
            self.unscannable.append(where)
        for key, value in part.items():
            if key not in _TEXT_KEYS and key != "type":
                others.extend((self._words if key in hidden else self._strings)({key: value}, where))
        return [Piece(where, part[key]) for key in ("text", "refusal") if key in part]

    def _words(self, value: object, where: str) -> Iterator[Piece]:
        """Every string inside but the bytes of pictures and files."""
        return (piece for piece in self._strings(value, where) if not _DATA_URL.fullmatch(piece.text))

    def _unknown(self, key: object, value: object, where: str) -> Iterator[Piece]:
        is_empty = value is None or (isinstance(value, list | tuple | dict) and not value)
        if is_empty and isinstance(key, str):
            if key not in _OFTEN_EMPTY:  # templates that print a message print its keys
                yield Piece(where, key)
            return
        if not isinstance(key, str) or not isinstance(value, str | int | float):
            self.unscannable.append(where)
            return
        if _is_named(key, value, MEDIA):
            self.unscannable.append(where)
        yield Piece(where, key)
        yield from self._strings(value, where)

    def _strings(self, value: object, where: str, depth: int = 0) -> Iterator[Piece]:
        """Every string inside; numbers, booleans and None hold none."""
        if isinstance(value, str):
            yield Piece(where, value)
        elif depth > _MAX_DEPTH or not isinstance(value, dict | list | tuple | int | float | None):
            self.unscannable.append(where)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from self._entry(key, item, where, depth)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                yield from self._strings(item, f"{where}[{i}]", depth + 1)

    def _entry(self, key: object, item: object, where: str, depth: int) -> Iterator[Piece]:
        if not isinstance(key, str):
            self.unscannable.append(where)
        elif key not in _KEYS:
            yield Piece(where, key)
            yield from self._strings(item, where, depth + 1)
        elif not (key == "type" and isinstance(item, str) and item in _TYPES):
            yield from self._strings(item, f"{where}.{key}", depth + 1)
            if key == "arguments" and isinstance(item, str) and _ESCAPES.search(item):
                yield Piece(f"{where}.{key}", _ESCAPES.sub(_opened, item))


def _opened(escapes: re.Match[str]) -> str:
    """What escapes of JSON stand for; of a half of a pair, the sign for what cannot be shown."""
    found: str = json.loads(f'"{escapes[0]}"')
    return found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_text_part(part: dict[object, object]) -> bool:
    kind = part.get("type")
    texts = [part[key] for key in _TEXT_KEYS if key in part]
    return isinstance(kind, str) and kind in _TEXT_PARTS and bool(texts) and all(isinstance(t, str) for t in texts)


def _hides(key: object, value: object) -> bool:
    """Whether a field of a text part can bring what is not text."""
    if key in _TEXT_KEYS or key in _NOTES:
        return False
    if key in _EXTRAS:
        return names_any(value, MEDIA)
    return _is_named(key, value, _IN_PARTS) or (isinstance(value, dict | list | tuple) and bool(value))


def _is_named(key: object, value: object, names: frozenset[str]) -> bool:
    return isinstance(key, str) and key.casefold() in names and not is_nothing(value)


def is_nothing(value: object) -> bool:
    """Whether a field holds as little as if it were not there."""
    return value is None or value is False or (isinstance(value, str | list | tuple | dict) and not value)


def names_any(value: object, names: frozenset[str], skip: frozenset[str] = frozenset(), depth: int = 0) -> bool:
    """Whether a structure has, at any depth, one of these fields with something in it, or a part that is no text.

    Args:
        value: the structure; one that is too deep counts as having it.
        names: the fields, in lower case; how a request writes them does not matter.
        skip: fields that are not looked into.
        depth: how deep it stands in the whole.
    """
    if depth > _MAX_DEPTH:
        return True
    if isinstance(value, dict):
        return any(
            _is_named(key, item, names)
            or (key == "type" and isinstance(item, str) and item.casefold() in _KINDS)
            or (key not in skip and names_any(item, names, skip, depth + 1))
            for key, item in value.items()
        )
    return isinstance(value, list | tuple) and any(names_any(item, names, skip, depth + 1) for item in value)


def strings_of(value: object) -> tuple[str, ...] | None:
    """Every string inside a structure of dicts and lists, or None if something in it is not text."""
    reader = _Reader(_POLICY)
    strings = tuple(piece.text for piece in reader._strings(value, "context"))
    return None if reader.unscannable else strings
