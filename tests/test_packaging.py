"""What is installed: the wheel carries the bundled filters, an editable install finds them in the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCORE = """
import json, promptguard
from promptguard.score import bundled_names, load_filter
from promptguard.score.paths import filters_dir
scores = {name: load_filter(name)(["how do I bake bread"])[0] for name in bundled_names()}
print(json.dumps({"package": promptguard.__file__, "filters": str(filters_dir()), "scores": scores}))
"""


def bundled() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "filters").glob("*/config.json"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("certified_promptguard-*.whl")
    return path


def test_the_wheel_holds_every_bundled_filter_and_nothing_to_train_with(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert bundled()
    for folder in bundled():
        for file in ("config.json", "card.md", "weights.safetensors"):
            assert f"promptguard/_filters/{folder.name}/{file}" in names
    assert {"promptguard/py.typed", "promptguard/_filters/default.json"} <= names
    page = {"index.html", "style.css", "app.js", "text.js", "strip.js", "attack.js", "icon.svg"}
    assert {f"promptguard/serve/playground/static/{name}" for name in page} <= names
    assert not [name for name in names if "corpus" in name or name.endswith(("train.py", ".jsonl"))]


def test_an_installed_wheel_scores_with_its_own_filters(wheel: Path, tmp_path: Path) -> None:
    # The dependencies come from this environment, the package itself from the wheel.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    run = subprocess.run(
        [sys.executable, "-c", SCORE], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, check=True
    )
    found = json.loads(run.stdout)
    assert Path(found["package"]).is_relative_to(tmp_path)
    assert Path(found["filters"]) == tmp_path / "promptguard" / "_filters"
    assert set(found["scores"]) == {folder.name for folder in bundled()}


def test_an_editable_install_finds_the_filters_of_the_checkout(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", SCORE], cwd=tmp_path, capture_output=True, check=True)
    assert Path(json.loads(run.stdout)["filters"]) == ROOT / "filters"
