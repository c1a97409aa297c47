"""ONNX filters: the scores of the model that was exported; what would make a score depend on its batch is refused."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from promptguard import EraseAndCheck, load_filter, load_mode, load_units
from promptguard.errors import FilterError, InvalidArgument, UnknownName, WeightsError
from promptguard.score.hf import HFFilter
from promptguard.score.onnx import OnnxFilter
from promptguard.types import Filter

TEXTS = [*tiny.CORPUS, "how", "", "steal " * 90]


class _Exported(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.model(input_ids=input_ids, attention_mask=attention_mask).logits)


@pytest.fixture(scope="module")
def exact() -> HFFilter:
    return HFFilter(tiny.distilbert(), tiny.wordpiece(), label="harmful")


@pytest.fixture(scope="module")
def folder(exact: HFFilter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("exported")
    exact._model.config.save_pretrained(where)
    exact.tokenizer.save_pretrained(where)
    ids, mask = torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.long)  # one tensor for both would become one input
    batch, tokens = torch.export.Dim("batch", min=1, max=512), torch.export.Dim("tokens", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Exported(exact._model).eval(),
            (ids, mask),
            where / "model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=[{0: batch, 1: tokens}] * 2,
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    return where


@pytest.fixture(scope="module")
def exported(folder: Path) -> OnnxFilter:
    return OnnxFilter.load(folder, label="harmful")


def test_an_export_scores_as_its_model(exact: HFFilter, exported: Filter) -> None:
    assert list(exported(TEXTS)) == pytest.approx(list(exact(TEXTS)), abs=1e-5)
    assert exported.digest != exact.digest


def test_a_batch_does_not_move_a_score(exported: Filter) -> None:
    alone = [exported([text])[0] for text in TEXTS]
    assert list(exported(TEXTS)) == pytest.approx(alone, abs=1e-6)


def test_it_certifies(exact: HFFilter, exported: Filter) -> None:
    words = load_units("word")
    for text in tiny.CORPUS[:3]:
        mine, plain = (EraseAndCheck(f, load_mode("suffix", 4), words).certify(text) for f in (exported, exact))
        assert (mine.label, mine.witness) == (plain.label, plain.witness)


def test_the_digest_is_that_of_model_and_data(folder: Path, tmp_path: Path, exported: Filter) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_filter(f"onnx:{copy}", label="harmful").digest == exported.digest
    assert load_filter(f"onnx:{copy}", label="safe").digest != exported.digest
    data = copy / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    assert load_filter(f"onnx:{copy}", label="harmful").digest != exported.digest


def test_tensors_outside_the_digest_are_not_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(content.replace(b"model.onnx.data", b"other_file.data"))
    (copy / "model.onnx.data").rename(copy / "other_file.data")
    with pytest.raises(WeightsError):
        load_filter(f"onnx:{copy}", label="harmful")


def test_dynamic_quantisation_is_refused(folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("onnxruntime.quantization")
        onnx = pytest.importorskip("onnx")
        copy = shutil.copytree(folder, tmp_path / "copy")
        model = onnx.load(folder / "model.onnx")
        del model.graph.value_info[:]  # the shapes of the exporter's example confuse the quantiser
        quantization.quantize_dynamic(model, copy / "model.onnx")
    with pytest.raises(FilterError, match="dynamically"):
        load_filter(f"onnx:{copy}", label="harmful")


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        load_filter(f"onnx:{tmp_path / 'none'}")
    with pytest.raises(WeightsError, match=r"model\.onnx"):
        load_filter(f"onnx:{tmp_path}")
    with pytest.raises(InvalidArgument, match="drop device"):
        load_filter(f"onnx:{folder}", dtype="bfloat16")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="does not load"):
        load_filter(f"onnx:{copy}", label="harmful")
