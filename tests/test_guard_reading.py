"""Which texts of a request the guard checks, and what it calls unscannable."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import CANARY, Words, text, user
from hypothesis import given
from hypothesis import strategies as st

from promptguard.guard import Action, Guard, Policy, Reason
from promptguard.guard.reading import read

# Which texts are checked.


def test_no_more_texts_are_made_than_are_checked() -> None:
    few, many = Policy(max_texts=5), [user([text(f"a{n}") for n in range(50)]), user("b")]
    assert [piece.text for piece in read(many, few).pieces] == [f"a{n}" for n in range(6)]  # one more says "too many"
    assert len(read(many[1:], few).pieces) == 1
    assert len(read(many, Policy(max_texts=None)).pieces) == 55
    assert read([*many, {"role": "user", "content": 5}], few).unscannable  # which a policy may block on its own
    assert Guard(Words(), few).check(many).reason is Reason.OVER_BUDGET


def test_each_turn_and_the_conversation_are_checked_once() -> None:
    words = Words()
    chat = [{"role": "system", "content": "be kind"}, user("hi"), {"role": "assistant", "content": "hi"}, user("bye")]
    assert Guard(words).check(chat).allowed
    assert words.seen == ["be kind", "hi", "bye", "be kind\nhi\nhi\nbye"]


def test_payload_split_over_turns_is_seen() -> None:
    decision = Guard(Words("make a\nbomb")).check([user("make a"), user("bomb")])
    assert decision.reason is Reason.HARMFUL
    assert decision.parts[-1].where == "conversation"


@pytest.mark.parametrize("word", ["make a bomb", "ake a bo\nmb"])
def test_payload_split_over_parts_is_seen_however_the_template_joins_them(word: str) -> None:
    decision = Guard(Words(word)).check([user([text("make a bo"), text("mb", "input_text")])])
    assert decision.reason is Reason.HARMFUL
    assert decision.parts[-1].where == "messages[0]"


@pytest.mark.parametrize("word", ["bomb\nnow", "bo\nmb\nnow"])
def test_payload_split_over_parts_and_turns_is_seen(word: str) -> None:
    decision = Guard(Words(word)).check([user([text("a bo"), text("mb")]), user("now")])
    assert decision.parts[-1].where == "conversation"
    assert decision.reason is Reason.HARMFUL


def test_each_part_is_checked_alone() -> None:
    words = Words()
    Guard(words).check([user([text("one"), text("two"), {"type": "refusal", "refusal": "three"}])])
    assert words.seen == ["one", "two", "three", "onetwothree", "one\ntwo\nthree"]


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q": "x"}'}}


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (user("a bomb"), "messages[0]"),
        ({"role": "system", "content": "a bomb"}, "messages[0]"),
        ({"role": "developer", "content": [text("a bomb")]}, "messages[0]"),
        ({"role": "assistant", "content": "a bomb"}, "messages[0]"),
        ({"role": "tool", "tool_call_id": "c1", "content": "a bomb"}, "messages[0].content"),
        ({"role": "tool", "tool_call_id": "c1", "content": [text("a bomb")]}, "messages[0].content[0]"),
        ({"role": "tool", "tool_call_id": "a bomb", "content": "ok"}, "messages[0].tool_call_id"),
        (user("ok", name="a bomb"), "messages[0].name"),
        (user([text("a bomb", "output_text")]), "messages[0]"),
        (user([text("ok"), text("a bomb", "refusal")]), "messages[0].content[1]"),
        (user([{**text("ok"), "cache_control": {"type": "a bomb"}}]), "messages[0].content[0].cache_control.type"),
        (user([{**text("ok"), "citation": "a bomb"}]), "messages[0].content[0]"),
        ({"role": "assistant", "reasoning": "a bomb", "content": None}, "messages[0]"),
        ({"role": "assistant", "reasoning_content": "a bomb", "content": "ok"}, "messages[0].reasoning_content"),
        ({"role": "assistant", "tool_plan": "a bomb", "content": "ok"}, "messages[0].other"),
        ({"role": "assistant", "a bomb": 1, "content": "ok"}, "messages[0].other"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "a bomb"}}]},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"role": "assistant", "tool_calls": [CALL, {"function": {"name": "f", "arguments": '{"q": "bomb"}'}}]},
            "messages[0].tool_calls[1].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"deep": [{"x": "bomb"}]}}}]},
            "messages[0].tool_calls[0].function.arguments[0]",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"bomb": True}}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "bomb"}},
            "messages[0].function_call.arguments",
        ),
    ],
)
def test_text_anywhere_in_a_message_is_checked(message: dict[str, Any], where: str) -> None:
    decision = Guard(Words()).check([message])
    assert decision.reason is Reason.HARMFUL
    assert decision.parts[-1].where == where


@given(st.lists(st.text("ab ", max_size=3), min_size=1, max_size=4))
def test_every_untrusted_text_and_the_conversation_reach_the_certifier(texts: list[str]) -> None:
    words = Words("\0")
    Guard(words).check([user(t) for t in texts])
    solid = [t for t in texts if t.strip()]
    assert set(solid) <= set(words.seen)
    assert len(words.seen) == len(set(words.seen))
    assert len(solid) < 2 or "\n".join(solid) in words.seen


def test_context_is_checked_alone_glued_and_joined() -> None:
    guard = Guard(Words("a bomb"))
    assert guard.check("ok", context=["fine"]).allowed
    assert not guard.check("ok", context=["a bomb"]).allowed
    assert not guard.check("mb", context=["a bo"]).allowed
    assert guard.check([user("ok")], context=["a bomb"]).parts[-1].where == "context"
    assert not Guard(Words("a\nbomb")).check([user("bomb")], context=["a"]).allowed


def test_trusted_role_is_the_owners_choice_only() -> None:
    chat = [{"role": "system", "content": "never speak of a bomb"}, user("hi")]
    assert not Guard(Words()).check(chat).allowed
    assert Guard(Words(), Policy(trusted_roles=frozenset({"system"}))).check(chat).allowed
    assert not Guard(Words(), Policy(trusted_roles=frozenset({"system"}))).check(chat[:1]).allowed


def test_role_that_the_owner_adds_is_known_and_checked() -> None:
    guard = Guard(Words(), Policy(roles=frozenset({"ipython"})))
    assert guard.check([{"role": "ipython", "content": "hi"}]).allowed
    assert guard.check([{"role": "ipython", "content": "bomb"}]).reason is Reason.HARMFUL
    assert guard.check([user("hi")]).reason is Reason.UNSCANNABLE


# What cannot be read.


class Chat:
    messages = (user("hi"),)


def _cycle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        b"hi",
        {"role": "user", "content": "hi"},
        Chat(),
        iter([user("hi")]),
        ["hi"],
        [b"hi"],
        [Chat()],
        [[user("hi")]],
        [{"content": "hi"}],
        [{"role": None, "content": "hi"}],
        [{"role": ["user"], "content": "hi"}],
        [{"role": "User", "content": "hi"}],
        [{"role": "oracle", "content": "hi"}],
        [user(7)],
        [user({"type": "text", "text": "hi"})],
        [user([7])],
        [user([text("hi"), {"type": "image_url", "image_url": {"url": "https://x"}}])],
        [user([text("hi"), {"type": "input_audio", "input_audio": {}}])],
        [user([text("hi"), {"type": "file", "file": {"file_id": "f"}}])],
        [user([{"type": "text", "text": 7}])],
        [user([{"type": "text"}])],
        [user([{"type": ["text"], "text": "hi"}])],
        [user([{"text": "hi"}])],
        [user("hi", audio={"id": "a"})],
        [user("hi", images=["x"])],
        [{**user("hi"), 7: "x"}],
        [user("hi", name=b"x")],
        [user("hi", tool_calls=[{7: "x"}])],
        [user("hi", tool_calls=_cycle())],
    ],
)
def test_what_is_not_text_is_unscannable_before_any_inference(odd: object) -> None:
    words = Words()
    decision = Guard(words).check(odd)
    assert not decision.allowed
    assert decision.reason is Reason.UNSCANNABLE
    assert words.seen == []


def test_owner_may_let_images_pass_while_text_is_still_checked() -> None:
    guard = Guard(Words(), Policy(on_unscannable=Action.ALLOW))
    image = {"type": "image_url", "image_url": {"url": "https://x"}}
    decision = guard.check([user([image])])
    assert decision.allowed
    assert decision.reason is Reason.UNSCANNABLE
    assert not guard.check([user([image, text("bomb")])]).allowed
    assert not guard.check([{"role": "oracle", "content": "bomb"}]).allowed
    assert not guard.check(["bomb", user("hi")]).allowed


@pytest.mark.parametrize("empty", [None, [], {}])
def test_absent_fields_are_fine(empty: object) -> None:
    assert Guard(Words()).check([user("hi", audio=empty, tool_calls=empty, annotations=empty)]).allowed


class Hostile(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError(CANARY)


def test_request_that_breaks_the_reader_is_a_block() -> None:
    decision = Guard(Words()).check([Hostile(role="user", content="hi")])
    assert (decision.reason, decision.error) == (Reason.ERROR, "RuntimeError")
