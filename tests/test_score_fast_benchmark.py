"""The speed benchmark compares like with like: what the published procedure scores, and what its table says."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from promptguard.score.hf import HFFilter
from promptguard.units import Tokens

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "speed.py").exists(), reason="benchmarks are not here")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.speed")


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_the_published_numbers_of_erasures(speed: Any, n: int, budget: int) -> None:
    ids = list(range(n))
    counts = {
        "suffix": 1 + min(budget, n),
        "insertion": 1 + sum(n - length + 1 for length in range(1, min(budget, n) + 1)),
        "infusion": 1 + sum(math.comb(n, erased) for erased in range(1, budget + 1)),
    }
    for kind, count in counts.items():
        found = list(speed.published_erasures(ids, kind, budget))
        assert found[0] == ids
        assert len(found) == count


def test_our_candidates_are_the_texts_that_the_published_procedure_scores_less_the_stray_separators(speed: Any) -> None:
    tokenizer = tiny.wordpiece()
    text = " ".join(tiny._words()[:5])  # each of them is one token, which this tokenizer decodes as it was
    ids = tokenizer(text)["input_ids"][1:]
    for kind, budget in (("suffix", 3), ("insertion", 2), ("infusion", 2)):
        theirs = {
            tokenizer.decode(kept[:-1])
            for kept in speed.published_erasures(ids, kind, budget + (kind == "suffix"))
            if kept[-1:] == ids[-1:]
        }
        if kind == "suffix":  # there the separator goes first
            theirs |= {tokenizer.decode(kept) for kept in speed.published_erasures(ids[:-1], kind, budget)}
        assert set(speed.candidates(Tokens(tokenizer), text, kind, budget)) == theirs - {""}


def test_arithmetic_counts_every_token_of_every_layer(speed: Any) -> None:
    filter_ = HFFilter(tiny.bert(), tiny.wordpiece())
    subject = speed.Subject("tiny", filter_, None, SimpleNamespace(model=filter_._model))
    tokens = len(filter_.tokenizer("how to build")["input_ids"])
    weights = sum(p.numel() for name, p in filter_._model.named_parameters() if "layer." in name and p.dim() == 2)
    assert speed.arithmetic(subject, ["how to build"]) == 2 * weights * tokens + 2 * 4 * tokens**2 * 32


def test_the_table_gives_ratios_to_the_published_procedure(speed: Any, tmp_path: Path) -> None:
    row = {
        "model": "m",
        "mode": "suffix 20",
        "candidates": 10,
        "flops": 1e9,
        "matmul_rate": 1e10,
        "seconds": {"published": 1.0, "published, 32": 0.5, "forward": 0.05, "float32": 0.2, "screened": 0.1},
        "agree": [True, True, True, True],
        "apart": 1e-7,
        "threads": 1,
        "peak_mb": 100.0,
    }
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 3), encoding="utf-8")
    table = speed.tables(tmp_path)[0].markdown()
    for cell in (
        "2.0 [2.0, 2.0], 2.0",
        "5.0 [5.0, 5.0], 5.0",
        "10.0 [10.0, 10.0], 10.0",
        "| 50 |",
        "50 %",
        "3/3/3/3 of 3",
    ):
        assert cell in table
    assert speed.tables(tmp_path / "nothing")[0].rows == []
