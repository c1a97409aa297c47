"""The benchmarks' README is what the committed rows give, and the rows hold no prompts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="benchmarks are not here")
# All that a row may hold: digests, names, counts and numbers.
NAMES = {"id", "goal", "source", "guard", "attack", "template", "label", "verdict", "kind", "unit", "method", "mode"}


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.readme")


def test_the_readme_is_written_from_the_rows(readme: Any) -> None:
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == readme.readme()


def test_every_task_has_its_section(readme: Any) -> None:
    tasks = {path.stem for path in (BENCHMARKS / "tasks").glob("*.py") if "\nTITLE = " in path.read_text("utf-8")}
    assert "own" in tasks
    assert {f"tasks.{name}" for name in tasks} <= set(readme.SECTIONS)


def test_a_change_of_rows_changes_the_tables(readme: Any, tmp_path: Path) -> None:
    from benchmarks.tasks import votes

    assert readme is not None
    row = {"label": "harmful", "certificate": {"threat": {"budget": 4}}, "verdict": "harmful"}
    for share, rows in ((100.0, [row]), (50.0, [row, row | {"certificate": None}])):
        folder = tmp_path / str(share) / "votes" / "10-1"
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        line = votes.tables(tmp_path / str(share))[0].rows[0]
        assert line[1:7] == [f"{share:.1f}"] * 5 + ["0.0"]  # certified for up to 4 words


def texts(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in texts(inner, key)]
    if isinstance(value, list):
        return [found for inner in value for found in texts(inner, name)]
    return [(name, value)] if isinstance(value, str) else []


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("results/**/*.jsonl")), ids=lambda p: str(p.parent.name))
def test_rows_hold_no_prompts(path: Path) -> None:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            long = [name for name, text in texts(json.loads(line)) if len(text.split()) > 6 and name not in NAMES]
            assert not long
