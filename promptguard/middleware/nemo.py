"""NeMo Guardrails: a guard as an action, and the flows that call it.

    rails = LLMRails(RailsConfig.from_content(colang_content=COLANG, yaml_content=YAML))
    add_guard(rails, Guard(certifier))

In a configuration folder, `config.py` needs one line, `from promptguard.middleware.nemo import init`, beside a file of
`COLANG` and the rails of `YAML`; the guard is then the default one, or what the environment describes.

The input rail checks every turn that NeMo knows of and all of them together, not only the last message; the output
rail the answer; the retrieval rail the chunks that are put into the prompt, and drops them. NeMo answers a block with
the message defined in `COLANG`. Results of tools are outside of these rails.

Source of the contract: `nemoguardrails/rails/llm/llmrails.py` and `actions/`, version 0.24.1, Colang 1.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from promptguard.guard import Guard
from promptguard.guard.environment import guard_of

ACTION = "promptguard_check"
COLANG = """\
define bot refuse to respond
  "I can't assist with that request."

define subflow promptguard check input
  $checked = execute promptguard_check(text=$user_message, direction="input")
  if $checked.is_blocked
    bot refuse to respond
    stop

define subflow promptguard check output
  $checked = execute promptguard_check(text=$bot_message, direction="output")
  if $checked.is_blocked
    bot refuse to respond
    stop

define subflow promptguard check retrieval
  $checked = execute promptguard_check(text=$relevant_chunks, direction="retrieval")
  if $checked.is_blocked
    $relevant_chunks = ""
"""
YAML = """\
rails:
  input:
    flows: [promptguard check input]
  output:
    flows: [promptguard check output]
    streaming:
      enabled: true
      stream_first: false
  retrieval:
    flows: [promptguard check retrieval]
"""
# Events that are turns of the conversation: who speaks, and where the text is.
_TURNS = {
    "UtteranceUserActionFinished": ("user", "final_transcript"),
    "StartUtteranceBotAction": ("assistant", "script"),
    "SystemMessage": ("system", "content"),
}


def add_guard(rails: Any, guard: Guard) -> None:
    """Give rails the action that the flows of `COLANG` execute.

    Args:
        rails: an `LLMRails`.
        guard: what decides; its policy's refusal is not used, since NeMo's flows speak.
    """

    @action(is_system_action=True, name=ACTION)  # type: ignore[untyped-decorator, unused-ignore]
    async def promptguard_check(
        text: Any = None, direction: str = "input", events: list[dict[str, Any]] | None = None, **_: Any
    ) -> RailOutcome:
        if direction == "retrieval" and not text:
            return RailOutcome.allow()
        answer = [{"role": "assistant", "content": text}]
        messages = _conversation(events or (), text) if direction == "input" else answer
        decision = await guard.acheck(messages)
        return RailOutcome.allow() if decision.allowed else RailOutcome.block(reason=str(decision.reason))

    rails.register_action(promptguard_check, name=ACTION)


def init(app: Any) -> None:
    """What NeMo calls of a `config.py`: adds the guard that the environment describes.

    Raises:
        PromptGuardError: the environment means nothing, or the guard cannot be loaded.
    """
    add_guard(app, guard_of(os.environ))


def _conversation(events: Iterable[Mapping[str, Any]], text: Any) -> list[dict[str, Any]]:
    """All turns, the message that is being checked last, as another rail may have changed it."""
    turns = []
    for event in events:
        if (found := _TURNS.get(str(event.get("type")))) is not None:
            role, field = found
            turns.append({"role": role, "content": event.get(field)})
    last = {"role": "user", "content": text}
    return turns if turns and turns[-1] == last else [*turns, last]
