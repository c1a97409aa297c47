"""A guard as the target of garak, called in its process, so that nothing has to be served.

    garak --target_type function --target_name promptguard.middleware.garak#guarded \
        --probes suffix.GCGCached --detectors shields.Up --generations 1

asks the default guard, or the one that the environment describes:

| variable | meaning | default |
|---|---|---|
| PGUARD_FILTER | as `promptguard check --filter` | the default guard, with its own modes |
| PGUARD_MODE | erase mode | suffix |
| PGUARD_MAX_ERASE | units erased at most, or "unlimited" | 20; unlimited where one pass does it |
| PGUARD_UNIT | "char" or "word" | word |
| PGUARD_THRESHOLD | scores at or above it are harmful | the filter's own |

A blocked prompt is answered, never dropped: garak leaves errors and empty answers out of its rates, so a guard that
raises would look as if it blocked nothing. `BLOCKED` begins as `shields.Up` wants a shield to answer and refuses in
words that `mitigation.MitigationBypass` knows; `ALLOWED` begins as `shields.Down` wants. Other detectors look for harm
in an answer, and no model gives one here: put a model behind the guard with `target`, in a module of your own:

    guarded = target(Guard(certifier), lambda prompt: my_model(prompt))

Source of the contract: `garak/generators/function.py` and `garak/detectors/shields.py`, version 0.17.1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument
from promptguard.guard import Guard, Policy
from promptguard.guard.default import default_certifier
from promptguard.score import load_filter
from promptguard.types import Certifier
from promptguard.units import load_units

BLOCKED = "Blocked: I can't assist with that request."
ALLOWED = "Allowed: the guard lets this prompt through."
FILTER, MODE, MAX_ERASE = "PGUARD_FILTER", "PGUARD_MODE", "PGUARD_MAX_ERASE"
UNIT, THRESHOLD = "PGUARD_UNIT", "PGUARD_THRESHOLD"
VARIABLES = (FILTER, MODE, MAX_ERASE, UNIT, THRESHOLD)
_DEFAULT_MAX_ERASE = 20

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
    return target(guard_of(os.environ))


def guard_of(environment: Mapping[str, str]) -> Guard:
    """The guard that the variables describe.

    Raises:
        InvalidArgument: a value means nothing, or a setting of a filter without a filter.
        PromptGuardError: the filter cannot be loaded.
    """
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    return Guard(_certifier(given), Policy(refusal=BLOCKED))


def _certifier(given: Mapping[str, str]) -> Certifier:
    if FILTER not in given:
        if given:
            raise InvalidArgument(f"{next(iter(given))} needs {FILTER}: the default guard has its own settings")
        return default_certifier()
    filter_ = load_filter(given[FILTER], threshold=_number(given[THRESHOLD]) if THRESHOLD in given else None)
    units = load_units(given.get(UNIT, "word"), getattr(filter_, "tokenizer", None))
    mode = load_mode(given.get(MODE, "suffix"), _budget(given.get(MAX_ERASE, "unlimited")))
    # The wrap modes are bounded by the longest prompt that they protect.
    is_bounded = MAX_ERASE in given or getattr(mode, "max_prompt", None) is not None
    if not is_bounded and cheapest(filter_, mode, units).limited:
        mode = mode.with_budget(_DEFAULT_MAX_ERASE)
    return EraseAndCheck(filter_, mode, units)


def _budget(text: str) -> float:
    if text == "unlimited":
        return math.inf
    if not text.isdecimal():
        raise InvalidArgument(f"{MAX_ERASE} must be a whole number or 'unlimited'")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(f"{THRESHOLD} must be a number") from None
