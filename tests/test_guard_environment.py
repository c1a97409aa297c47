"""Environment variables to a guard: every setting reaches the certifier, and what means nothing is refused."""

from __future__ import annotations

import math

import pytest
from test_architecture import heavy_imports

from promptguard.errors import PromptGuardError
from promptguard.guard import Policy
from promptguard.guard.environment import VARIABLES, guard_of
from promptguard.threat import Threat


def threat(environment: dict[str, str]) -> Threat:
    """What the guard of these variables undoes."""
    verdict = guard_of(environment).check("a bomb").parts[0].verdict
    assert verdict is not None
    assert verdict.threat is not None
    return verdict.threat


def test_settings_reach_the_certifier() -> None:
    keyword = {"PGUARD_FILTER": "keyword:bomb"}
    assert threat(keyword | {"PGUARD_UNIT": "char", "PGUARD_MAX_ERASE": "3"}) == Threat("suffix", 3, "char")
    assert guard_of(keyword | {"PGUARD_THRESHOLD": "2"}).check("a bomb").allowed
    # Without a budget: any number where one pass does it or the mode is bounded by prompts, else 20.
    assert threat(keyword) == Threat("suffix", 20, "word")
    assert threat(dict.fromkeys(VARIABLES, "") | keyword) == Threat("suffix", 20, "word")
    assert threat(keyword | {"PGUARD_MODE": "wrap"}) == Threat("wrap", math.inf, "word", max_prompt=40)
    assert threat({"PGUARD_FILTER": "bag", "PGUARD_MODE": "infusion"}) == Threat("infusion", math.inf, "word")


@pytest.mark.parametrize(
    "environment",
    [
        {"PGUARD_MODE": "suffix"},
        {"PGUARD_FILTER": "keyword:bomb", "PGUARD_MAX_ERASE": "-1"},
        {"PGUARD_FILTER": "keyword:bomb", "PGUARD_MAX_ERASE": "many"},
        {"PGUARD_FILTER": "keyword:bomb", "PGUARD_THRESHOLD": "high"},
        {"PGUARD_FILTER": "keyword:bomb", "PGUARD_THRESHOLD": "nan"},
        {"PGUARD_FILTER": "keyword:bomb", "PGUARD_MODE": "no-such-mode"},
        {"PGUARD_FILTER": "no-such-filter"},
    ],
)
def test_an_environment_that_means_nothing_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(PromptGuardError):
        guard_of(environment)


def test_no_variable_is_the_policy() -> None:
    keyword = {"PGUARD_FILTER": "keyword:bomb"}
    assert guard_of(keyword | {"PGUARD_REFUSAL": "Sure!", "PGUARD_ON_ERROR": "allow"}).policy == Policy()
    assert guard_of(keyword, Policy(refusal="No.")).policy.refusal == "No."


def test_importing_it_costs_nothing_heavy() -> None:
    assert heavy_imports("import promptguard.guard.environment") == []
