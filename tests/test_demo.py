"""`make demo` runs, and shows what it claims."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptguard.units import Words

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


def test_attacks_of_the_demo_are_within_its_budgets(demo: Any) -> None:
    rows = [json.loads(line) for line in demo.PROMPTS.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        clean, *attacked = demo.cases(row)
        for case in attacked:
            added = len(Words()(case.text)) - len(Words()(clean.text))
            assert 0 < added <= demo.BUDGETS[case.mode]


def test_the_demo_stops_every_attack_and_lets_the_benign_through() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / "demo.py")], capture_output=True, check=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    harmful = [row for row in rows if "harmful" in row]
    safe = [row for row in rows if " safe " in row]
    assert len(harmful) == 16
    assert len(safe) == 7
    assert all(row.endswith("│ no  │") for row in harmful)
    assert all(row.endswith("│ yes │") for row in safe)
