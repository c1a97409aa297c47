"""OpenAI's client behind a guard.

pip install certified-promptguard openai, set OPENAI_API_KEY, then: python examples/openai_client.py "a question"
"""

from __future__ import annotations

import os
import sys

import openai

from promptguard.guard.environment import guard_of
from promptguard.middleware.openai import wrap_openai


def ask(client: openai.OpenAI, question: str) -> str:
    """Ask through a guarded client; a block looks like the API's own refusal."""
    guarded = wrap_openai(client, guard_of(os.environ), check_output=True)
    try:
        answer = guarded.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": question}])
    except openai.BadRequestError as refused:
        return f"refused: {refused.code}"
    return answer.choices[0].message.content or ""


if __name__ == "__main__":
    sys.stdout.write(ask(openai.OpenAI(), sys.argv[1]) + "\n")
