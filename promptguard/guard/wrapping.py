"""Guarded callables: which argument is checked, and what comes back instead of a blocked call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing
from typing import Any, Protocol

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard.decision import Decision
from promptguard.guard.policy import OnBlock, Policy

_USUAL = ("messages", "prompt", "text")
_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


class _Checks(Protocol):
    policy: Policy

    def check(self, x: object) -> Decision: ...
    async def acheck(self, x: object) -> Decision: ...


def wrap(guard: _Checks, call: Callable[..., Any], on_block: OnBlock, argument: str | None) -> Callable[..., Any]:
    """The guarded form of `call`; see `Guard.wrap`."""
    checked = _argument(call, argument)

    def refusal(decision: Decision) -> str | None:
        """The text to answer with; None if the call may run."""
        if decision.allowed:
            return None
        if on_block is OnBlock.RAISE:
            raise Blocked(decision)
        return guard.policy.refusal

    if _is(inspect.isasyncgenfunction, call):

        @functools.wraps(call)
        async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            if (text := refusal(await guard.acheck(checked(args, kwargs)))) is not None:
                yield text
                return
            async with aclosing(call(*args, **kwargs)) as items:
                async for item in items:
                    yield item

        return async_generator

    if _is(inspect.iscoroutinefunction, call):

        @functools.wraps(call)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            if (text := refusal(await guard.acheck(checked(args, kwargs)))) is not None:
                return text
            return await call(*args, **kwargs)

        return coroutine

    if _is(inspect.isgeneratorfunction, call):

        @functools.wraps(call)
        def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            if (text := refusal(guard.check(checked(args, kwargs)))) is not None:
                yield text
                return None
            return (yield from call(*args, **kwargs))

        return generator

    @functools.wraps(call)
    def function(*args: Any, **kwargs: Any) -> Any:
        if (text := refusal(guard.check(checked(args, kwargs)))) is not None:
            return text
        return call(*args, **kwargs)

    return function


def _is(kind: Callable[[Any], bool], call: Callable[..., Any]) -> bool:
    # Decorators hide that a function is asynchronous (the OpenAI client's do), so what they wrap is asked as well.
    return kind(call) or kind(inspect.unwrap(call)) or kind(getattr(type(call), "__call__", None))  # noqa: B004


def _argument(call: Callable[..., Any], argument: str | None) -> Callable[[tuple[Any, ...], dict[str, Any]], object]:
    """How to find the checked argument among those of a call.

    Raises:
        InvalidArgument: it cannot be told which one it is.
    """
    try:
        signature = inspect.signature(call)
    except ValueError:
        raise InvalidArgument("the signature of this callable is unknown: wrap a function that calls it") from None
    name = argument if argument is not None else _usual(signature)
    parameter = signature.parameters.get(name)
    if parameter is not None and parameter.kind in _NAMED:

        def value(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return bound.arguments[name]

    elif any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):

        def value(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
            if name not in kwargs:
                raise InvalidArgument(f"pass {name!r} by keyword: it is what the guard checks")
            return kwargs[name]

    else:
        raise InvalidArgument(f"the callable has no parameter {name!r}; name the one to check with argument=")
    return value


def _usual(signature: inspect.Signature) -> str:
    named = [p.name for p in signature.parameters.values() if p.kind in _NAMED]
    usual = [name for name in named if name in _USUAL]
    if len(usual) > 1:
        raise InvalidArgument(f"the callable has the parameters {', '.join(usual)}; choose one with argument=")
    if named and named[0] in {"self", "cls"}:  # a method that is decorated in its class
        named = named[1:]
    if not named:
        raise InvalidArgument("the callable names no parameter; say with argument= which keyword to check")
    if not usual and len(named) > 1:
        raise InvalidArgument(f"the callable has the parameters {', '.join(named)}; choose one with argument=")
    return usual[0] if usual else named[0]
