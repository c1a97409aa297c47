"""Noise in the recipes of the bundled filters: labels stay, nothing changes without it, and the weights name it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "filters" / "recipe"
pytestmark = pytest.mark.skipif(not RECIPE.exists(), reason="recipes are not here")
TEXT = "how do I bake a cake, with cherries and cream, for seven guests?"


@pytest.fixture(autouse=True)
def _recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipe", "minilm", "evidence"):
        monkeypatch.syspath_prepend(str(ROOT / "filters" / name))


def noise(*settings: Any) -> Any:
    return importlib.import_module("noise").Noise(*settings)


def units(text: str) -> list[str]:
    found: list[str] = importlib.import_module("augment").units(text)
    return found


def words(text: str) -> list[str]:
    return [piece.strip() for piece in units(text)]


def stream(**more: Any) -> Any:
    data = importlib.import_module("data")
    rows = [{"text": f"{TEXT} {i}", "label": label, "source": "kumar_erase_check"} for i in range(9) for label in
            ("harmful", "safe")]  # fmt: skip
    return data.Stream(rows, 3, **more)


def is_part(small: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in small)


def test_deletion_leaves_a_part_of_a_text_and_never_nothing() -> None:
    deleted, rng = noise("delete", 0.99, 1.0), random.Random(0)
    found = [words(deleted(TEXT, rng)) for _ in range(400)]
    assert all(part and is_part(part, words(TEXT)) for part in found)
    assert min(map(len, found)) == 1
    assert len({tuple(part) for part in found}) > 100
    assert deleted("", rng) == ""


def test_masks_stand_where_words_were() -> None:
    masked, rng = noise("mask", 0.9, 1.0), random.Random(0)
    for _ in range(50):
        found = masked(TEXT, rng).replace("[MASK]", "MASK")
        assert all(new in ("MASK", old) for new, old in zip(words(found), words(TEXT), strict=True))
        assert "MASK" in found or found == TEXT


@pytest.mark.parametrize(("most", "share"), [(0.8, 1.0), (0.4, 0.5)])
def test_rates_are_those_of_the_settings(most: float, share: float) -> None:
    long = " ".join(f"w{i}" for i in range(400))
    deleted, rng = noise("delete", most, share), random.Random(0)
    lost = [1 - len(words(deleted(long, rng))) / 400 for _ in range(600)]
    assert sum(loss > 0.002 for loss in lost) / 600 == pytest.approx(share, abs=0.06)
    assert max(lost) < most + 0.08
    assert sum(lost) / 600 == pytest.approx(share * most / 2, abs=0.03)


def test_a_stream_without_noise_draws_what_it_always_drew() -> None:
    plain, rng = stream(), random.Random("3-5")
    assert plain.pool(5, 40) == [plain.draw(rng) for _ in range(40)]


def test_noised_texts_keep_their_labels() -> None:
    plain, noised = stream(), stream(noise=noise("delete", 0.9, 1.0))
    assert noised.pool(5, 40) == noised.pool(5, 40)
    assert noised.pool(5, 40) != plain.pool(5, 40)

    def length(pool: list[tuple[str, int]], label: int) -> float:
        found = [len(words(text)) for text, other in pool if other == label]
        return sum(found) / len(found)

    before, after = plain.pool(5, 400), noised.pool(5, 400)
    for label in (0, 1):
        assert length(after, label) < 0.75 * length(before, label)
    assert sum(label for _, label in after) / 400 == pytest.approx(plain.harmful, abs=0.1)


@pytest.mark.parametrize("settings", [("swap", 0.5, 0.5), ("delete", 1.0, 0.5), ("mask", 0.0, 0.5), ("mask", 0.5, 0)])
def test_settings_that_mean_nothing_are_refused(settings: tuple[Any, ...]) -> None:
    with pytest.raises(SystemExit):
        noise(*settings)


def test_a_plan_holds_the_noise() -> None:
    run = importlib.import_module("run")
    assert asdict(run.Plan())["noise"] is None
    assert asdict(run.Plan(noise=noise("mask", 0.5, 0.5)))["noise"] == {"kind": "mask", "most": 0.5, "share": 0.5}


@pytest.mark.parametrize("options", [[], ["--noise", "delete", "--noise-rate", "0.7"]])
def test_trained_weights_name_their_noise(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe of `bag` from end to end, on the project's own prompts; a card is written from this record."""
    rows = [{"text": f"{TEXT} {i}", "label": "safe", "source": "nq_open"} for i in range(3)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", str(train), "--out", str(tmp_path / "bag"), *options])
    spec = importlib.util.spec_from_file_location("bag_train", ROOT / "filters" / "bag" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert "words" in capsys.readouterr().out
    with safe_open(tmp_path / "bag" / "weights.safetensors", framework="numpy") as found:
        record = json.loads(found.metadata()["record"])
    wanted = {"kind": "delete", "most": 0.7, "share": 0.5} if options else None
    assert record["plan"]["noise"] == wanted
