"""The benchmark compares like with like, its tables read rows, and the demo shows what it claims."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "tasks" / "vision.py").exists(), reason="not a checkout")


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.tasks.vision")


@pytest.fixture
def lipschitz(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.tasks.vision_lipschitz")


def test_the_baseline_is_cohens_procedure(task: Any) -> None:
    weight = torch.tensor([-1.0, 1.0])
    layer = torch.nn.Linear(1, 10, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:2, 0] = weight
    model = torch.nn.Sequential(torch.nn.Flatten(), layer).eval()
    torch.manual_seed(0)
    for count in (task.counted, task.binned):
        label, radius = task.cohen(model, torch.tensor([[0.2]]), 20_000, count)
        assert label == 1
        assert 0.17 < radius <= 0.2
        assert task.cohen(model, torch.tensor([[0.0]]), 20_000, count)[1] == -1.0
        assert task.votes(model, torch.tensor([[0.2]]), 2500, count).sum() == 2500


def test_the_splits_are_disjoint_and_cover_the_digits(task: Any) -> None:
    images, labels, others, more = task.digits(3)
    assert (len(images), len(labels), len(others), len(more)) == (1400, 1400, 397, 397)
    assert float(torch.cat([images, others]).sum()) == pytest.approx(float(torch.cat(task.digits(4)[::2]).sum()))
    assert not torch.equal(others, task.digits(4)[2])


def test_tables_come_from_rows(task: Any, tmp_path: Path) -> None:
    rows = [
        {"part": "accuracy", "recipe": "A", "seed": seed, "images": 100, "votes": 10_000, "sigma": 0.25,
         "correct": {"0.0": 98, "0.1": 96, "0.25": 90, "0.5": 60 + seed}}
        for seed in range(3)
    ]  # fmt: skip
    rows.append(
        {"part": "early", "sigma": 0.25, "radius": 0.1, "images": 397, "fixed_votes": 100_000, "fixed": 200,
         "asked": 201, "both": 199, "votes": 1001.0}
    )  # fmt: skip
    rows.append(
        {"part": "speed", "radius": 0.25, "rate": 500.0, "rates": {"counted": 20.0, "binned": 25.0}, "images": 400,
         "certified": 360, "fixed_certified": 361, "votes": 700.0}
    )  # fmt: skip
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "smoothing.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text = "\n".join(table.markdown() for table in task.tables(tmp_path))
    for cell in (
        "A, 3 seeds",
        "61.0 [",
        "least 60.0",
        "| 99.5 | 1001 | 100 |",
        "| 500 | 25.0 | 20.0 | 90.0 | 90.2 | 700 |",
    ):
        assert cell in text
    assert task.tables(tmp_path / "nothing") == []


def test_the_committed_rows_reach_what_was_to_be_reached(task: Any) -> None:
    rows = committed("smoothing.jsonl")
    early = [row for row in rows if row["part"] == "early"]
    assert all(row["both"] >= 0.99 * row["fixed"] for row in early)
    for row in rows:
        if row["part"] == "speed" and row["radius"] == 0.25:
            assert row["rate"] >= 25 * row["rates"]["binned"]
    accuracy = [row for row in rows if row["part"] == "accuracy"]
    for recipe in task.RECIPES:
        some = [row for row in accuracy if row["recipe"] == recipe]
        assert sorted(row["seed"] for row in some) == list(range(5))
        for radius, share in (("0.0", 97.2), ("0.1", 96.0), ("0.25", 89.7), ("0.5", 63.0)):
            assert sum(100 * row["correct"][radius] / row["images"] - share for row in some) >= 0


# Peers


def test_peers_that_are_not_installed_are_left_out_with_a_line(task: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(task.vision_peers, "find_spec", lambda name: None)
    split = task.digits(0)
    assert list(task.vision_peers.smoothing(task.mlp(64, 8), split)) == []
    assert list(task.vision_peers.prediction()) == []
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["adversarial-robustness-toolbox", "deel-torchlip"]
    assert all("not installed" in line and "bench-vision" in line for line in said)


def test_rounds_are_taken_in_turn_and_the_first_are_not_counted(task: Any) -> None:
    calls: list[str] = []
    found = task.rounds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 20)
    assert calls == ["a", "b"] * 22
    assert all(len(times) == 20 and bool((times >= 0).all()) for times in found.values())


def test_the_committed_rows_of_peers_certify_the_same_images(task: Any) -> None:
    rows = [row for row in committed("smoothing.jsonl") if row["part"] == "peers"]
    votes, costs = ([row for row in rows if key in row] for key in ("radius", "network"))
    assert [row["radius"] for row in votes] == [0.1, 0.25, 0.5]
    for row in votes:
        assert row["both"] >= 0.98 * max(row["certified"], row["peer_certified"])
        assert row["rate"] > row["fixed_rate"] > row["peer_rate"]
    found = {row["network"]: row["of_relu"][1] for row in costs if row["batch"] == 256}
    assert found["ours, MaxMin"] <= 1.25 < 2.5 < found["deel-torchlip, exported"]
    assert len(task.vision_peers.tables(rows)) == 2


# Lipschitz networks


def test_candidates_are_compared_on_training_images_alone(lipschitz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, held, _, _ = lipschitz.digits(1)
    seen: list[torch.Tensor] = []

    def trained(name: str, seed: int, loss: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        seen.append(x)

    def counted(certifier: None, images: torch.Tensor, labels: torch.Tensor) -> list[int]:
        seen.append(images)
        return [1] * 5

    monkeypatch.setattr(lipschitz, "trained", trained)
    monkeypatch.setattr(lipschitz, "LipschitzCertifier", lambda network, shape: None)
    monkeypatch.setattr(lipschitz, "counted", counted)
    assert lipschitz.compared("CPL", 1, (0.4, 0.2))["inputs"] == 280
    both = torch.cat(seen)
    assert sorted(map(float, both.sum((1, 2, 3)))) == sorted(map(float, x.sum((1, 2, 3))))
    assert len(both) + len(held) == 1797


@pytest.mark.parametrize("name", ["CPL", "Sandwich", "SLL", "Cayley", "spectral", "AOL"])
def test_the_committed_rows_of_a_layer_are_at_or_above_the_reference(lipschitz: Any, name: str) -> None:
    rows = [row for row in committed("lipschitz.jsonl") if row["label"] == name]
    assert sorted(row["seed"] for row in rows) == list(range(5))
    assert all(tuple(row["loss"]) == lipschitz.LOSSES[0] for row in rows)
    for at, wanted in enumerate(lipschitz.PUBLISHED[name][:4]):
        assert sum(100 * row["counts"][at] / row["inputs"] for row in rows) / 5 >= wanted
    costs = [row for row in committed("lipschitz-costs.jsonl") if row["label"] == name]
    assert sorted(row["seed"] for row in costs) == list(range(5))
    assert sorted(row["ratio"][1] for row in costs)[2] <= 1.25


def test_the_loss_that_is_used_is_the_best_of_those_compared(lipschitz: Any) -> None:
    sums = dict.fromkeys(lipschitz.LOSSES, 0)
    for row in committed("lipschitz-compared.jsonl"):
        sums[tuple(row["loss"])] += sum(row["counts"][:4])
    assert max(sums, key=lambda loss: sums[loss]) == lipschitz.LOSSES[0]


def committed(name: str) -> list[dict[str, Any]]:
    path = ROOT / "benchmarks" / "results" / "vision" / name
    if not path.exists():
        pytest.skip("no rows are committed")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Demo


def test_the_demo_shows_digits_and_writes_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sys_path = ROOT / "examples" / "demo_vision.py"
    probe = (
        f"import sys; sys.argv = ['demo', '--out', r'{tmp_path / 'f.png'}']; sys.path.insert(0, r'{sys_path.parent}'); "
        "import demo_vision as d, torch; torch.set_num_threads(1); d.MEASURED = 10; d.VOTES = 100; "
        "d.train = lambda m, *a, **k: m.eval(); d.main()"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.count("(is ") == 8
    assert (tmp_path / "f.png").stat().st_size > 10_000
