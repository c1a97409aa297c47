"""LangChain: nothing reaches the model, and no answer its reader, before a verdict; async does what sync does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from doubles import CANARY, Does, Words

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Action, Guard, Policy

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, dynamic_prompt
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.runtime import Runtime

from promptguard.middleware.langchain import WITHHELD, PromptGuardMiddleware, PromptGuardRunnable
from promptguard.middleware.langchain_messages import chat_of, read_input

REFUSAL = Policy().refusal
CAKE, BOMB = "bake a cake", f"a {CANARY}"


class Model(GenericFakeChatModel):
    """Answers from a list, word by word if it is streamed; remembers what it was given."""

    given: list[list[BaseMessage]] = []  # noqa: RUF012  (pydantic copies it)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.given.append(messages)
        return super()._generate(messages, *args, **kwargs)


def model(*answers: str | AIMessage) -> Model:
    found = [AIMessage(answer) if isinstance(answer, str) else answer for answer in answers]
    return Model(messages=iter(found), given=[])


@tool
def look(what: str) -> str:
    """Look something up."""
    return f"found: {what}"


def calling(what: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "look", "args": {"what": what}, "id": "1"}])


def guarded(llm: Model, *middleware: Any, policy: Policy | None = None, **options: Any) -> Any:
    made = {name: options.pop(name) for name in ("exit_behavior", "check_output") if name in options}
    guard = options.pop("guard", None) or Guard(Words(), policy)
    return create_agent(llm, [look], middleware=[*middleware, PromptGuardMiddleware(guard, **made)], **options)


def run_sync(agent: Any, messages: list[Any]) -> list[BaseMessage]:
    found: list[BaseMessage] = agent.invoke({"messages": messages})["messages"]
    return found


def run_async(agent: Any, messages: list[Any]) -> list[BaseMessage]:
    found: list[BaseMessage] = asyncio.run(agent.ainvoke({"messages": messages}))["messages"]
    return found


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[[Any, list[Any]], list[BaseMessage]]:
    """Every law holds for both ways to call an agent."""
    return request.param  # type: ignore[no-any-return]


def test_allowed_messages_give_the_bare_agents_answer(run: Any) -> None:
    llm = model("sure, a cake")
    assert run(guarded(llm, system_prompt="be kind"), [HumanMessage(CAKE)])[-1].content == "sure, a cake"
    assert [m.content for m in llm.given[0]] == ["be kind", CAKE]


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage(BOMB)],
        [{"role": "user", "content": BOMB}],
        [HumanMessage(BOMB), AIMessage("no"), HumanMessage(CAKE)],
        [HumanMessage(CAKE), AIMessage(BOMB), HumanMessage(CAKE)],
        [SystemMessage(BOMB), HumanMessage(CAKE)],
        [ChatMessage(content=BOMB, role="user")],
        [ChatMessage(content=CAKE, role="wizard")],
        [HumanMessage([{"type": "text", "text": "a bo"}, {"type": "text", "text": "mb"}])],
        [HumanMessage([{"type": "image_url", "image_url": {"url": "https://x.org/cat.png"}}])],
        [HumanMessage([{"type": "text", "text": CAKE}, {"type": "image", "base64": "eA==", "mime_type": "image/png"}])],
        [HumanMessage(CAKE), calling(BOMB), ToolMessage("found", tool_call_id="1")],
        [HumanMessage(CAKE), calling(CAKE), ToolMessage(BOMB, tool_call_id="1")],
        [HumanMessage(CAKE), calling(CAKE), ToolMessage(CAKE, tool_call_id=BOMB)],
        [HumanMessage(CAKE, name=BOMB)],
        [HumanMessage(CAKE, additional_kwargs={"reasoning_content": BOMB})],
        [HumanMessage(CAKE), AIMessage([{"type": "thinking", "thinking": BOMB}]), HumanMessage(CAKE)],
        [HumanMessage("")],
    ],
)
def test_whatever_carries_the_text_the_model_is_not_called(run: Any, messages: list[Any]) -> None:
    llm = model("never")
    assert run(guarded(llm), messages)[-1].content == REFUSAL
    assert llm.given == []


def test_a_payload_split_over_turns_is_seen(run: Any) -> None:
    llm = model("never")
    agent = guarded(llm, guard=Guard(Words("build\na bomb")))
    assert run(agent, [HumanMessage("build"), HumanMessage("a bomb")])[-1].content == REFUSAL
    assert llm.given == []


def test_blocks_of_tools_and_thinking_are_read_not_refused(run: Any) -> None:
    said = AIMessage([
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": CAKE},
        {"type": "tool_use", "id": "1", "name": "look", "input": {"what": CAKE}},
    ])  # fmt: skip
    llm = model("done")
    assert run(guarded(llm), [HumanMessage(CAKE), said, ToolMessage("y", tool_call_id="1")])[-1].content == "done"


def test_the_system_prompt_and_what_other_middleware_puts_in_it_are_checked(run: Any) -> None:
    @dynamic_prompt
    def retrieved(request: Any) -> str:
        return f"Answer from these documents: {BOMB}"

    for options in ({"system_prompt": BOMB}, {}):
        llm = model("never")
        more: Any = options
        agent = guarded(llm, *([] if options else [retrieved]), **more)
        # The other middleware has a synchronous hook only.
        call = run_sync if not options else run
        assert call(agent, [HumanMessage(CAKE)])[-1].content == REFUSAL
        assert llm.given == []
    trusting = Policy(trusted_roles=frozenset({"system"}))
    assert run(guarded(model("ok"), policy=trusting, system_prompt=BOMB), [HumanMessage(CAKE)])[-1].content == "ok"


class Adds(AgentMiddleware[Any, Any, Any]):
    """Changes the messages on their way to the model."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(messages=[*request.messages, HumanMessage(BOMB)]))


class CallsAModel(AgentMiddleware[Any, Any, Any]):
    """As summarisation does: gives the messages to a model before the agent's model call."""

    def __init__(self, llm: Model) -> None:
        self.llm = llm

    def before_model(self, state: Any, runtime: Any) -> None:
        self.llm.invoke(state["messages"])


def test_messages_that_other_middleware_adds_are_checked_although_the_state_was() -> None:
    llm = model("never")
    assert run_sync(guarded(llm, Adds()), [HumanMessage(CAKE)])[-1].content == REFUSAL
    assert llm.given == []


def test_other_middleware_gives_its_model_nothing_unchecked() -> None:
    summary = model("never")
    agent = guarded(model("never"), CallsAModel(summary))
    assert run_sync(agent, [HumanMessage(BOMB)])[-1].content == REFUSAL
    assert summary.given == []


def test_unchanged_messages_are_checked_once_and_a_mark_from_the_client_is_worth_nothing() -> None:
    certifier = Words()
    run_sync(guarded(model("ok"), guard=Guard(certifier)), [HumanMessage(CAKE)])
    assert certifier.seen == [CAKE]
    agent = guarded(model("never"))
    for mark in ("", "0" * 64, None):
        state = agent.invoke({"messages": [HumanMessage(BOMB)], "promptguard_checked": mark})
        assert state["messages"][-1].content == REFUSAL
        assert "promptguard_checked" not in state


def test_a_mark_of_another_guard_is_worth_nothing() -> None:
    messages: list[Any] = [HumanMessage(BOMB)]
    lax = PromptGuardMiddleware(Guard(Words("unheard of")))
    state: Any = {"messages": messages, **(lax.before_agent({"messages": messages}, Runtime()) or {})}
    assert isinstance(state["promptguard_checked"], str)
    request: Any = ModelRequest(model=model("never"), messages=messages, state=state)
    given: list[Any] = []
    answer = PromptGuardMiddleware(Guard(Words())).wrap_model_call(request, given.append)  # type: ignore[arg-type]
    assert (answer.content, given) == (REFUSAL, [])  # type: ignore[union-attr]


def test_messages_that_cannot_be_marked_are_looked_at_again() -> None:
    llm = model("never")
    odd = HumanMessage(CAKE, additional_kwargs={"tags": {1, 2}})  # a set is no JSON
    lenient = Policy(on_unscannable=Action.ALLOW)
    assert run_sync(guarded(llm, Adds(), policy=lenient), [odd])[-1].content == REFUSAL
    assert llm.given == []


def test_what_is_withheld_at_the_model_call_does_not_reach_the_model() -> None:
    llm = model("ok")
    agent = guarded(llm, Adds(), exit_behavior="replace", system_prompt="be kind")
    assert run_sync(agent, [HumanMessage(CAKE)])[-1].content == "ok"
    assert [m.content for m in llm.given[0]] == ["be kind", CAKE, WITHHELD]


def test_every_message_that_is_to_blame_is_withheld(run: Any) -> None:
    llm = model("ok")
    messages = [
        HumanMessage(BOMB),
        HumanMessage(CAKE),
        HumanMessage(CAKE, additional_kwargs={"x": BOMB}),
        HumanMessage(CAKE, name=BOMB),
    ]
    assert run(guarded(llm, exit_behavior="replace"), messages)[-1].content == "ok"
    assert [m.content for m in llm.given[0]] == [WITHHELD, CAKE, WITHHELD, WITHHELD]
    assert CANARY not in str(llm.given)


def test_tool_results_are_withheld(run: Any) -> None:
    @tool
    def poisoned(what: str) -> str:
        """Look something up."""
        return BOMB

    llm = model(AIMessage("", tool_calls=[{"name": "poisoned", "args": {"what": "x"}, "id": "1"}]), "done")
    agent = create_agent(llm, [poisoned], middleware=[PromptGuardMiddleware(Guard(Words()))])
    messages = run(agent, [HumanMessage(CAKE)])
    assert [m.content for m in messages] == [CAKE, "", WITHHELD, "done"]
    assert isinstance(messages[2], ToolMessage)
    assert messages[2].status == "error"
    assert all(CANARY not in str(given) for given in llm.given)


def test_allowed_tool_results_pass(run: Any) -> None:
    messages = run(guarded(model(calling(CAKE), "done")), [HumanMessage(CAKE)])
    assert [m.content for m in messages] == [CAKE, "", f"found: {CAKE}", "done"]


def test_exit_behavior_error_raises_without_text(run: Any) -> None:
    with pytest.raises(Blocked) as caught:
        run(guarded(model("never"), exit_behavior="error"), [HumanMessage(BOMB)])
    assert CANARY not in repr(caught.value) + str(caught.value.__notes__ if hasattr(caught.value, "__notes__") else "")
    with pytest.raises(Blocked):
        run(guarded(model(BOMB), exit_behavior="error", check_output=True), [HumanMessage(CAKE)])
    with pytest.raises(InvalidArgument, match="end, error, replace"):
        PromptGuardMiddleware(Guard(Words()), exit_behavior="stop")


def test_exit_behavior_replace_withholds_the_message_in_model_and_memory(run: Any) -> None:
    llm = model("fine")
    messages = run(
        guarded(llm, exit_behavior="replace"),
        [HumanMessage(BOMB, name="bomb"), AIMessage("no"), HumanMessage(CAKE)],
    )
    assert [m.content for m in messages] == [WITHHELD, "no", CAKE, "fine"]
    assert [m.content for m in llm.given[0]] == [WITHHELD, "no", CAKE]
    assert messages[0].name is None


@pytest.mark.parametrize(
    "messages",
    [[AIMessage(BOMB)], [SystemMessage(BOMB)], [HumanMessage("")]],
)
def test_what_cannot_be_replaced_ends(run: Any, messages: list[Any]) -> None:
    llm = model("never")
    assert run(guarded(llm, exit_behavior="replace"), messages)[-1].content == REFUSAL
    assert llm.given == []


def test_replace_ends_when_the_marker_itself_is_blocked(run: Any) -> None:
    guard = Guard(Words(word=WITHHELD))
    assert (
        run(guarded(model("no"), exit_behavior="replace", guard=guard), [HumanMessage(WITHHELD)])[-1].content == REFUSAL
    )


# Answers


def test_answers_are_not_checked_unless_asked_for(run: Any) -> None:
    assert run(guarded(model(BOMB)), [HumanMessage(CAKE)])[-1].content == BOMB


@pytest.mark.parametrize("answer", [AIMessage(BOMB), calling(BOMB), AIMessage([{"type": "text", "text": BOMB}])])
def test_blocked_answers_leave_no_trace_in_the_state(run: Any, answer: AIMessage) -> None:
    messages = run(guarded(model(answer), check_output=True), [HumanMessage(CAKE)])
    assert [m.content for m in messages] == [CAKE, REFUSAL]
    assert CANARY not in str(messages)


def test_allowed_answers_pass_the_output_check(run: Any) -> None:
    messages = run(guarded(model(calling(CAKE), "done"), check_output=True), [HumanMessage(CAKE)])
    assert [m.content for m in messages] == [CAKE, "", f"found: {CAKE}", "done"]
    assert run(guarded(model(""), check_output=True), [HumanMessage(CAKE)])[-1].content == ""


LONG = f"one two three {CANARY} four"


@pytest.mark.parametrize("mode", ["messages", "updates", "values", "custom", "debug"])
def test_no_token_is_streamed_before_the_verdict(mode: str) -> None:
    agent = guarded(model(LONG), check_output=True)
    for part in agent.stream({"messages": [HumanMessage(CAKE)]}, stream_mode=mode):
        assert "three" not in str(part)

    async def asynchronously() -> None:
        agent = guarded(model(LONG), check_output=True)
        async for part in agent.astream({"messages": [HumanMessage(CAKE)]}, stream_mode=mode):
            assert "three" not in str(part)

    asyncio.run(asynchronously())


def test_a_held_back_stream_is_one_message() -> None:
    agent = guarded(model("one two three"), check_output=True)
    parts = list(agent.stream({"messages": [HumanMessage(CAKE)]}, stream_mode="messages"))
    assert [part[0].content for part in parts] == ["one two three"]


def test_without_output_check_tokens_stream() -> None:
    agent = guarded(model("one two three"))
    assert len(list(agent.stream({"messages": [HumanMessage(CAKE)]}, stream_mode="messages"))) > 1


def test_events_hold_no_token_before_the_verdict() -> None:
    async def kinds() -> set[str]:
        agent = guarded(model(LONG), check_output=True)
        events = [event async for event in agent.astream_events({"messages": [HumanMessage(CAKE)]}, version="v2")]
        return {event["event"] for event in events if "three" in str(event["data"].get("chunk", ""))}

    assert asyncio.run(kinds()) == set()


def test_a_model_that_streams_on_its_own_is_refused_when_answers_are_checked() -> None:
    class Other(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model=RunnableLambda(lambda _: AIMessage(BOMB))))

    with pytest.raises(InvalidArgument, match="BaseChatModel"):
        run_sync(guarded(model("x"), Other(), check_output=True), [HumanMessage(CAKE)])


# Failures and secrecy


@pytest.mark.parametrize("outcome", [RuntimeError(BOMB), None, "safe"])
def test_a_broken_certifier_blocks(run: Any, outcome: Any) -> None:
    llm = model("never")
    assert run(guarded(llm, guard=Guard(Does(outcome))), [HumanMessage(CAKE)])[-1].content == REFUSAL
    assert llm.given == []


def test_turns_of_a_remembered_conversation_are_checked_together(run: Any) -> None:
    llm = model("hm", "never")
    agent = guarded(llm, guard=Guard(Words("build\nhm\na bomb")), checkpointer=InMemorySaver())
    agent = agent.with_config({"configurable": {"thread_id": "1"}})
    assert run(agent, [HumanMessage("build")])[-1].content == "hm"
    assert run(agent, [HumanMessage("a bomb")])[-1].content == REFUSAL
    assert run(agent, [HumanMessage(CAKE)])[-1].content == REFUSAL
    assert len(llm.given) == 1


def test_no_text_in_logs(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "promptguard")
    run(guarded(model("never")), [HumanMessage(BOMB)])
    run(guarded(model(BOMB), check_output=True), [HumanMessage(CAKE)])
    assert caplog.records
    assert CANARY not in caplog.text


# The Runnable


def call_sync(chain: Any, value: Any) -> Any:
    return chain.invoke(value)


def call_async(chain: Any, value: Any) -> Any:
    return asyncio.run(chain.ainvoke(value))


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[[Any, Any], Any]:
    return request.param  # type: ignore[no-any-return]


PROMPT = ChatPromptTemplate.from_messages([("system", "be kind"), ("human", "{question}")])
INPUTS: list[Callable[[str], Any]] = [
    lambda text: text,
    lambda text: [HumanMessage(text)],
    lambda text: [("human", text)],
    lambda text: [{"role": "user", "content": text}],
    lambda text: [{"role": "user", "content": CAKE}, {"role": "assistant", "content": text}],
    AIMessage,
    calling,
    lambda text: {"messages": [("human", text)]},
    lambda text: {"question": CAKE, "history": [HumanMessage(text)]},
    lambda text: {"question": CAKE, "docs": [Document(CAKE), Document(text)]},
    lambda text: {"question": CAKE, "deep": {"list": [CAKE, {"of": text}]}},
    lambda text: {"message": {"role": "user", "content": text}},
    lambda text: {"role": "user", "content": text},
    Document,
    lambda text: Document(CAKE, metadata={"title": text}),
    lambda text: PROMPT.invoke({"question": text}),
    lambda text: FunctionMessage(content=text, name="f"),
]


@pytest.mark.parametrize("make", INPUTS)
def test_a_link_passes_its_input_unchanged_or_raises(call: Any, make: Callable[[str], Any]) -> None:
    link = PromptGuardRunnable(guard=Guard(Words()))
    allowed = make(CAKE)
    assert call(link, allowed) is allowed
    with pytest.raises(Blocked) as caught:
        call(link, make(BOMB))
    assert CANARY not in repr(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "",
        [],
        {},
        b"cake",
        object(),
        [object()],
        {"x": object()},
        [7],
        ("cake", object()),
        {"message": {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.org/i.png"}}]}},
        [HumanMessage([{"type": "image_url", "image_url": {"url": "https://x.org/i.png"}}])],
        [{"role": "wizard", "content": CAKE}],
    ],
)
def test_what_cannot_be_read_is_blocked(call: Any, value: Any) -> None:
    with pytest.raises(Blocked):
        call(PromptGuardRunnable(guard=Guard(Words())), value)


def test_a_chain_with_a_fallback() -> None:
    llm = model("sure")
    chain = (PROMPT | PromptGuardRunnable(guard=Guard(Words())) | llm).with_fallbacks(
        [RunnableLambda(lambda _: AIMessage(REFUSAL))], exceptions_to_handle=(Blocked,)
    )
    assert chain.invoke({"question": BOMB}).content == REFUSAL
    assert llm.given == []
    assert chain.invoke({"question": CAKE}).content == "sure"
    assert chain.batch([{"question": BOMB}])[0].content == REFUSAL


def test_behind_a_model_it_holds_back_the_stream() -> None:
    chain = model(LONG) | PromptGuardRunnable(guard=Guard(Words()))
    with pytest.raises(Blocked):
        next(iter(chain.stream(CAKE)))
    allowed = model("one two") | PromptGuardRunnable(guard=Guard(Words()))
    assert "".join(str(part.content) for part in allowed.stream(CAKE)) == "one two"


def test_the_policy_may_let_images_pass() -> None:
    guard = Guard(Words(), Policy(on_unscannable=Action.ALLOW))
    link = PromptGuardRunnable(guard=guard)
    image = {"type": "image_url", "image_url": {"url": "https://x.org/i.png"}}
    message = HumanMessage([{"type": "text", "text": CAKE}, image])
    assert link.invoke([message]) == [message]
    with pytest.raises(Blocked):
        link.invoke([HumanMessage([{"type": "text", "text": BOMB}, image])])


def test_what_is_read_of_a_message() -> None:
    message = AIMessage("hi", name="bot", id="x", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}])
    chat = chat_of(message)
    assert (chat["role"], chat["content"], chat["name"]) == ("assistant", "hi", "bot")
    assert "x" not in chat.values()
    assert chat["tool_calls"][0]["args"] == {"a": 1}
    assert read_input("hi").x == "hi"


def test_roles_and_every_message_of_a_prompt_are_read_as_they_are() -> None:
    assert chat_of(ToolMessage("x", tool_call_id="1"))["role"] == "tool"  # a policy may trust "system"
    assert chat_of(ChatMessage(content="x", role="wizard"))["role"] == "wizard"
    bad = {"name": "f", "args": BOMB, "id": "1", "error": None, "type": "invalid_tool_call"}
    assert BOMB in str(chat_of(AIMessage("x", invalid_tool_calls=[bad])))
    prompt = ChatPromptTemplate.from_messages([("human", BOMB), ("ai", "no"), ("human", CAKE)]).invoke({})
    assert [message["content"] for message in read_input(prompt).x] == [BOMB, "no", CAKE]  # type: ignore[attr-defined]
    assert read_input({"x": {"a": object()}}).x == [None]  # what is no text is unscannable
