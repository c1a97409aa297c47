"""A Gradio chat behind a guard: python examples/chat_gradio.py."""

import os
from typing import Any

import gradio

from promptguard.guard.environment import guard_of

guard = guard_of(os.environ)  # the default guard, or what PGUARD_FILTER names


@guard.wrap  # checks every turn, and all of them together
def answer(messages: list[dict[str, Any]]) -> str:
    """Stands for your model."""
    return f"You said: {messages[-1]['content']}"


def reply(message: str, history: list[dict[str, Any]]) -> str:
    """What Gradio calls."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in history]
    return answer([*turns, {"role": "user", "content": message}])


app = gradio.ChatInterface(reply)
if __name__ == "__main__":
    app.launch()
