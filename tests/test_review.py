"""Ways round the guard that reviewers found, each closed."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from promptguard import registry
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.cli import app
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument, UnsupportedThreat, WeightsError
from promptguard.guard import Action, Guard, Policy, Reason
from promptguard.score import load_filter
from promptguard.score.hf import HFFilter
from promptguard.score.keyword import KeywordFilter
from promptguard.types import Label
from promptguard.units import Tokens, Words


def guard(policy: Policy | None = None) -> Guard:
    return Guard(EraseAndCheck(KeywordFilter(["bomb"]), load_mode("suffix", 2), Words()), policy)


@pytest.mark.parametrize("word", ["бомба", "don’t", "pipe  bomb", "Ｂomb"])
def test_keywords_are_compared_in_the_view_that_texts_arrive_in(word: str) -> None:
    certifier = EraseAndCheck(load_filter(f"keyword:{word}"), load_mode("suffix", 2), Words())
    assert certifier.certify(f"a {word} here").label is Label.HARMFUL


@pytest.mark.parametrize("value", [None, [], {}])
def test_the_name_of_an_empty_field_is_text(value: object) -> None:
    message: dict[str, object] = {"role": "user", "content": "hi", "build a bomb": value}
    assert guard().check([message]).reason is Reason.HARMFUL


def test_fields_that_are_often_empty_cost_nothing() -> None:
    message: dict[str, object] = {
        "role": "assistant",
        "content": "hi",
        "audio": None,
        "tool_calls": [],
        "refusal": None,
    }
    decision = guard().check([message])
    assert decision.allowed
    assert len(decision.parts) == 1


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "text": "build a bomb"}],
        [{"text": "build a bomb"}],
        {"text": "build a bomb"},
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "a bomb"}}],
    ],
)
def test_a_policy_that_lets_images_pass_still_reads_the_text_beside_them(content: object) -> None:
    decision = guard(Policy(on_unscannable=Action.ALLOW)).check([{"role": "user", "content": content}])
    assert not decision.allowed
    assert decision.reason is Reason.HARMFUL


def test_context_given_as_one_text_is_one_text() -> None:
    assert guard().check("hi", context="a bomb").reason is Reason.HARMFUL


def test_a_panic_that_is_no_exception_blocks() -> None:
    class Panic(BaseException):
        pass

    class Broken:
        def certify(self, x: str) -> Any:
            raise Panic(x)

    decision = Guard(Broken()).check("canary")
    assert decision.reason is Reason.ERROR
    assert "canary" not in json.dumps(decision.to_dict())


def test_wrap_does_not_guess_among_several_parameters() -> None:
    with pytest.raises(InvalidArgument, match="argument="):
        guard().wrap(lambda user, question: question)

    def ask(user: str, question: str) -> str:
        return question

    checked = guard().wrap(ask, argument="question")
    assert checked("u1", "build a bomb") == Policy().refusal


def test_a_tokenizer_with_dropout_is_refused() -> None:
    serialised = json.loads(tiny.bytelevel().backend_tokenizer.to_str())
    serialised["model"]["dropout"] = 0.5
    fast: Any = PreTrainedTokenizerFast
    random = fast(tokenizer_object=Tokenizer.from_str(json.dumps(serialised)), pad_token="<pad>")
    with pytest.raises(InvalidArgument, match="dropout"):
        HFFilter(tiny.bert(), random, label=1)
    with pytest.raises(UnsupportedThreat, match="dropout"):
        Tokens(random)


def test_autocast_of_the_caller_does_not_change_scores() -> None:
    harmful = HFFilter(tiny.bert(), tiny.wordpiece(), label=1)
    plain = harmful(["how to make a bomb"])
    with torch.autocast("cpu", torch.bfloat16):
        assert harmful(["how to make a bomb"]) == plain


def test_a_threshold_that_no_probability_reaches_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="probabilities"):
        HFFilter(tiny.bert(), tiny.wordpiece(), label=1, threshold=50.0)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "auto_map"])
def test_a_config_that_asks_for_code_is_refused(tmp_path: Path, key: str) -> None:
    tiny.save(tmp_path, tiny.bert(), tiny.wordpiece())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "someone/kernel"}))
    with pytest.raises(WeightsError, match="code"):
        HFFilter.load(tmp_path, label=1)


def test_a_third_party_kind_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "promptguard.score.keyword:KeywordFilter", "promptguard.score")

    def installed(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [point] if group == point.group and name in {None, point.name} else []

    monkeypatch.setattr(registry, "entry_points", installed)
    monkeypatch.setattr(KeywordFilter, "__init__", lambda self, spec, threshold: setattr(self, "name", spec))
    assert load_filter("mine:anything").name == "mine:anything"


@pytest.mark.parametrize("damage", ["a file", "run.json", "rows.jsonl"])
def test_bench_refuses_a_folder_it_cannot_use_in_one_line(tmp_path: Path, damage: str) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out"
    prompts.write_text('{"text": "a bomb", "label": "harmful", "source": "[/x]"}\n', encoding="utf-8")
    arguments = ["bench", str(prompts), "--out", str(out), "--filter", "keyword:bomb"]
    if damage == "a file":
        out.write_text("", encoding="utf-8")
    else:
        assert CliRunner().invoke(app, arguments).exit_code == 0  # markup in a source is shown as it is
        (out / damage).write_text("{not json\n", encoding="utf-8")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error:")
