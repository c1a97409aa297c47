"""Model folders and the hub: known families round-trip through disk; pickles, code and half a model are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from transformers import BertModel
from transformers.utils import logging as transformers_logging

from promptguard.errors import FilterError, InvalidArgument, LabelError, UnknownName, WeightsError
from promptguard.score import load_filter
from promptguard.score.hf import HFFilter

TOXIC = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
TEXTS = ["", *tiny.CORPUS, "bomb " * 600]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model", tiny.bert(), tiny.wordpiece())


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("folder_name", "family", "model", "harmful"),
    [
        ("ours", None, lambda: (tiny.bert(), tiny.wordpiece()), [1]),
        (
            "x",
            "kumar-distilbert",
            lambda: (tiny.distilbert(id2label={0: "LABEL_0", 1: "LABEL_1"}), tiny.wordpiece()),
            [0],
        ),
        (
            "Llama-Prompt-Guard-2-86M",
            None,
            lambda: (tiny.deberta(id2label={0: "LABEL_0", 1: "LABEL_1"}), tiny.unigram()),
            [1],
        ),
        ("pg2", None, lambda: (tiny.deberta(id2label={0: "BENIGN", 1: "MALICIOUS"}), tiny.unigram()), [1]),
        (
            "pg1",
            None,
            lambda: (tiny.deberta(id2label={0: "BENIGN", 1: "INJECTION", 2: "JAILBREAK"}), tiny.unigram()),
            [1, 2],
        ),
        ("protectai", None, lambda: (tiny.deberta(id2label={0: "SAFE", 1: "INJECTION"}), tiny.unigram()), [1]),
        ("toxic", None, lambda: (tiny.bert(id2label=dict(enumerate(TOXIC))), tiny.wordpiece()), list(range(6))),
    ],
)
def test_known_families_round_trip(
    tmp_path: Path, folder_name: str, family: str | None, model: Any, harmful: list[int]
) -> None:
    classifier, tokenizer = model()
    activation = "sigmoid" if len(harmful) == 6 else "softmax"
    direct = HFFilter(classifier, tokenizer, label=harmful, activation=activation)
    before = direct.digest  # Saving writes into the configuration.
    saved = tiny.save(tmp_path / folder_name, classifier, tokenizer)
    loaded = load_filter(str(saved), family=family)
    assert loaded.name == folder_name
    assert list(loaded(TEXTS)) == direct(TEXTS)
    assert loaded.digest == before


def test_load_options(folder: Path) -> None:
    rough = load_filter(str(folder), threshold=0.8, label="safe", dtype="bfloat16")
    assert (rough.threshold, rough.guard_band) == (0.8, 5e-2)
    exact = load_filter(str(folder), label="safe")
    assert list(rough(TEXTS)) == pytest.approx(list(exact(TEXTS)), abs=0.2)
    with pytest.raises(InvalidArgument, match="dtype"):
        load_filter(str(folder), dtype="float16")
    with pytest.raises(InvalidArgument, match="device"):
        load_filter(str(folder), device="abacus")
    with pytest.raises(LabelError, match="harmful"):
        load_filter(str(folder), label="toxic")


def test_loading_is_silent_and_restores_settings(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_filter(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_loading_leaves_the_random_stream_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_filter(str(folder))
    assert torch.rand(1) == expected


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "pkl", "ckpt"])
def test_pickles_are_refused_unread(folder: Path, suffix: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / f"pytorch_model.{suffix}")
    with pytest.raises(WeightsError, match=r"pickled.*safetensors"):
        load_filter(str(folder))


def test_a_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_filter(str(folder))(["bomb"])


def test_folders_without_weights_or_config(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights"):
        load_filter(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_filter(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_custom_code_is_refused(folder: Path, name: str) -> None:
    edit(folder / name, auto_map={"AutoModelForSequenceClassification": "evil.Model"})
    with pytest.raises(WeightsError, match="auto_map"):
        load_filter(str(folder))


def test_adapters_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="adapter"):
        load_filter(str(folder))


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    """transformers would fill the head with noise and go on."""
    encoder = tiny.save(tmp_path / "encoder", BertModel(tiny.bert().config), tiny.wordpiece())
    with pytest.raises(WeightsError, match=r"lacks weights.*classifier"):
        load_filter(str(encoder), label=1)


def test_damaged_files(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(3, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError):
        load_filter(str(folder))
    (folder / "model.safetensors").write_bytes(b"noise")
    with pytest.raises(WeightsError, match="does not load"):
        load_filter(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="JSON object"):
        load_filter(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="JSON object"):
        load_filter(str(folder))


def test_weights_with_nan_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FilterError, match="not finite"):
        load_filter(str(folder))


def test_hub_snapshots_are_checked_like_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    edit(folder / "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    loaded = HFFilter.load("meta-llama/Llama-Prompt-Guard-2-22M", revision="abc")
    assert loaded.name == "Llama-Prompt-Guard-2-22M"
    assert (asked["repo"], asked["revision"]) == ("meta-llama/Llama-Prompt-Guard-2-22M", "abc")
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked["allow_patterns"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights"):
        load_filter("org/name")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (hub_errors.HFValidationError("x"), UnknownName),
        (hub_errors.LocalEntryNotFoundError("x"), WeightsError),
        (ConnectionError("x"), WeightsError),
    ],
)
def test_hub_failures_are_typed(monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]) -> None:
    def snapshot(repo: str, **options: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(expected, match="org/name") as caught:
        load_filter("org/name")
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_offline_hub_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        load_filter("org/name")


def test_missing_folder() -> None:
    with pytest.raises(UnknownName, match="no folder"):
        HFFilter.load("./nowhere")
