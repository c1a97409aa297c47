"""What docs/server.md says is what the server takes and serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("starlette")

from promptguard.serve.config import Config  # noqa: E402 - after the skip
from promptguard.serve.proxy import SHAPES  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs" / "server.md").read_text(encoding="utf-8")


def shown() -> dict[str, Any]:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def test_the_configuration_shown_holds_the_defaults() -> None:
    assert Config.model_validate(shown()) == Config.model_validate({"certifier": {"filter": "causal"}})


def test_every_key_is_shown() -> None:
    def keys(value: Any, path: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {path}
        return {name for key, item in value.items() for name in keys(item, f"{path}.{key}")}

    assert keys(shown()) == keys(Config().model_dump(mode="json"))


def test_every_route_is_shown() -> None:
    named = set(re.findall(r"`(?:POST |GET )?(/[\w/]*)`", PAGE))
    assert {f"/v1/{shape.path}" for shape in SHAPES} <= named
    for other in ("/v1/moderations", "/v1/certify", "/v1/models", "/beta/litellm_basic_guardrail_api"):
        assert other in named
