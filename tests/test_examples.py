"""The example applications run, stay short, and block what they should."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from doubles import CANARY

EXAMPLES = Path(__file__).parents[1] / "examples"
CAKE, BOMB = "bake a cake", f"a {CANARY}"
APPS = [
    path
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("nemo/*")]
    if path.is_file() and not path.name.startswith("demo")
]
REFUSAL = "I can't assist with that request."


@pytest.fixture(autouse=True)
def keyword_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUARD_FILTER", "keyword:bomb")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", APPS, ids=lambda path: path.name)
def test_examples_have_at_most_30_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30


def test_plain_function() -> None:
    for question, answer in ((CAKE, f"You asked: {CAKE}"), (BOMB, REFUSAL)):
        command = [sys.executable, str(EXAMPLES / "plain_function.py"), question]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == answer


def test_asgi_app() -> None:
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    client = TestClient(load("asgi_app").app)
    assert client.post("/chat", json={"prompt": CAKE}).json() == {"answer": f"You asked: {CAKE}"}
    assert client.post("/chat", json={"prompt": BOMB}).status_code == 400


def test_openai_client() -> None:
    openai = pytest.importorskip("openai")
    from test_middleware_openai import Upstream

    example = load("openai_client")
    for question, reply, said in ((CAKE, "fine", "fine"), (BOMB, "fine", None), (CAKE, BOMB, None)):
        client = Upstream(reply).bare(openai.OpenAI)
        assert example.ask(client, question) == (said or "refused: content_filter")


def test_langchain_agent() -> None:
    pytest.importorskip("langchain")
    from test_middleware_langchain import model

    example = load("langchain_agent")
    assert example.ask(model("fine"), CAKE) == "fine"
    assert example.ask(model("never"), BOMB) == REFUSAL
    assert example.ask(model(BOMB), CAKE) == REFUSAL


def test_litellm_names_our_guardrail() -> None:
    config: Any = yaml.safe_load((EXAMPLES / "litellm.yaml").read_text(encoding="utf-8"))
    params = config["guardrails"][0]["litellm_params"]
    assert params["guardrail"] == "promptguard.middleware.litellm.PGuardLiteLLMMultimodal"
    assert params["default_on"] is True
    assert "pre_call" in params["mode"]


def test_pictures(tmp_path: Path) -> None:
    from pixels import file_of, scene, vit_folder

    folder = vit_folder(tmp_path / "vit")
    for kind, question, said in (
        ("sea", CAKE, "allowed: []"),
        ("weapon", CAKE, "harmful: ['With any change of the picture resized to 16 x 16"),
        ("sea", BOMB, "harmful: ['With up to"),
    ):
        path = tmp_path / f"{kind}.png"
        path.write_bytes(file_of(scene(kind)))
        command = [sys.executable, str(EXAMPLES / "pictures.py"), str(folder), "weapon", question, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.startswith(said)
