"""Guarded callables: synchronous, asynchronous, generators; a blocked call never runs."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from doubles import CANARY, SAFE, Does, Words, user

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Decision, Guard, OnBlock, Policy
from promptguard.types import Verdict

# Guarded callables.

REFUSAL = Policy().refusal


def echo(prompt: str, *, times: int = 1) -> str:
    """Says it again."""
    return prompt * times


async def aecho(prompt: str) -> str:
    return prompt


def stream(prompt: str) -> Iterator[str]:
    yield from prompt.split()


async def astream(prompt: str) -> AsyncIterator[str]:
    for word in prompt.split():
        yield word


class Model:
    async def __call__(self, question: str) -> str:
        return question

    def ask(self, question: str) -> str:
        return question


def test_wrap_sync() -> None:
    guarded = Guard(Words()).wrap(echo)
    assert guarded("hi", times=2) == "hihi"
    assert guarded(prompt="hi") == "hi"
    assert guarded("a bomb") == REFUSAL
    assert guarded(prompt="a bomb") == REFUSAL
    assert Guard(Words(), Policy(refusal="No.")).wrap(echo)("a bomb") == "No."
    assert (guarded.__name__, guarded.__doc__) == ("echo", "Says it again.")
    assert inspect.signature(guarded) == inspect.signature(echo)


def test_blocked_call_never_runs() -> None:
    ran = []

    def call(prompt: str) -> None:
        ran.append(prompt)

    guarded = Guard(Words()).wrap(call, on_block=OnBlock.RAISE)
    with pytest.raises(Blocked, match=r"^blocked by promptguard$"):
        guarded("a bomb")
    assert ran == []


def _delegates(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return inner


@pytest.mark.parametrize("call", [aecho, Model(), functools.partial(aecho), _delegates(aecho)])
async def test_wrap_async(call: Callable[[str], Coroutine[Any, Any, str]]) -> None:
    guarded = Guard(Words()).wrap(call)
    assert inspect.iscoroutinefunction(guarded)
    assert await guarded("hi") == "hi"
    assert await guarded("a bomb") == REFUSAL
    with pytest.raises(Blocked):
        await Guard(Words()).wrap(call, on_block="raise")("a bomb")


def test_wrap_generator() -> None:
    guarded = Guard(Words()).wrap(stream)
    assert inspect.isgeneratorfunction(guarded)
    assert list(guarded("one two")) == ["one", "two"]
    assert list(guarded("a bomb")) == [REFUSAL]
    with pytest.raises(Blocked):
        next(Guard(Words()).wrap(stream, on_block="raise")("a bomb"))


async def test_wrap_async_generator() -> None:
    guarded = Guard(Words()).wrap(astream)
    assert inspect.isasyncgenfunction(guarded)
    assert [item async for item in guarded("one two")] == ["one", "two"]
    assert [item async for item in guarded("a bomb")] == [REFUSAL]


def test_wrap_finds_the_argument() -> None:
    guard = Guard(Words())

    def chat(model: str, messages: list[Any]) -> str:
        return "answer"

    def many(model: str, **kwargs: Any) -> str:
        return "answer"

    def defaults(text: str | None = None) -> str:
        return "answer"

    class Service:
        @guard.wrap
        def ask(self, question: str) -> str:
            return "answer"

    assert guard.wrap(chat)("bomb-model", [user("hi")]) == "answer"
    assert guard.wrap(chat)("m", messages=[user("bomb")]) == REFUSAL
    assert guard.wrap(many, argument="query")("m", query="hi") == "answer"
    assert guard.wrap(many, argument="query")("m", query="bomb") == REFUSAL
    with pytest.raises(InvalidArgument, match="'query'"):
        guard.wrap(many, argument="query")("m")
    assert guard.wrap(defaults)() == REFUSAL
    assert Service().ask("hi") == "answer"
    assert Service().ask("bomb") == REFUSAL
    assert guard.wrap(Model().ask)("bomb") == REFUSAL


def test_wrap_refuses_what_it_cannot_tell() -> None:
    guard = Guard(Words())

    def both(prompt: str, messages: list[Any]) -> str:
        return "answer"

    def nameless(*args: Any, **kwargs: Any) -> str:
        return "answer"

    for wrong in (
        lambda: guard.wrap(both),
        lambda: guard.wrap(nameless),
        lambda: guard.wrap(echo, argument="times_"),
        lambda: guard.wrap(lambda: "answer"),
        lambda: guard.wrap(type),
        lambda: guard.wrap(echo, on_block="ignore"),
    ):
        with pytest.raises(InvalidArgument):
            wrong()
    assert guard.wrap(both, argument="prompt")("bomb", []) == REFUSAL


def test_blocked_carries_the_decision_and_no_text() -> None:
    with pytest.raises(Blocked) as caught:
        Guard(Does(RuntimeError(CANARY))).wrap(echo, on_block="raise")(CANARY)
    assert isinstance(caught.value.decision, Decision)
    assert "canary" not in str(caught.value) + repr(caught.value.decision)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_cancelled_acheck_gives_no_decision() -> None:
    gate = threading.Event()
    calls = []

    class Waits:
        def certify(self, x: str) -> Verdict:
            assert gate.wait(10)
            return SAFE

    async def call(prompt: str) -> str:
        calls.append(prompt)
        return "answer"

    task = asyncio.create_task(Guard(Waits()).wrap(call)("hi"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert calls == []
