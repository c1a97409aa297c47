"""The public base model under a bundled filter: found, verified by digest, read as data.

Looked for in the installed package (without importing it), then in the hub's cache, then on the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from promptguard.errors import MissingDependency, WeightsError
from promptguard.score.manifest import BundledConfig

_FILES = ("config.json", "tokenizer.json", "model.safetensors")


@dataclass(frozen=True, slots=True)
class Base:
    """A verified base model.

    Attributes:
        config: transformers configuration of the classifier to build on it, with its labels.
        tokenizer: from the base's `tokenizer.json`.
        state: the base's tensors in float32 under the names of the classifier's state dict.
    """

    config: Any
    tokenizer: Any
    state: dict[str, torch.Tensor]


def load_base(config: BundledConfig) -> Base:
    """Find and verify the base of a bundled filter.

    Raises:
        MissingDependency: it is not installed, not in the hub's cache, and cannot be downloaded.
        WeightsError: its weights or vocabulary have another digest, or it is no base for that architecture.
    """
    files = _locate(config)
    tensors = read_tensors(files["model.safetensors"], config.base.weights_sha256)
    model_config = AutoConfig.from_pretrained(
        files["config.json"].parent, trust_remote_code=False, local_files_only=True
    )
    model_config.id2label = dict(config.id2label)
    model_config.label2id = {label: index for index, label in config.id2label.items()}
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_file=str(files["tokenizer.json"]))
    if config.kind == "causal":
        model_config.is_decoder = True
        _open_end(tokenizer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if hashlib.sha256("\n".join(token for token, _ in vocabulary).encode()).hexdigest() != config.base.vocab_sha256:
        raise WeightsError(f"the vocabulary of {config.base.repo} is not the one that {config.name} was trained with")
    return Base(model_config, tokenizer, _renamed(tensors, model_config, config))


def _open_end(tokenizer: Any) -> None:
    """Keep the first special token and drop the last: a prefix of a text then has a prefix of its tokens."""
    backend = tokenizer.backend_tokenizer
    first = backend.encode("").tokens[0]
    backend.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, backend.token_to_id(first))]
    )


def build(model_config: Any, architecture: str) -> Any:
    """A classifier of this configuration; its weights are noise until a state dict is loaded.

    Raises:
        WeightsError: transformers builds another class than `architecture`.
    """
    with torch.random.fork_rng(devices=[]):  # Initialising draws random numbers; the caller's stream stays put.
        by_token = architecture.endswith("ForTokenClassification")
        auto: Any = AutoModelForTokenClassification if by_token else AutoModelForSequenceClassification
        model = auto.from_config(model_config, trust_remote_code=False)
    if type(model).__name__ != architecture:
        raise WeightsError(f"the base builds a {type(model).__name__}, not the {architecture} of the filter's config")
    return model.float()


def read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, read once, so that what was verified is what is used.

    Raises:
        WeightsError: the file is missing, has another digest, or is no safetensors file.
    """
    try:
        content = path.read_bytes()
    except OSError:
        raise WeightsError(f"weights are missing: {path.parent.name}/{path.name}; reinstall them") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(f"{path.name} has sha256 {found[:12]}..., expected {sha256[:12]}...: reinstall it")
    try:
        return safetensors.torch.load(content)
    except SafetensorError:
        raise WeightsError(f"{path.name} is no safetensors file: reinstall it") from None


def _renamed(tensors: dict[str, torch.Tensor], model_config: Any, config: BundledConfig) -> dict[str, torch.Tensor]:
    """The base's tensors under the classifier's names: a bare encoder lacks its prefix ("bert.")."""
    with torch.device("meta"):
        model = build(model_config, config.architecture)
    expected = set(model.state_dict())
    constants = {name for name, _ in model.named_buffers()} - expected
    state = {}
    for key, tensor in tensors.items():
        prefixed = f"{model.base_model_prefix}.{key}"
        name = key if key in expected else prefixed
        if prefixed in constants or key in constants:  # Position numbers that old checkpoints carry.
            continue
        if name not in expected and key.startswith("pooler."):  # A head on every token has no use for it.
            continue
        if name not in expected:
            raise WeightsError(f"the base {config.base.repo} has {key}, which a {config.architecture} lacks")
        state[name] = tensor.float()
    return state


def _locate(config: BundledConfig) -> dict[str, Path]:
    spec = importlib.util.find_spec(config.base.module)  # Finding a top-level module does not import it.
    for root in (spec.submodule_search_locations or []) if spec else []:
        files = {name: Path(root) / config.base.folder / name for name in _FILES}
        if all(path.is_file() for path in files.values()):
            return files
    for cached in (True, False):
        try:
            return {
                name: Path(huggingface_hub.hf_hub_download(config.base.repo, name, local_files_only=cached))
                for name in _FILES
            }
        except Exception:  # noqa: S112 - not cached, offline, no network, gated: the answer below is the same.
            continue
    raise MissingDependency(
        f"filter {config.name} needs the base model {config.base.repo}: "
        f'pip install "certified-promptguard[{config.name}]" (package {config.base.package})'
    )
