"""Windowed release of a streamed chat completion: text goes out while the model still writes.

Promise: let a passage of at most `hold_back` characters be such that the certifier flags every text that holds it.
Then no character of it leaves the server. Proof: a character at position p goes out only after a check of text that
begins `hold_back` characters before the released end, and ends at least `hold_back` characters after p, or at the end
of the answer; a passage that begins at p lies in it.

Only `content` is released early. Whatever else a choice holds (tool calls, refusals, reasoning) waits for the verdict
about the whole answer. Each choice has its own window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptguard.serve.config import Streaming


@dataclass(slots=True)
class _Choice:
    text: str = ""
    checked: int = 0
    released: int = 0


@dataclass(slots=True)
class Window:
    """The text of a stream so far, and how much of it is out.

    Args:
        settings: hold back and stride.
    """

    settings: Streaming
    _choices: dict[int, _Choice] = field(default_factory=dict)

    def add(self, value: Mapping[str, Any]) -> None:
        """Take in an event."""
        for choice in value.get("choices") or ():
            index = choice.get("index") if isinstance(choice, dict) else None
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(index, int) or not isinstance(delta, dict):
                continue
            content = delta.get("content")
            if isinstance(content, str):
                self._choices.setdefault(index, _Choice()).text += content

    def due(self) -> list[tuple[int, str]]:
        """The choices with enough new text, and what is to be checked of each."""
        found = []
        for index, state in self._choices.items():
            if len(state.text) - max(state.checked, self.settings.hold_back) >= self.settings.stride:
                found.append((index, state.text[max(0, state.released - self.settings.hold_back) :]))
                state.checked = len(state.text)
        return found

    def release(self, index: int) -> str:
        """The text of a choice that goes out after a check of `due` that allowed it."""
        state = self._choices[index]
        stop = max(state.released, state.checked - self.settings.hold_back)
        text = state.text[state.released : stop]
        state.released = stop
        return text

    def rest(self, value: Mapping[str, Any], seen: dict[int, int]) -> dict[str, Any]:
        """An event without the text of it that is out.

        Args:
            value: an event that was added, in order.
            seen: characters of each choice in the events before; brought up to date.
        """
        choices = []
        for choice in value.get("choices") or ():
            if not isinstance(choice, dict):
                continue
            index, delta = choice.get("index"), choice.get("delta")
            content = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(delta, dict) and isinstance(content, str) and index in self._choices:
                start = seen.get(index, 0)
                seen[index] = start + len(content)
                left = content[max(0, min(len(content), self._choices[index].released - start)) :]
                choices.append(choice | {"delta": delta | {"content": left}})
            else:
                choices.append(choice)
        return {**value, "choices": choices}
