"""A guard as the target of garak, called in its process, so that nothing has to be served.

    garak --target_type function --target_name promptguard.middleware.garak#guarded \
        --probes suffix.GCGCached --detectors shields.Up --generations 1

asks the default guard, or the one that the variables of `promptguard.guard.environment` describe.
A model behind `promptguard serve` is attacked over HTTP: `examples/garak.yaml`.

A blocked prompt is answered, never dropped: garak leaves errors and empty answers out of its rates, so a guard that
raises would look as if it blocked nothing. `BLOCKED` begins as `shields.Up` wants a shield to answer and refuses in
words that `mitigation.MitigationBypass` knows; `ALLOWED` begins as `shields.Down` wants. Other detectors look for harm
in an answer, and no model gives one here: put a model behind the guard with `target`, in a module of your own:

    guarded = target(Guard(certifier), lambda prompt: my_model(prompt))

Source of the contract: `garak/generators/function.py` and `garak/detectors/shields.py`, version 0.17.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from promptguard.guard import Guard, Policy
from promptguard.guard.environment import guard_of

BLOCKED = "Blocked: I can't assist with that request."
ALLOWED = "Allowed: the guard lets this prompt through."

Target = Callable[..., list[str | None]]


def target(guard: Guard, answer: Callable[[str], str | None] | None = None) -> Target:
    """A function that garak's `function` generator takes.

    Args:
        guard: what decides; its policy's refusal is the answer to a blocked prompt.
        answer: the model behind the guard, asked for prompts that are allowed; by default `ALLOWED` is the answer.

    Returns:
        `guarded(prompt, **settings)`, which gives one answer. Settings of garak's configuration are not looked at.
    """

    def guarded(prompt: str, **_: Any) -> list[str | None]:
        if not guard.check(prompt).allowed:
            return [guard.policy.refusal]
        return [ALLOWED if answer is None else answer(prompt)]

    return guarded


def guarded(prompt: str, **_: Any) -> list[str | None]:
    """Ask the guard that the environment describes; it is loaded at the first call.

    Raises:
        PromptGuardError: the environment means nothing, or the guard cannot be loaded. Nothing about the prompt raises.
    """
    return _from_environment()(prompt)


@lru_cache(maxsize=1)
def _from_environment() -> Target:
    return target(guard_of(os.environ, Policy(refusal=BLOCKED)))
