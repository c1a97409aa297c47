"""A LangChain agent whose model calls and tool results are guarded.

pip install certified-promptguard langchain, and your model's package
"""

from __future__ import annotations

import os
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel

from promptguard.guard.environment import guard_of
from promptguard.middleware.langchain import PromptGuardMiddleware


def agent(model: BaseChatModel, tools: list[Any]) -> Any:
    """An agent that answers what the guard blocks with a refusal; no answer is seen before it was checked."""
    guard = guard_of(os.environ)  # the default guard, or what PGUARD_FILTER names
    return create_agent(model, tools, middleware=[PromptGuardMiddleware(guard, check_output=True)])


def ask(model: BaseChatModel, question: str) -> str:
    """The agent's last word."""
    state = agent(model, []).invoke({"messages": [{"role": "user", "content": question}]})
    return str(state["messages"][-1].content)
