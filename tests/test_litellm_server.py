"""`promptguard serve` beside LiteLLM's proxy and behind it: real processes, the real client, and a model that counts.

The proxy's configuration is the example's, with addresses and a model for each test's purpose put in.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from serving import CANARY, SAID, Fake, completion, live, streamed
from starlette.responses import JSONResponse, Response
from test_serve_live import process

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
pytest.importorskip("litellm.proxy", reason="litellm has an environment of its own: make integrations")

EXAMPLE = Path(__file__).parents[1] / "examples" / "litellm_server.yaml"
MASTER_KEY = "sk-5f0c6a1e9b7d42f38e21"  # the proxy starts with no weaker one
GUARD_KEY = "a-key-of-the-guard-server"
REFUSAL = "I can't assist with that request."
CAKE, BOMB, GUN = "bake a cake", f"a {CANARY} bomb", f"a {CANARY} gun"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
# The guardrail's server knows bombs, the servers in front of the model know guns: what blocked is seen from the text.
ASIDE, AHEAD, POLITE, EVIL = "my-other-model", "my-guarded-model", "polite", "evil"


@dataclass(frozen=True)
class Stage:
    """Everything that runs.

    Attributes:
        client: of the proxy.
        fake: the model behind it all.
        guard: the guardrail's server.
        restart: starts that server again, on its old port.
    """

    client: openai.OpenAI
    fake: Fake
    guard: subprocess.Popen[str]
    restart: Any

    def ask(self, model: str, content: Any, **more: Any) -> Any:
        messages = content if isinstance(content, list) and "role" in content[0] else [user(content)]
        return self.client.chat.completions.create(model=model, messages=messages, **more)


def user(content: Any, **more: Any) -> Any:
    return {"role": "user", "content": content, **more}


def called(arguments: str, result: str = "ok") -> list[Any]:
    """A conversation with a call of a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        user(CAKE),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]


def tool(description: str) -> dict[str, Any]:
    function = {"name": "f", "description": description, "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def says(body: dict[str, Any]) -> Response:
    text = BOMB if body["model"] == EVIL else SAID
    if body.get("stream"):
        return Response(streamed(text), media_type="text/event-stream")
    return JSONResponse(completion(text))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def guard_file(word: str, **more: Any) -> str:
    key = {"name": "proxy", "sha256": hashlib.sha256(GUARD_KEY.encode()).hexdigest()}
    return yaml.safe_dump({"certifier": {"filter": f"keyword:{word}"}, "keys": [key], **more})


def proxy_file(model: str, aside: str, ahead: str, polite: str) -> str:
    """The example, with these addresses."""
    config: Any = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    guarded, other = (entry["litellm_params"] for entry in config["model_list"])
    [guardrail] = (entry["litellm_params"] for entry in config["guardrails"])
    guarded["api_base"], other["api_base"], guardrail["api_base"] = f"{ahead}/v1", f"{model}/v1", aside
    config["model_list"] += [
        {"model_name": POLITE, "litellm_params": guarded | {"api_base": f"{polite}/v1"}},
        {"model_name": EVIL, "litellm_params": other | {"model": f"openai/{EVIL}"}},
    ]
    wrong = guardrail | {"api_key": "another-key", "default_on": False}
    config["guardrails"].append({"guardrail_name": "wrong key", "litellm_params": wrong})
    config["general_settings"] = {"master_key": MASTER_KEY}
    return yaml.safe_dump(config)


@contextmanager
def proxy(folder: Path, text: str) -> Iterator[str]:
    """`litellm --config`: its address."""
    path, port = folder / "litellm.yaml", free_port()
    path.write_text(text, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(path)]
    env = os.environ | {"PROMPTGUARD_KEY": GUARD_KEY, "OPENAI_API_KEY": "key-of-the-model"}
    with (folder / "litellm.log").open("wb") as log:
        running = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log, env=env
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health/liveliness", running)
        yield url
    finally:
        running.terminate()
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(url: str, running: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and running.poll() is None:
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.2)
    raise AssertionError("the proxy did not start")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    fake, port = Fake(says), str(free_port())
    with ExitStack() as stack:
        model = stack.enter_context(live(fake.app()))

        def guard(*arguments: str, **config: Any) -> tuple[subprocess.Popen[str], str]:
            folder = tmp_path_factory.mktemp("guard")
            running, url, _ = stack.enter_context(process(folder, guard_file(**config), *arguments))
            wait_for(f"{url}/readyz", running)
            return running, url

        def aside() -> tuple[subprocess.Popen[str], str]:
            return guard("--port", port, word="bomb")

        running, beside = aside()
        behind: dict[str, Any] = {"word": "gun", "upstream": {"url": f"{model}/v1"}}
        _, ahead = guard(**behind)
        _, polite = guard(**behind, block_mode="refusal")
        address = stack.enter_context(
            proxy(tmp_path_factory.mktemp("litellm"), proxy_file(model, beside, ahead, polite))
        )
        client = stack.enter_context(openai.OpenAI(api_key=MASTER_KEY, base_url=f"{address}/v1", max_retries=0))
        yield Stage(client, fake, running, lambda: aside()[0])


@pytest.fixture(autouse=True)
def nothing_asked(stage: Stage) -> None:
    stage.fake.bodies.clear()


def said(answer: Any) -> str:
    """The words of an answer, streamed or not."""
    if isinstance(answer, openai.Stream):
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    return str(answer.choices[0].message.content)


# The server beside the proxy: LiteLLM's generic guardrail.

BLOCKED: dict[str, dict[str, Any]] = {
    "text": {"content": BOMB},
    "part": {"content": [{"type": "text", "text": CAKE}, {"type": "text", "text": BOMB}]},
    "system": {"content": [{"role": "system", "content": BOMB}, user(CAKE)]},
    "earlier turn": {"content": [user(BOMB), {"role": "assistant", "content": "ok"}, user(CAKE)]},
    "arguments of a call": {"content": called(f'{{"x": "{BOMB}"}}')},
    "result of a call": {"content": called("{}", BOMB)},
    "tool": {"content": CAKE, "tools": [tool(BOMB)]},
    "image beside text": {"content": [{"type": "text", "text": CAKE}, IMAGE]},
    "file beside text": {
        "content": [{"type": "text", "text": CAKE}, {"type": "file", "file": {"file_data": "data:text/plain,x"}}]
    },
}
PASSED: dict[str, dict[str, Any]] = {
    "text": {"content": CAKE},
    "call": {"content": called('{"x": "a cake"}')},
    "tool": {"content": CAKE, "tools": [tool("bakes")]},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("carrier", BLOCKED)
def test_the_guardrail_blocks_what_never_reaches_the_model(stage: Stage, carrier: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stage.ask(ASIDE, stream=stream, **BLOCKED[carrier])
    assert caught.value.body == {
        "message": REFUSAL,
        "type": "invalid_request_error",
        "param": None,
        "code": "400",
    }
    assert CANARY not in caught.value.response.text
    assert stage.fake.bodies == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("carrier", PASSED)
def test_what_is_safe_passes_the_guardrail(stage: Stage, carrier: str, stream: bool) -> None:
    assert said(stage.ask(ASIDE, stream=stream, **PASSED[carrier])) == SAID
    [asked] = stage.fake.asked
    assert asked["messages"][0] == user(CAKE)
    assert len(asked["messages"]) == (3 if carrier == "call" else 1)
    assert stage.fake.headers[-1]["authorization"] == "Bearer key-of-the-model"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": BOMB}),
        ("responses", {"input": BOMB}),
        ("embeddings", {"input": [BOMB]}),
        ("messages", {"max_tokens": 5, "messages": [user(BOMB)]}),
    ],
)
def test_the_guardrail_is_asked_on_other_routes(stage: Stage, path: str, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="can't assist"):
        stage.client.post(f"/{path}", body={"model": ASIDE, **body}, cast_to=object)
    assert stage.fake.bodies == []


def test_the_guardrail_blocks_answers_but_not_the_first_words_of_streams(stage: Stage) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stage.ask(EVIL, CAKE)
    assert CANARY not in caught.value.response.text
    with pytest.raises(openai.APIError, match="can't assist"):
        said(stage.ask(EVIL, CAKE, stream=True))
    assert len(stage.fake.bodies) == 2


UNSEEN: dict[str, Any] = {
    "field of a message": lambda text: {"content": [user(CAKE, reasoning_content=text)]},
    "extra body": lambda text: {"content": CAKE, "extra_body": {"extra_body": {"messages": [user(text)]}}},
    "format of the answer": lambda text: {
        "content": CAKE,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "description": text, "schema": {"type": "object"}},
        },
    },
    "nothing but an image": lambda _: {"content": [IMAGE]},
}


@pytest.mark.parametrize("carrier", UNSEEN)
def test_what_litellm_does_not_show_its_guardrail_is_seen_by_the_server_in_front_of_the_model(
    stage: Stage, carrier: str
) -> None:
    # The reason why the example says which of both to take; if LiteLLM shows more one day, it may say less.
    assert said(stage.ask(ASIDE, **UNSEEN[carrier](BOMB))) == SAID
    assert len(stage.fake.bodies) == 1
    with pytest.raises(openai.BadRequestError, match="blocked by promptguard"):
        stage.ask(AHEAD, **UNSEEN[carrier](GUN))
    assert len(stage.fake.bodies) == 1


def test_a_guardrail_with_a_wrong_key_blocks(stage: Stage) -> None:
    with pytest.raises(openai.InternalServerError):
        stage.ask(ASIDE, CAKE, extra_body={"guardrails": ["wrong key"]})
    assert stage.fake.bodies == []


def test_without_the_server_the_proxy_blocks_and_with_it_again_it_serves(stage: Stage) -> None:
    assert said(stage.ask(ASIDE, CAKE)) == SAID
    stage.guard.send_signal(signal.SIGKILL)
    stage.guard.wait()
    for content in (CAKE, BOMB):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                stage.ask(ASIDE, content, stream=stream)
            assert CANARY not in caught.value.response.text
    assert len(stage.fake.bodies) == 1
    stage.restart()
    assert said(stage.ask(ASIDE, CAKE)) == SAID
    with pytest.raises(openai.BadRequestError):
        stage.ask(ASIDE, BOMB)
    assert len(stage.fake.bodies) == 2


# The server in front of the model.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        GUN,
        [{"type": "text", "text": CAKE}, {"type": "text", "text": GUN}],
        called(f'{{"x": "{GUN}"}}'),
        called("{}", GUN),
    ],
    ids=["text", "part", "arguments", "result"],
)
def test_a_block_is_the_servers_error_through_the_proxy(stage: Stage, content: Any, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stage.ask(AHEAD, content, stream=stream)
    body: Any = caught.value.body
    assert "blocked by promptguard: the text was flagged" in body["message"]
    assert (body["type"], body["param"], body["code"]) == ("invalid_request_error", "messages", "400")
    assert CANARY not in caught.value.response.text
    assert stage.fake.bodies == []


def test_a_refusal_is_a_completion_through_the_proxy(stage: Stage) -> None:
    choice = stage.ask(POLITE, GUN).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("content_filter", REFUSAL)
    chunks = list(stage.ask(POLITE, GUN, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REFUSAL
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert stage.fake.bodies == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [AHEAD, POLITE])
def test_what_is_safe_comes_back_through_both(stage: Stage, model: str, stream: bool) -> None:
    assert said(stage.ask(model, CAKE, stream=stream)) == SAID
    assert said(stage.ask(model, called('{"x": "a cake"}'), stream=stream)) == SAID
    first, second = stage.fake.asked
    assert first["messages"] == [user(CAKE)]
    assert second["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": "a cake"}'
