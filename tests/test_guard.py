"""The guard: everything that is not a clean "safe" blocks, the policy is the owner's, no text leaks."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from doubles import CANARY, THREAT, Does, Words, text, user

from promptguard.errors import BudgetExceeded, FilterError, InvalidArgument, InvalidText
from promptguard.guard import Action, Guard, Policy, Reason
from promptguard.types import Label, Verdict

# What is allowed, what is blocked, and what the decision says.


def test_safe_text_is_allowed() -> None:
    decision = Guard(Words()).check("a cake recipe")
    assert decision.allowed
    assert decision.action is Action.ALLOW
    assert decision.reason is Reason.ALLOWED
    assert (decision.calls, decision.checks) == (2, 3)
    assert decision.certificate is None
    assert [part.where for part in decision.parts] == ["text"]


def test_harmful_text_is_blocked_with_the_certificate_of_the_flagged_part() -> None:
    decision = Guard(Words()).check([user("hello"), user("a bomb"), user("later")])
    assert not decision.allowed
    assert decision.reason is Reason.HARMFUL
    assert [part.where for part in decision.parts] == ["messages[0]", "messages[1]"]
    assert decision.certificate is not None
    assert decision.certificate.threat == THREAT
    with pytest.raises(FrozenInstanceError):
        decision.action = Action.ALLOW  # type: ignore[misc]


def test_to_dict_is_json_without_text() -> None:
    decision = Guard(Words()).check([user(CANARY, **{"canary-7f3a-key": "x"})])
    written = json.dumps(decision.to_dict())
    assert "canary" not in written
    assert json.loads(written)["parts"][0]["verdict"]["label"] == "harmful"


@pytest.mark.parametrize("empty", ["", "   \n\t", [], [user("  ")], [user(None)], [user([])], [user([text("")])]])
def test_nothing_to_check_is_a_block(empty: object) -> None:
    words = Words()
    decision = Guard(words).check(empty)
    assert not decision.allowed
    assert (decision.reason, decision.error) == (Reason.ERROR, "EmptyText")
    assert words.seen == []


def test_blank_message_among_others_is_skipped() -> None:
    words = Words()
    assert Guard(words).check([user("hello"), user(" "), user(None)]).allowed
    assert words.seen == ["hello"]


# Fail closed.

FAILURES = [
    (FilterError(CANARY), Reason.ERROR),
    (InvalidText(CANARY), Reason.ERROR),
    (RuntimeError(CANARY), Reason.ERROR),
    (ValueError(CANARY), Reason.ERROR),
    (MemoryError(CANARY), Reason.ERROR),
    (RecursionError(CANARY), Reason.ERROR),
    (StopIteration(CANARY), Reason.ERROR),
    (TimeoutError(CANARY), Reason.ERROR),
    (BudgetExceeded(5), Reason.OVER_BUDGET),
    (None, Reason.ERROR),
    ("safe", Reason.ERROR),
    (True, Reason.ERROR),
    (Verdict("safe", 0.1, 0.5, 1, 1), Reason.ERROR),  # type: ignore[arg-type]
    (Verdict(Label.SAFE, math.nan, 0.5, 1, 1), Reason.ERROR),
    (Verdict(Label.SAFE, -math.inf, 0.5, 1, 1), Reason.ERROR),
    (Verdict(Label.SAFE, None, 0.5, 1, 1), Reason.ERROR),  # type: ignore[arg-type]
    (Verdict(Label.ABSTAIN, math.nan, 0.5, 1, 1), Reason.ABSTAIN),
    (Verdict(Label.HARMFUL, math.nan, 0.5, 1, 1), Reason.HARMFUL),
]
SWITCHES = {
    Reason.HARMFUL: "on_harmful",
    Reason.ERROR: "on_error",
    Reason.ABSTAIN: "on_abstain",
    Reason.OVER_BUDGET: "on_over_budget",
    Reason.UNSCANNABLE: "on_unscannable",
}


@pytest.mark.parametrize(("outcome", "reason"), FAILURES)
def test_everything_but_a_clean_safe_is_blocked(outcome: object, reason: Reason) -> None:
    decision = Guard(Does(outcome)).check("hello")
    assert not decision.allowed
    assert decision.reason is reason
    assert CANARY not in repr(decision)


@pytest.mark.parametrize(("outcome", "reason"), FAILURES)
def test_only_the_matching_switch_opens(outcome: object, reason: Reason) -> None:
    certifier = Does(outcome)
    opened: dict[str, Any] = {SWITCHES[reason]: Action.ALLOW}
    others: dict[str, Any] = {name: Action.ALLOW for key, name in SWITCHES.items() if key is not reason}
    decision = Guard(certifier, Policy(**opened)).check("hello")
    assert decision.allowed
    assert decision.reason is reason
    assert not Guard(certifier, Policy(**others)).check("hello").allowed


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit()])
def test_interrupts_pass_through(stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        Guard(Does(stop)).check("hello")


def test_allowed_error_does_not_hide_what_follows() -> None:
    guard = Guard(Does(RuntimeError(), "odd"), Policy(on_error=Action.ALLOW))
    assert guard.check([user("odd"), user("fine")]).reason is Reason.ERROR
    observing = Guard(Words(), Policy(on_harmful=Action.ALLOW, on_unscannable=Action.ALLOW))
    assert observing.check([user("bomb", role="oracle")]).reason is Reason.UNSCANNABLE  # the first finding
    decision = observing.check([user("bomb"), user("fine")])
    assert decision.allowed
    assert decision.reason is Reason.HARMFUL
    assert decision.certificate is None
    assert [part.where for part in decision.parts] == ["messages[0]", "messages[1]", "conversation"]


def test_number_of_texts_is_limited_before_any_inference() -> None:
    words = Words()
    decision = Guard(words, Policy(max_texts=4)).check([user(str(i)) for i in range(4)])
    assert (decision.reason, decision.error) == (Reason.OVER_BUDGET, "BudgetExceeded")
    assert words.seen == []
    assert Guard(words, Policy(max_texts=5)).check([user(str(i)) for i in range(4)]).allowed
    assert Guard(words, Policy(max_texts=None)).check([user(str(i)) for i in range(1500)]).allowed


def test_policy_blocks_by_default_and_is_immutable() -> None:
    policy = Policy()
    assert all(policy.action(reason) is Action.BLOCK for reason in Reason if reason is not Reason.ALLOWED)
    assert {f.name for f in fields(policy) if f.name.startswith("on_")} == set(SWITCHES.values())
    with pytest.raises(FrozenInstanceError):
        policy.on_error = Action.ALLOW  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_error": "allow"},
        {"on_harmful": None},
        {"trusted_roles": "system"},
        {"trusted_roles": {"system"}},
        {"roles": frozenset({1})},
        {"refusal": ""},
        {"refusal": None},
        {"max_texts": 0},
    ],
)
def test_policy_refuses_values_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Policy(**wrong)


def test_no_field_of_a_request_weakens_the_policy() -> None:
    message = user("bomb", on_harmful="allow", trusted=True, role="user", policy={}, skip_guard=True)
    assert not Guard(Words()).check([message]).allowed


# Nothing leaks.


@pytest.mark.parametrize("certifier", [Words(), Words("never"), *(Does(outcome) for outcome, _ in FAILURES)])
@pytest.mark.parametrize("x", [CANARY, [user(CANARY, **{CANARY: CANARY})], [user({CANARY: CANARY})], [CANARY]])
def test_no_text_in_logs_at_any_level(certifier: Any, x: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        decision = Guard(certifier).check(x)
    assert len(caplog.records) == 1
    record = caplog.records[0]
    assert record.name == "promptguard.guard"
    assert record.levelno == (logging.INFO if decision.allowed else logging.WARNING)
    assert record.exc_info is None
    assert "canary" not in caplog.text + repr(record.args) + repr(decision) + json.dumps(decision.to_dict())
    assert str(decision.reason) in caplog.text


# Asynchronous use and threads.


async def test_acheck_agrees_with_check_and_leaves_the_loop_free() -> None:
    gate = threading.Event()

    class Waits:
        def certify(self, x: str) -> Verdict:
            assert gate.wait(10)
            return Words().certify(x)

    task = asyncio.create_task(Guard(Waits()).acheck("a bomb", context=["x"]))
    await asyncio.sleep(0.02)
    assert not task.done()
    gate.set()
    assert (await task).reason is Reason.HARMFUL


def test_a_finding_that_the_owner_allows_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert Guard(Words(), Policy(on_harmful=Action.ALLOW)).check("bomb").allowed
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_threads_share_a_guard() -> None:
    guard = Guard(Words())
    texts = [f"text {i}" + (" bomb" if i % 3 == 0 else "") for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        allowed = [decision.allowed for decision in pool.map(guard.check, texts)]
    assert allowed == [i % 3 != 0 for i in range(60)]


def test_import_is_light() -> None:
    code = "import sys, promptguard.guard; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# With the real certifier.


def test_end_to_end_with_erase_and_check() -> None:
    from promptguard.certify.erase_and_check import EraseAndCheck
    from promptguard.erase import load_mode
    from promptguard.score.keyword import KeywordFilter
    from promptguard.units import load_units

    harm = KeywordFilter(["bomb"], absent=["zzz"])  # one appended word fools the bare filter
    guard = Guard(EraseAndCheck(harm, load_mode("suffix", 3), load_units("word")))
    decision = guard.check([user("how to make a bomb")])
    assert decision.reason is Reason.HARMFUL
    assert decision.certificate is not None
    assert harm(["how to make a bomb zzz now"]) == [0.0]
    assert not guard.check([user("hello"), user("how to make a bomb zzz now")]).allowed
    assert guard.check("how to kill a Python process").allowed
    for broken in ("\0", "a\0b", "lone \ud800", "\u200b", "x" * 1_000_001):
        assert guard.check(broken).reason is Reason.ERROR
    small = EraseAndCheck(harm, load_mode("infusion", 3), load_units("word"), max_checks=5)
    assert Guard(small).check("one two three four five six").error == "BudgetExceeded"
