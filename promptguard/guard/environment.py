"""The guard that environment variables describe, for whatever is started by another program.

| variable | meaning | default |
|---|---|---|
| PGUARD_FILTER | as `promptguard check --filter` | the default guard, with its own modes |
| PGUARD_MODE | erase mode | suffix |
| PGUARD_MAX_ERASE | units erased at most, or "unlimited" | 20; unlimited where one pass does it |
| PGUARD_UNIT | "char" or "word" | word |
| PGUARD_THRESHOLD | scores at or above it are harmful | the filter's own |
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument
from promptguard.guard.core import Guard
from promptguard.guard.default import default_certifier
from promptguard.guard.policy import Policy
from promptguard.score import load_filter
from promptguard.types import Certifier
from promptguard.units import load_units

FILTER, MODE, MAX_ERASE = "PGUARD_FILTER", "PGUARD_MODE", "PGUARD_MAX_ERASE"
UNIT, THRESHOLD = "PGUARD_UNIT", "PGUARD_THRESHOLD"
VARIABLES = (FILTER, MODE, MAX_ERASE, UNIT, THRESHOLD)
_DEFAULT_MAX_ERASE = 20


def guard_of(environment: Mapping[str, str], policy: Policy | None = None) -> Guard:
    """The guard that the variables describe.

    Args:
        environment: only `VARIABLES` are read; an empty value is as none.
        policy: of the guard; no variable changes it.

    Raises:
        InvalidArgument: a value means nothing, or a setting of a filter without a filter.
        PromptGuardError: the filter cannot be loaded.
    """
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    return Guard(_certifier(given), policy)


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
