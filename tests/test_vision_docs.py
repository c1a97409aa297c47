"""docs/images.md: its examples run, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "images.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not a checkout")


def test_the_examples_run() -> None:
    pytest.importorskip("sklearn")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(examples) == 2
    scope: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), scope)
    verdict, largest = (scope[name] for name in ("verdict", "largest"))
    assert all(found.certificate is not None for found in (verdict, largest))  # type: ignore[attr-defined]


def test_each_of_the_sixteen_traps_names_a_test_that_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) .*$", text, re.M)
    assert list(map(int, rows)) == list(range(1, 17))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for line in re.findall(r"^\| \d+ .*$", text, re.M):
        named = re.findall(r"`(test_\w+)`", line)
        assert named
        assert all(f"def {name}(" in tests for name in named)
    for path in re.findall(r"`((?:lipschitz|vision|certify|stats)/\w+\.py)`", text):
        assert (ROOT / "promptguard" / path).is_file()
