"""The speed benchmark compares like with like: what the published procedure scores, and what its table says."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from doubles import Does, Words

from promptguard.certify.pace import OutOfTime
from promptguard.erase import load_mode
from promptguard.score.hf import HFFilter
from promptguard.score.screen import ScreenedFilter
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
    blocks = list(speed.published_erasures(ids, "insertion", budget, 2))
    assert len(blocks) == len(set(map(tuple, blocks))) == load_mode("insertion", budget, 2).count(n)


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
        assert set(speed.candidates(Tokens(tokenizer), text, load_mode(kind, budget))) == theirs - {""}


class Pipeline:
    """What the benchmark uses of a text-classification pipeline, over a filter."""

    def __init__(self, filter_: HFFilter) -> None:
        self.filter, self.model, self.tokenizer = filter_, filter_._model, filter_.tokenizer
        self.asked: list[tuple[int, dict[str, Any]]] = []

    def __call__(self, texts: list[str], top_k: int | None = 1, **options: Any) -> list[Any]:
        self.asked.append((len(texts), options))
        both: list[list[dict[str, Any]]] = [
            [{"label": "harmful", "score": score}, {"label": "safe", "score": 1 - score}]
            for score in self.filter(texts)
        ]
        return both if top_k is None else [max(pair, key=lambda one: one["score"]) for pair in both]


@pytest.fixture
def subject(speed: Any) -> Any:
    filter_ = HFFilter(tiny.bert(), tiny.wordpiece())
    return speed.Subject("tiny", filter_, {"screened": ScreenedFilter.of(filter_)}, Pipeline(filter_))


def test_arithmetic_counts_every_token_of_every_layer(speed: Any, subject: Any) -> None:
    tokens = len(subject.exact.tokenizer("how to build")["input_ids"])
    weights = sum(p.numel() for name, p in subject.model.named_parameters() if "layer." in name and p.dim() == 2)
    plain, cut = speed.arithmetic(subject, ["how to build"])
    assert plain == 2 * weights * tokens + 2 * 4 * tokens**2 * 32
    # Of the last of two layers only keys and values are computed for all tokens, and one token attends.
    spared = (weights - 2 * 2 * 32 * 32) * (tokens - 1) + 4 * (tokens**2 - tokens) * 32
    assert plain - cut == spared
    _, twice = speed.arithmetic(subject, ["how to build"] * 2)
    assert 2 * cut - twice == 6 * 32 * 32 * tokens  # the same tokens at the same places, projected once


@pytest.mark.parametrize("mode", ["suffix 20", "insertion 2 x 3", "infusion 3"])
def test_a_row_holds_every_way_and_their_agreement(
    speed: Any, subject: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SAMPLED_OVER", 60)
    monkeypatch.setattr(speed, "SAMPLE", 7)
    text = " ".join(tiny._words()[:8])
    row = speed.measure(subject, mode, "safe", text, random.Random(0))
    assert set(row["seconds"]) == {"published", "published, 32", "forward", "float32", "screened"}
    assert set(row["agree"]) == set(row["seconds"]) - {"forward"}
    assert row["agree"]["float32"]
    assert 0 < row["flops_cut"] < row["flops"]
    is_sample = row["published_candidates"] > 60
    assert row["published_sampled"] == (7 if is_sample else None)
    assert is_sample == (mode != "suffix 20")
    assert [options for _, options in subject.classify.asked[:2]].count({"batch_size": 32}) == 1
    if not is_sample:
        assert row["apart"] < 1e-4


def test_time_of_a_sample_is_scaled(speed: Any, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(tiny._words()[:8])
    seconds = iter(range(1, 1000))
    monkeypatch.setattr(speed, "_seconds", lambda call: (1.0 * bool(next(seconds)), call()))
    for limit, sampled in ((60, 7), (10_000, None)):
        monkeypatch.setattr(speed, "SAMPLED_OVER", limit)
        monkeypatch.setattr(speed, "SAMPLE", 7)
        row = speed.measure(subject, "insertion 2 x 3", "safe", text, random.Random(0))
        times = row["published_candidates"] / 7 if sampled else 1.0
        assert row["seconds"]["published"] == row["seconds"]["published, 32"] == times
        assert row["seconds"]["float32"] == 1.0


def test_harmful_prompts_stop_early(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    filter_ = HFFilter(tiny.bert(), tiny.wordpiece(), threshold=0.0)
    subject = speed.Subject("tiny", filter_, {}, Pipeline(filter_))
    calls: list[int] = []
    certify = speed.EraseAndCheck.certify

    def counted(self: Any, text: str) -> Any:
        verdict = certify(self, text)
        calls.append(verdict.calls)
        return verdict

    monkeypatch.setattr(speed.EraseAndCheck, "certify", counted)
    text = " ".join(tiny._words()[:5])
    for group in ("harmful", "safe"):
        speed.measure(subject, "suffix 20", group, text, random.Random(0))
    assert calls == [1, 1, 5, 5]


def test_prompts_are_drawn_from_data_or_cut_to_length(speed: Any, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "source": "kumar_erase_check", "label": "safe" if i % 2 else "harmful"} for i in range(9)]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert set(speed.prompts(tmp_path / "bench.jsonl", "harmful", 5)) == {"t0", "t2", "t4", "t6", "t8"}
    assert speed.prompts(tmp_path / "bench.jsonl", "safe", 2) == speed.prompts(tmp_path / "bench.jsonl", "safe", 2)
    for group in ("10", "25", "60", "200"):
        for text in speed.prompts(None, group, 4):
            assert len(text.split()) == round(int(group) / 1.2)


def row(group: str = "safe", **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "mode": "suffix 20",
        "group": group,
        "candidates": 10,
        "published_sampled": None,
        "flops": 1e9,
        "flops_cut": 8e8,
        "matmul_rate": 1e10,
        "seconds": {"published": 1.0, "published, 32": 0.5, "forward": 0.05, "float32": 0.2, "screened": 0.1},
        "agree": {"published": True, "published, 32": True, "float32": True, "screened": True},
        "apart": 1e-7,
        "threads": 1,
    } | more


def test_the_table_gives_ratios_to_the_published_procedure(speed: Any, tmp_path: Path) -> None:
    (tmp_path / "speed").mkdir()
    rows = [row()] * 3 + [row("harmful", apart=None)] + [row("25", published_sampled=200)]
    (tmp_path / "speed" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    peaks = {"model": "m", "way": "float32", "peak_mb": 700.0, "rest_mb": 400.0}
    (tmp_path / "speed" / "memory.jsonl").write_text(json.dumps(peaks), encoding="utf-8")
    plain, harmful, memory = (table.markdown() for table in speed.tables(tmp_path))
    for cell in (
        "2.0 [2.0, 2.0], 2.0",
        "5.0 [5.0, 5.0], 5.0",
        "10.0 [10.0, 10.0], 10.0",
        "12.5 [12.5, 12.5], 12.5",
        "| 50 |",
        "40 %",
        "3/3/3/3 of 3",
        "| m, suffix 20* | 1 25 tokens |",
    ):
        assert cell in plain
    assert "harmful" in harmful
    assert "| 1 safe |" not in harmful
    assert "700 MB" in memory
    assert [table.rows for table in speed.tables(tmp_path / "nothing")] == [[]]


def test_the_interval_of_a_median_is_that_of_its_resamples(speed: Any) -> None:
    cell = speed._ratio([1.0] * 9, [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1])
    assert cell.startswith("2.0 [2.0, 2.0], ")
    wide = speed._ratio([1.0, 1.0], [1.0, 0.25])
    assert wide == "2.5 [1.0, 4.0], 1.6"


# What a client waits for


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.latency")


def test_every_client_is_timed(latency: Any) -> None:
    certifier = Words("never")
    times, whole = latency.serve(certifier, 4, 0.05)
    assert len(times) == len(certifier.seen) >= 4
    assert whole >= 0.05
    assert set(certifier.seen) <= set(latency.prompts(20, 21))


def test_budget_rows_say_what_became_of_a_text(latency: Any) -> None:
    done = latency._one(Words("never"), "a text", 5.0)
    assert (done["outcome"], done["checks"], done["reached"], done["budget"]) == ("safe", 3, 3, 5.0)
    refused = latency._one(Does(OutOfTime(0.1)), "a text", 0.1)
    assert (refused["outcome"], refused["checks"]) == ("OutOfTime", 0)


def test_latency_tables_come_from_rows(latency: Any, tmp_path: Path) -> None:
    client = {"task": "clients", "filter": "f", "clients": 8, "shared": True, "checks": 90, "p50": 4.0, "p95": 9.0}
    rows: list[dict[str, Any]] = [client | {"per_second": 120.0, "threads": 2}]
    for seconds, outcome in ((0.104, "abstain"), (0.06, "safe"), (0.13, "abstain"), (0.001, "OutOfTime")):
        timed = {"task": "budgets", "filter": "f", "tokens": 25, "budget": 0.1, "seconds": seconds, "outcome": outcome}
        rows.append(timed)
    (tmp_path / "latency").mkdir()
    (tmp_path / "latency" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    clients, budgets = (table.markdown() for table in latency.tables(tmp_path))
    assert "| f | 8 | merged | 4 | 9 | 120 | 90 |" in clients
    assert "| 130 %; 3 of 4; 1, 1 |" in budgets
    assert all(not table.rows for table in latency.tables(tmp_path / "nothing"))
