"""From LangChain's messages, prompts and documents to what `Guard.check` takes.

Of a message all that a model may be given is read: content, name, tool calls, their ids, and the provider's own fields
(`additional_kwargs`). Identity, usage and other metadata of an answer stay out, as does a tool's `artifact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue

from promptguard.guard.reading import strings_of

_ROLES: dict[type[BaseMessage], str] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
    FunctionMessage: "function",
}
# Blocks of a message's content that hold words and structures, never media.
_WORDS = frozenset({"tool_use", "tool_call", "invalid_tool_call", "function_call", "reasoning", "thinking"})


@dataclass(frozen=True, slots=True)
class ChainInput:
    """What `Guard.check(x, context=context)` takes.

    Attributes:
        x: a text or a list of messages; anything else, also inside the list, is unscannable.
        context: further texts.
    """

    x: object
    context: tuple[str, ...] = ()


def chat_of(message: BaseMessage) -> dict[str, Any]:
    """A message as the guard reads it; a role that LangChain does not define is kept as it is."""
    given = {
        "content": message.content,
        "name": message.name,
        "tool_call_id": getattr(message, "tool_call_id", None),
    }
    calls: list[Any] = [*getattr(message, "tool_calls", ()), *getattr(message, "invalid_tool_calls", ())]
    if isinstance(message.content, list):
        words = [part for part in message.content if isinstance(part, dict) and part.get("type") in _WORDS]
        given["content"] = [part for part in message.content if not any(part is word for word in words)]
        calls += words
    if message.additional_kwargs:
        calls.append(message.additional_kwargs)
    role = message.role if isinstance(message, ChatMessage) else _role(message)
    chat = {"role": role, **{key: value for key, value in given.items() if value}}
    return {**chat, "tool_calls": calls} if calls else chat


def read_input(value: object) -> ChainInput:
    """What a link of a chain was given: a text, messages in any of LangChain's forms, a prompt, documents, a dict."""
    if isinstance(value, str):
        return ChainInput(value)
    messages: list[object] = []
    context: list[str] = []
    for item in value.values() if isinstance(value, Mapping) and "role" not in value else [value]:
        _gather([item] if isinstance(item, Mapping) and "role" in item else item, messages, context)
    return ChainInput(messages, tuple(context))


def _gather(value: object, messages: list[object], context: list[str]) -> None:
    if isinstance(value, PromptValue):
        messages.extend(map(chat_of, value.to_messages()))
    elif isinstance(value, BaseMessage):
        messages.append(chat_of(value))
    elif isinstance(value, Document):
        _gather_strings([value.page_content, value.metadata], messages, context)
    elif isinstance(value, list | tuple) and any(isinstance(item, Document) for item in value):
        for item in value:
            _gather(item, messages, context)
    elif isinstance(value, list | tuple) and (found := list(_messages(value))):
        messages.extend(found)
    else:
        _gather_strings(value, messages, context)


def _gather_strings(value: object, messages: list[object], context: list[str]) -> None:
    strings = strings_of(value)
    context.extend(strings or ())
    if strings is None:
        messages.append(None)


def _messages(value: Sequence[Any]) -> Iterator[object]:
    """Messages as LangChain itself reads the list, each form of it; nothing if it is no list of messages."""
    try:
        yield from map(chat_of, convert_to_messages(value))
    except Exception:  # its message quotes the text; what it cannot read is looked at as data
        if any(isinstance(item, Mapping) and "role" in item for item in value):
            yield None


def _role(message: BaseMessage) -> str:
    return next((role for kind, role in _ROLES.items() if isinstance(message, kind)), message.type)
