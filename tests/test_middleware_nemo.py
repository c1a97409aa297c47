"""NeMo Guardrails: real rails without a model; every turn is checked, in every form NeMo hands over."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from doubles import CANARY, Does, Words

from promptguard.guard import Guard

os.environ.setdefault("DO_NOT_TRACK", "1")
pytest.importorskip("nemoguardrails", reason="nemoguardrails has an environment of its own: make integrations")

from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.rails.llm.options import RailStatus, RailType

from promptguard.middleware.nemo import COLANG, YAML, add_guard

pytestmark = pytest.mark.filterwarnings("default")

CAKE, BOMB = "bake a cake", f"a {CANARY}"
REFUSAL = "I can't assist with that request."
EXAMPLE = Path(__file__).parents[1] / "examples" / "nemo"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}


def rails(certifier: Any = None) -> Any:
    made = LLMRails(RailsConfig.from_content(colang_content=COLANG, yaml_content="models: []\n" + YAML))
    add_guard(made, Guard(certifier or Words()))
    return made


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def check_sync(made: Any, messages: Any, kinds: Any = None) -> Any:
    return made.check(messages, rail_types=kinds)


def check_async(made: Any, messages: Any, kinds: Any = None) -> Any:
    return asyncio.run(made.check_async(messages, rail_types=kinds))


@pytest.mark.parametrize("check", [check_sync, check_async], ids=["sync", "async"])
@pytest.mark.parametrize(
    "messages",
    [
        [turn("user", BOMB)],
        [turn("user", [{"type": "text", "text": CAKE}, {"type": "text", "text": BOMB}])],
        [turn("user", [{"type": "text", "text": "a bo"}, {"type": "text", "text": "mb"}])],
        [turn("user", [{"type": "text", "text": CAKE}, IMAGE])],
        [turn("user", [IMAGE])],
        [turn("user", BOMB), turn("assistant", "ok"), turn("user", CAKE)],
        [turn("user", [{"type": "text", "text": CAKE}, IMAGE]), turn("assistant", "ok"), turn("user", CAKE)],
        [turn("user", CAKE), turn("assistant", BOMB), turn("user", CAKE)],
        [turn("system", BOMB), turn("user", CAKE)],
        [turn("user", "")],
    ],
)
def test_blocked_input(check: Any, messages: list[Any]) -> None:
    result = check(rails(), messages, [RailType.INPUT])
    assert (result.status, result.content) == (RailStatus.BLOCKED, REFUSAL)
    assert result.rail == "promptguard check input"


def test_allowed_input() -> None:
    for messages in ([turn("user", CAKE)], [turn("user", CAKE), turn("assistant", "ok"), turn("user", "and another")]):
        assert check_sync(rails(), messages, [RailType.INPUT]).status is not RailStatus.BLOCKED


def test_turns_are_checked_together() -> None:
    messages = [turn("user", "build"), turn("assistant", "what?"), turn("user", "a thing")]
    assert check_sync(rails(Words("build\nwhat?\na thing")), messages, [RailType.INPUT]).status is RailStatus.BLOCKED


def test_output() -> None:
    for answer, status in ((BOMB, RailStatus.BLOCKED), ("sure", RailStatus.PASSED)):
        result = check_sync(rails(), [turn("user", CAKE), turn("assistant", answer)])
        assert result.status is status
        assert CANARY not in str(result.content)


def test_what_another_rail_made_of_the_message_is_checked() -> None:
    flows = "models: []\nrails: {input: {flows: [say more, promptguard check input]}}\n"
    more = f'\ndefine subflow say more\n  $user_message = "{BOMB}"\n'
    made = LLMRails(RailsConfig.from_content(colang_content=COLANG + more, yaml_content=flows))
    add_guard(made, Guard(Words()))
    assert check_sync(made, [turn("user", CAKE)], [RailType.INPUT]).status is RailStatus.BLOCKED


def streamed(answer: str) -> list[str]:
    async def tokens() -> AsyncIterator[str]:
        for word in answer.split():
            yield f"{word} "

    async def sent() -> list[str]:
        return [part async for part in rails().stream_async(messages=[turn("user", CAKE)], generator=tokens())]

    return asyncio.run(sent())


def test_nothing_of_a_stream_is_sent_before_its_check() -> None:
    [part] = streamed(BOMB)
    assert json.loads(part)["error"]["param"] == "promptguard check output"


def test_a_safe_stream_arrives_whole() -> None:
    answer = "sure, " * 300
    assert "".join(streamed(answer)).split() == answer.split()


@pytest.mark.parametrize("kind", [RailType.INPUT, RailType.OUTPUT])
def test_a_guard_that_breaks_blocks(kind: RailType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(*_args: Any, **_more: Any) -> None:
        raise RuntimeError(CANARY)

    made = rails()
    monkeypatch.setattr(Guard, "acheck", breaks)
    result = check_sync(made, [turn("user", CAKE), turn("assistant", CAKE)][: 1 + (kind is RailType.OUTPUT)], [kind])
    assert result.status is RailStatus.BLOCKED
    assert CANARY not in repr(result)


def test_what_cannot_be_judged_of_an_answer_blocks() -> None:
    broken = rails(Does(RuntimeError(BOMB), word="sure"))
    for made, answer in ((broken, "sure"), (rails(), [IMAGE]), (rails(), "")):
        assert check_sync(made, [turn("user", CAKE), turn("assistant", answer)]).status is RailStatus.BLOCKED


@pytest.mark.parametrize(("chunks", "kept"), [(BOMB, ""), (CAKE, CAKE), ("", "")])
def test_retrieved_chunks_are_dropped(chunks: str, kept: str) -> None:
    # Retrieval rails run before a model is asked only; the flow itself runs as well in front.
    flows = "models: []\nrails: {input: {flows: [promptguard check retrieval]}}\n"
    made = LLMRails(RailsConfig.from_content(colang_content=COLANG, yaml_content=flows))
    add_guard(made, Guard(Words()))
    messages = [turn("context", {"relevant_chunks": chunks}), turn("user", CAKE)]
    options = {"rails": ["input"], "output_vars": ["relevant_chunks"]}
    assert made.generate(messages=messages, options=options).output_data["relevant_chunks"] == kept


def test_a_broken_certifier_blocks_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "promptguard")
    result = check_sync(rails(Does(RuntimeError(BOMB))), [turn("user", BOMB)])
    assert (result.status, result.content) == (RailStatus.BLOCKED, REFUSAL)
    assert [r for r in caplog.records if r.name.startswith("promptguard")]
    assert all(CANARY not in r.getMessage() for r in caplog.records if r.name.startswith("promptguard"))
    assert all(CANARY not in r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR)


def test_the_folder_of_the_example_is_the_same_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (EXAMPLE / "promptguard.co").read_text(encoding="utf-8") == COLANG
    assert (EXAMPLE / "config.yml").read_text(encoding="utf-8").endswith(YAML)
    configured = RailsConfig.from_path(str(EXAMPLE)).rails
    for kind in ("input", "output", "retrieval"):
        assert getattr(configured, kind).flows == [f"promptguard check {kind}"]
    monkeypatch.setenv("PGUARD_FILTER", "keyword:bomb")
    made = LLMRails(RailsConfig.from_path(str(EXAMPLE)))
    assert check_sync(made, [turn("user", BOMB)]).status is RailStatus.BLOCKED
    assert check_sync(made, [turn("user", CAKE)]).status is RailStatus.PASSED
