"""LangChain: a guard as agent middleware, and as a Runnable for chains.

    agent = create_agent(model, tools, middleware=[..., PromptGuardMiddleware(Guard(certifier))])
    chain = PromptGuardRunnable(guard=Guard(certifier)) | model

The promise: no model call of the agent runs unless the guard allows all that it is given: the messages of every role,
what tools returned, and the system prompt (unless the policy trusts the role "system"). Put the middleware last in the
list: it then checks what the model gets, after all others had their say. Other middleware that calls a model in a hook
of its own, such as summarisation, sees user messages only after they were checked, and tool results as well. The
schemas of tools are the owner's and are not read.

Source of the contract: `langchain/agents/middleware/types.py`, version 1.4.7, and `langgraph/pregel/_messages.py`.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Generator, Sequence
from enum import StrEnum
from typing import Annotated, Any, NotRequired, TypeVar

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import PrivateStateAttr, ToolCallRequest, TracePolicy, omit_payload
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langgraph.constants import TAG_NOSTREAM
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import ConfigDict

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Decision, Guard
from promptguard.middleware.langchain_messages import chat_of, read_input

WITHHELD = "[withheld]"
_PLACE = re.compile(r"messages\[(\d+)\]")
_T = TypeVar("_T")
# Work that asks for decisions and does not know whether they come from `check` or `acheck`.
_Asks = Generator[list[object], Decision, _T]


class ExitBehavior(StrEnum):
    """What follows a block, in the words of LangChain's own moderation middleware."""

    END = "end"
    ERROR = "error"
    REPLACE = "replace"


class GuardState(AgentState[Any]):
    """The agent's state with a mark of what was checked, so that nothing is checked twice in a row."""

    promptguard_checked: NotRequired[Annotated[str | None, PrivateStateAttr]]


class PromptGuardMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Guards an agent's model calls and tool results; synchronous and asynchronous calls do the same.

    With "end" the policy's refusal is the agent's last message; "error" raises `Blocked`; "replace" withholds the user
    message or tool result that is to blame and goes on, and ends where no single one is. A blocked message stays in a
    conversation's memory, and so blocks its next turns too, unless it is replaced.

    A blocked tool result is always withheld, or raises. When outputs are checked, the model does not stream: nobody
    sees an answer before its verdict, in any of LangGraph's stream modes or as tokens of `astream_events`. Callbacks
    and traces still see the whole answer when the model is done.

    Args:
        guard: what decides.
        exit_behavior: "end", "error" or "replace".
        check_output: check the model's answers as well: text, reasoning and the arguments of tool calls.

    Raises:
        InvalidArgument: there is no such exit behavior.
    """

    state_schema = GuardState
    tools = ()
    trace_policy = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)

    def __init__(self, guard: Guard, *, exit_behavior: str = ExitBehavior.END, check_output: bool = False) -> None:
        if exit_behavior not in list(ExitBehavior):
            raise InvalidArgument(f"exit_behavior must be one of {', '.join(ExitBehavior)}")
        self._guard = guard
        self._exit = ExitBehavior(exit_behavior)
        self._check_output = check_output
        self._key = secrets.token_bytes(32)  # a mark in a state that a client can write must not be forged

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Check the messages before any other middleware reads them."""
        return self._ask(self._start(state["messages"]))

    @hook_config(can_jump_to=["end"])
    async def abefore_agent(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """As `before_agent`."""
        return await self._aask(self._start(state["messages"]))

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Check what the model would be given, and its answer if the owner wants that.

        Raises:
            Blocked: a block, with the exit behavior "error".
            InvalidArgument: the answer is to be checked, and the model cannot be kept from streaming it.
        """
        admitted = self._ask(self._admit_request(request))
        if admitted is None:
            return self._refusal()
        return self._ask(self._answer(handler(self._held_back(admitted))))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | AIMessage:
        """As `wrap_model_call`."""
        admitted = await self._aask(self._admit_request(request))
        if admitted is None:
            return self._refusal()
        return await self._aask(self._answer(await handler(self._held_back(admitted))))

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Withhold a tool's result that the guard blocks. Messages in a `Command` are checked at the next model call.

        Raises:
            Blocked: a block, with the exit behavior "error".
        """
        return self._ask(self._tool_result(handler(request)))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """As `wrap_tool_call`."""
        return await self._aask(self._tool_result(await handler(request)))

    def _ask(self, work: _Asks[_T]) -> _T:
        try:
            chat = next(work)
            while True:
                chat = work.send(self._guard.check(chat))
        except StopIteration as done:
            result: _T = done.value
            return result

    async def _aask(self, work: _Asks[_T]) -> _T:
        try:
            chat = next(work)
            while True:
                chat = work.send(await self._guard.acheck(chat))
        except StopIteration as done:
            result: _T = done.value
            return result

    def _start(self, messages: Sequence[BaseMessage]) -> _Asks[dict[str, Any]]:
        admitted = yield from self._admit([], messages)
        if admitted is None:
            return {"jump_to": "end", "messages": [self._refusal()], "promptguard_checked": None}
        changed = [new for new, old in zip(admitted, messages, strict=True) if new is not old]
        return {"promptguard_checked": self._mark(_chats(admitted)), **({"messages": changed} if changed else {})}

    def _admit_request(self, request: ModelRequest[Any]) -> _Asks[ModelRequest[Any] | None]:
        system = [request.system_message] if request.system_message else []
        mark, checked = self._mark(_chats([*system, *request.messages])), request.state.get("promptguard_checked")
        if mark is not None and isinstance(checked, str) and hmac.compare_digest(mark, checked):
            return request
        admitted = yield from self._admit(system, request.messages)
        return None if admitted is None else request.override(messages=admitted)

    def _admit(self, system: Sequence[BaseMessage], messages: Sequence[BaseMessage]) -> _Asks[list[Any] | None]:
        """The messages that may go on; None if they may not."""
        admitted = list(messages)
        while True:
            decision = yield _chats([*system, *admitted])
            if decision.allowed:
                return admitted
            self._maybe_raise(decision)
            found = _PLACE.match(decision.parts[-1].where) if self._exit is ExitBehavior.REPLACE else None
            place = int(found[1]) - len(system) if found else -1
            if place < 0 or not _is_replaceable(admitted[place]):
                return None
            clean: dict[str, Any] = {"content": WITHHELD, "name": None, "additional_kwargs": {}}
            admitted[place] = admitted[place].model_copy(update=clean)

    def _answer(self, response: ModelResponse[Any]) -> _Asks[ModelResponse[Any] | AIMessage]:
        if not self._check_output or not any(map(_has_text, response.result)):
            return response
        decision = yield _chats(response.result)
        if decision.allowed:
            return response
        self._maybe_raise(decision)
        return self._refusal()

    def _tool_result(self, result: ToolMessage | Command[Any]) -> _Asks[ToolMessage | Command[Any]]:
        if not isinstance(result, ToolMessage) or not _has_text(result):
            return result
        decision = yield _chats([result])
        if decision.allowed:
            return result
        self._maybe_raise(decision)
        return ToolMessage(content=WITHHELD, tool_call_id=result.tool_call_id, name=result.name, status="error")

    def _maybe_raise(self, decision: Decision) -> None:
        if self._exit is ExitBehavior.ERROR:
            raise Blocked(decision)

    def _refusal(self) -> AIMessage:
        return AIMessage(self._guard.policy.refusal)

    def _held_back(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        if not self._check_output:
            return request
        if not isinstance(request.model, BaseChatModel):
            raise InvalidArgument("answers can be checked of a BaseChatModel only: other models stream on their own")
        tags = [*(request.model.tags or []), TAG_NOSTREAM]
        return request.override(model=request.model.model_copy(update={"tags": tags, "disable_streaming": True}))

    def _mark(self, chats: list[object]) -> str | None:
        trusted = self._guard.policy.trusted_roles
        checked = [chat for chat in chats if not (isinstance(chat, dict) and chat["role"] in trusted)]
        try:
            written = json.dumps(checked).encode()
        except (TypeError, ValueError):  # something that is no JSON: it is looked at again
            return None
        return hmac.digest(self._key, written, "sha256").hex()


class PromptGuardRunnable(RunnableSerializable[Any, Any]):
    """A link of a chain that passes its input on unchanged, or raises `Blocked`.

    It takes a text, a message, a list of messages, a prompt, documents, or a dict of these, all of whose values are
    checked. Put it behind a prompt template, not before: what a template makes an image of is text to the guard. What
    comes in a stream is collected first, so behind a model it holds back the whole answer. `with_fallbacks([...],
    exceptions_to_handle=(Blocked,))` gives a chain an answer to blocks.

    Attributes:
        guard: what decides.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: Guard

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Check the input.

        Raises:
            Blocked: the guard does not allow it.
        """
        return self._call_with_config(self._checked, input, config, run_type="chain", **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As `invoke`."""
        return await self._acall_with_config(self._achecked, input, config, run_type="chain", **kwargs)

    def _checked(self, value: Any) -> Any:
        read = read_input(value)
        return _passed(value, self.guard.check(read.x, context=read.context))

    async def _achecked(self, value: Any) -> Any:
        read = read_input(value)
        return _passed(value, await self.guard.acheck(read.x, context=read.context))


def _passed(value: _T, decision: Decision) -> _T:
    if not decision.allowed:
        raise Blocked(decision)
    return value


def _chats(messages: Sequence[BaseMessage]) -> list[object]:
    return [chat_of(message) for message in messages]


def _has_text(message: BaseMessage) -> bool:
    """Whether there is something to check: an answer may be empty, and an empty request is a block."""
    return len(chat_of(message)) > 1


def _is_replaceable(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage | ToolMessage) and message.content != WITHHELD
