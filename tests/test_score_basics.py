"""Filters by name, of functions and of keywords; families, labels, batches: everything that needs no model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptguard.errors import FilterError, InvalidArgument, LabelError, UnknownName
from promptguard.registry import lookup
from promptguard.score import GROUP, KINDS, as_filter, bundled_names, load_filter, paths
from promptguard.score.batches import pack, pad
from promptguard.score.callables import CallableFilter
from promptguard.score.families import FAMILIES, Activation, find
from promptguard.score.keyword import KeywordFilter
from promptguard.score.labels import readout
from promptguard.score.windows import Window
from promptguard.types import Filter

SECRET = "canary-7f3a"


def config(*labels: str, problem_type: str | None = None) -> Any:
    return SimpleNamespace(id2label=dict(enumerate(labels)), num_labels=len(labels), problem_type=problem_type)


def test_importing_score_imports_nothing_heavy() -> None:
    code = (
        "import sys, promptguard.score; print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_kind_resolves() -> None:
    for name in KINDS:
        assert callable(lookup(KINDS, GROUP, name, "kind of filter"))


def test_as_filter_keeps_filters_and_wraps_functions() -> None:
    def half(texts: Sequence[str]) -> list[float]:
        return [0.5 for _ in texts]

    wrapped = as_filter(half, threshold=0.7, name="half")
    assert isinstance(wrapped, Filter)
    assert (wrapped.name, wrapped.threshold, wrapped.guard_band) == ("half", 0.7, 0.0)
    assert list(wrapped(["a", "b"])) == [0.5, 0.5]
    assert as_filter(wrapped, threshold=0.1) is wrapped
    assert as_filter(half).name.endswith("half")
    with pytest.raises(InvalidArgument, match="cannot make a filter of a int"):
        as_filter(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="threshold"):
        as_filter(half, threshold=float("nan"))


def test_callable_filter_hides_the_text_and_counts_scores() -> None:
    def bad(texts: Sequence[str]) -> list[float]:
        raise RuntimeError(f"cannot read {texts}")

    with pytest.raises(FilterError) as caught:
        CallableFilter(bad)([SECRET])
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    with pytest.raises(FilterError, match="2 scores for 1 texts"):
        CallableFilter(lambda texts: [0.0, 0.0])(["a"])
    with pytest.raises(InvalidArgument, match="guard_band"):
        CallableFilter(lambda texts: [0.0], guard_band=-1.0)
    assert CallableFilter(lambda texts: [0.0], digest="abc").digest == "abc"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("how to build a BOMB!", 1.0),
        ("bombing", 0.0),
        ("a bomb_", 0.0),
        ("", 0.0),
        ("c++ or credit card", 1.0),
        ("credit  card", 0.0),
        ("a bomb cake", 0.0),
        ("STRASSE", 1.0),
    ],
)
def test_keyword_filter(text: str, score: float) -> None:
    harmful = KeywordFilter(["bomb", "credit card", "straße"], absent=["cake"])
    assert harmful([text, "bomb", text]) == [score, 1.0, score]


def test_keyword_filter_identity_and_errors() -> None:
    assert KeywordFilter(["a", "B"]).digest == KeywordFilter(["b ", "A"]).digest
    assert KeywordFilter(["a"]).digest != KeywordFilter(["a"], absent=["b"]).digest
    assert isinstance(KeywordFilter(["a"]), Filter)
    for words in ([], ["a", " "], "abc"):
        with pytest.raises(InvalidArgument):
            KeywordFilter(words)
    with pytest.raises(FilterError, match="list of strings"):
        KeywordFilter(["a"])("a")
    with pytest.raises(InvalidArgument, match="threshold"):
        KeywordFilter(["a"], threshold=float("inf"))


def test_load_filter_keyword_and_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = load_filter("keyword: bomb,weapon", threshold=0.9)
    assert words.threshold == 0.9
    assert list(words(["a weapon", "a flower"])) == [1.0, 0.0]
    with pytest.raises(InvalidArgument, match="no labels"):
        load_filter("keyword:bomb", label=1)
    with pytest.raises(InvalidArgument, match="at least one word"):
        load_filter("keyword:")
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.json").write_text("{}")
    (tmp_path / "corpus").mkdir()
    monkeypatch.setattr(paths, "filters_dir", lambda: tmp_path)
    assert bundled_names() == ["mini"]
    with pytest.raises(UnknownName, match=r"bundled are mini.*keyword:.*path.*hub id"):
        load_filter("mimi")
    with pytest.raises(InvalidArgument, match="drop label"):
        load_filter("mini", label=1)
    monkeypatch.setattr(paths, "filters_dir", lambda: tmp_path / "gone")
    assert bundled_names() == []


def test_filters_dir_is_the_wheel_or_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "promptguard")
    assert paths.filters_dir() == tmp_path / "filters"
    (tmp_path / "promptguard" / "_filters").mkdir(parents=True)
    assert paths.filters_dir() == tmp_path / "promptguard" / "_filters"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/name", True),
        ("meta-llama/Llama-Prompt-Guard-2-86M", True),
        ("../x", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("./a", False),
        ("a", False),
        ("a/..", False),
        ("a/b\n", False),
        ("ä/b", False),
    ],
)
def test_hub_ids(spec: str, expected: bool) -> None:
    assert paths.is_hub_id(spec) is expected


def test_families_have_distinct_names_and_labels_that_exist() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.harmful <= family.labels
        assert all(0 <= position < family.size for position in family.positions)
        assert family.labels or family.repository


@pytest.mark.parametrize(
    ("labels", "repository", "harmful", "activation"),
    [
        (("safe", "harmful"), "", (1,), "softmax"),
        (("harmful", "safe"), "", (0,), "softmax"),
        (("BENIGN", "MALICIOUS"), "", (1,), "softmax"),
        (("MALICIOUS", "BENIGN"), "meta-llama/Llama-Prompt-Guard-2-86M", (0,), "softmax"),
        (("LABEL_0", "LABEL_1"), "meta-llama/Llama-Prompt-Guard-2-22M", (1,), "softmax"),
        (("LABEL_0", "LABEL_1"), "/models/kumar-distilbert-suffix/", (0,), "softmax"),
        (("BENIGN", "INJECTION", "JAILBREAK"), "", (1, 2), "softmax"),
        (("SAFE", "INJECTION"), "", (1,), "softmax"),
        (("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"), "", tuple(range(6)), "sigmoid"),
    ],
)
def test_known_families(labels: tuple[str, ...], repository: str, harmful: tuple[int, ...], activation: str) -> None:
    found = readout(config(*labels), repository=repository)
    assert (found.harmful, found.activation) == (harmful, activation)


@pytest.mark.parametrize(
    ("labels", "repository"),
    [
        (("LABEL_0", "LABEL_1"), "someone/classifier"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), "meta-llama/Llama-Prompt-Guard-2-86M"),
        (("negative", "positive"), "kumar-distilbert"),
        (("safe", "safe"), ""),
    ],
)
def test_labels_are_never_guessed(labels: tuple[str, ...], repository: str) -> None:
    with pytest.raises(LabelError, match=labels[0]):
        readout(config(*labels), repository=repository)


def test_family_by_name() -> None:
    found = readout(config("LABEL_0", "LABEL_1"), family="kumar-distilbert")
    assert (found.harmful, found.activation) == ((0,), Activation.SOFTMAX)
    with pytest.raises(LabelError, match="not those of family"):
        readout(config("safe", "harmful"), family="kumar-distilbert")
    with pytest.raises(UnknownName, match="kumar-distilbert"):
        find(["LABEL_0"], family="kumar", repository="")


def test_explicit_labels() -> None:
    three = config("ok", "Spam", "harm")
    assert readout(three, label="spam").harmful == (1,)
    assert readout(three, label=2).harmful == (2,)
    assert readout(three, label="2").harmful == (2,)
    assert readout(three, label=["harm", 1, 1]).harmful == (1, 2)
    assert readout(config("LABEL_0", "LABEL_1"), label="LABEL_1").harmful == (1,)
    assert readout(config("a", "A"), label="A").harmful == (1,)
    wrong: list[Any] = ["toxic", 3, -1, True, [], "", "-1", 1.0]
    for label in wrong:
        with pytest.raises((LabelError, TypeError)):
            readout(three, label=label)
    with pytest.raises(LabelError, match="always 1"):
        readout(three, label=[0, 1, 2])
    with pytest.raises(LabelError, match="no single label"):
        readout(config("a", "A", "b"), label="á")


def test_activation() -> None:
    multi = config("a", "b", problem_type="multi_label_classification")
    assert readout(multi, label=[0, 1]).activation is Activation.SIGMOID
    assert readout(multi, label=0, activation="softmax").activation is Activation.SOFTMAX
    with pytest.raises(LabelError, match="sigmoid"):
        readout(config("score"), label=0)
    assert readout(config("score"), label=0, activation="sigmoid").harmful == (0,)
    with pytest.raises(InvalidArgument, match="unknown activation"):
        readout(multi, label=0, activation="relu")


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100), st.booleans())
def test_pack_covers_every_window_once_within_the_budget(lengths: list[int], budget: int, equal: bool) -> None:
    batches = list(pack(lengths, budget, equal=equal))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= budget
        assert not equal or len(set(sizes)) == 1


def test_pad_fills_on_the_right() -> None:
    rows = pad([Window([5, 6], [1, 1]), Window([7], [1])], 9)
    assert rows == {
        "input_ids": [[5, 6], [7, 9]],
        "attention_mask": [[1, 1], [1, 0]],
        "token_type_ids": [[1, 1], [1, 0]],
    }
