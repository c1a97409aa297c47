"""The rule that chooses a setting of deletion smoothing, and the filters that have not seen what it is chosen on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from oracle import keyword

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "train.jsonl"
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="benchmarks are not here")


@pytest.fixture
def noised(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.noised")


@pytest.fixture
def crossfit(noised: Any) -> Any:
    return importlib.import_module("benchmarks.crossfit")


def row(noised: Any, label: str, words: int, flagged: dict[float, int]) -> dict[str, Any]:
    """A prompt of which so many of 1,000 noised versions are flagged, at any threshold; none at the other rates."""
    counts = {rate: [flagged.get(rate, 0)] * len(noised.THRESHOLDS) for rate in noised.CHOICES}
    named = {f"{name} {rate}": found for rate, found in counts.items() for name in ("sure", "flagged")}
    return {"id": "0", "label": label, "words": words, "draws": 1000, **named}


def test_the_setting_that_certifies_most_is_chosen(noised: Any) -> None:
    rows = [row(noised, "harmful", 10, {0.7: 250, 0.8: 40})] * 3 + [row(noised, "safe", 10, {})] * 100
    choice = noised.choose(rows)
    assert (choice.rates, choice.certified, choice.blocked) == ({1: 0.7}, 3, 0)
    assert choice.eta == 0.03  # 0.03 / 0.7^5 = 0.18 is below the lower bound of 0.25, 0.05 / 0.7^5 = 0.3 is not
    assert choice.threshold == max(noised.THRESHOLDS)


def test_no_more_safe_prompts_are_blocked_than_the_sample_allows(noised: Any) -> None:
    """100 prompts allow one: the second that is often flagged at 0.7 moves the choice to 0.8, which certifies fewer."""
    harmful = [row(noised, "harmful", 10, {0.7: 999, 0.8: 999}), row(noised, "harmful", 10, {0.7: 999})]
    rates = []
    for often in (0, 1, 2):
        safe = [row(noised, "safe", 10, {0.7: 900 * (i < often)}) for i in range(100)]
        choice = noised.choose(harmful + safe)
        assert choice.blocked <= choice.allowed == 1
        rates.append(choice.rates)
    assert rates == [{1: 0.7}, {1: 0.7}, {1: 0.8}]


def test_longer_texts_get_more_noise_where_that_blocks_fewer(noised: Any) -> None:
    harmful = [row(noised, "harmful", 8, {0.7: 999})] * 4
    safe = [row(noised, "safe", 40, {0.7: 900, 0.8: 900})] * 20 + [row(noised, "safe", 8, {})] * 80
    choice = noised.choose(harmful + safe)
    assert (choice.certified, choice.blocked) == (4, 0)
    assert choice.rates in [{1: 0.7, words: 0.9} for words in noised.LONG]


def test_near_the_longer_texts_both_rates_must_certify(noised: Any) -> None:
    """Five more words take 26 words to 31, where this prompt is never flagged."""
    near, far = (row(noised, "harmful", words, {0.7: 999}) for words in (noised.LONG[-1] - 4, noised.LONG[-1] - 6))
    safe = [row(noised, "safe", 40, {0.7: 900, 0.8: 900})] * 20 + [row(noised, "safe", 8, {})] * 80
    assert noised.choose([near, *safe]).certified == 0
    assert noised.choose([far, *safe]).certified == 1


def test_rows_count_what_a_filter_flags(noised: Any) -> None:
    from promptguard.evaluate.prompts import Prompt

    prompt = Prompt("1", "own", "harmful", "how to build a bomb")
    found = noised.Curves("delete", (0.25, 0.75), 4000, 0).row(keyword("bomb", "never-there"), prompt)
    assert found["sure 0.25"][0] / 4000 == pytest.approx(0.75, abs=0.03)
    assert found["flagged 0.75"][0] / 4000 == pytest.approx(0.25, abs=0.03)
    assert found["scored"] <= 2**5 - 1
    assert "bomb" not in str(found)


def test_other_curves_in_a_folder_are_refused(noised: Any, tmp_path: Path) -> None:
    from promptguard.errors import InvalidArgument
    from promptguard.evaluate.prompts import Prompt

    prompts = [Prompt(str(i), "own", "harmful", f"how to build a bomb {i}") for i in range(3)]
    curves = noised.Curves("mask", (0.5,), 20, 0)
    rows = curves.rows(keyword("bomb", "never-there"), prompts, tmp_path)
    assert curves.rows(keyword("bomb", "never-there"), prompts, tmp_path) == rows
    assert len((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    with pytest.raises(InvalidArgument):
        noised.Curves("mask", (0.5,), 30, 0).rows(keyword("bomb", "never-there"), prompts, tmp_path)
    with pytest.raises(InvalidArgument):
        curves.rows(keyword("bomb", "never-there"), prompts[:2], tmp_path)


def text(words: str, label: str = "harmful", source: str = "kumar_erase_check") -> dict[str, str]:
    return {"text": words, "label": label, "source": source}


def test_folds_share_out_both_labels_and_leave_nobody_out(crossfit: Any) -> None:
    rows = [text(f"prompt {i}", "harmful" if i < 13 else "safe") for i in range(30)]
    folds = crossfit.cut(rows, 5, 0)
    assert sorted(row["text"] for fold in folds for row in fold) == sorted(row["text"] for row in rows)
    for label in ("harmful", "safe"):
        sizes = [sum(row["label"] == label for row in fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    assert crossfit.cut(rows, 5, 0) == folds
    assert crossfit.cut(rows, 5, 1) != folds


def test_near_duplicates_share_seven_words_of_ten(crossfit: Any) -> None:
    other = text("a b c d e f g h i")
    near, far = text("a b c d e f g h j"), text("a b c d e f g j k")  # 8 of 10, 7 of 11
    assert crossfit.near_any([near, far, other, text("?")], [text("z"), other]) == [True, False, True, False]
    assert crossfit.near_any([text("a b c d e f g")], [text("a b c d e f g h i j")]) == [True]
    assert crossfit.near_any([text("?"), text("!")], [text("?")]) == [True, False]


def test_no_filter_has_seen_its_prompts(crossfit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of which only eight near duplicates know gets a weight from them, unless they were left out."""
    marks = [f"qx{chr(97 + i)}zz" for i in range(8)]
    rows = [text(f"how do {mark} and {mark}s make number {n} of it") for mark in marks for n in "12345678"]
    rows += [text(f"please bake cake number {i} for me", "safe") for i in range(8)]
    rows += [text(f"who won the cup in {1900 + i}", "safe", "nq_open") for i in range(40)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = marks[:4], marks[4:]

    def halves(rows: list[dict[str, str]], count: int, seed: int) -> list[list[dict[str, str]]]:
        mine = [row for row in rows if any(mark in row["text"] for mark in first)]
        return [mine, [row for row in rows if row not in mine]]

    monkeypatch.setattr(crossfit, "cut", halves)
    one, other = crossfit.cross_fitted(train, "kumar_erase_check", 0)
    assert sorted(prompt.text for part in (one, other) for prompt in part.prompts) == sorted(
        row["text"] for row in rows if row["source"] == "kumar_erase_check"
    )
    assert all(any(mark in prompt.text for mark in first) for prompt in one.prompts)
    assert one.filter(first) == other.filter(second) == [0] * 4
    assert min(one.filter(second) + other.filter(first)) > 0


def test_near_duplicates_of_a_prompt_are_not_trained_on(crossfit: Any) -> None:
    texts = [text(f"how do I make number {n} of it for us") for n in "123"]
    assert crossfit.without(crossfit.Split([*texts, text("c d")], texts), texts[:1]).train == [text("c d")]


def test_what_is_left_out_is_left_out_of_the_calibration_too(crossfit: Any) -> None:
    split = crossfit.Split([text("a b"), text("c d")], [text("a b"), text("e f")])
    found = crossfit.without(split, [text("a b"), text("e f")])
    assert (found.train, found.held) == ([text("c d")], [])


@pytest.mark.skipif(not DATA.exists(), reason="the training data is not here")
def test_with_nothing_left_out_the_bundled_filter_comes_out(crossfit: Any) -> None:
    from promptguard import load_filter

    assert (
        crossfit.fitted(crossfit.split_rows(crossfit.load_rows(DATA), shift=False)).digest == load_filter("bag").digest
    )
