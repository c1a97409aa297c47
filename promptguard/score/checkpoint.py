"""Classifier checkpoints from a folder or the hub, read as data: safetensors and JSON, never code.

The hub is only asked for files; what it sends is checked like any local folder before transformers sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import errors as hub_errors
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from promptguard.errors import InvalidArgument, UnknownName, WeightsError
from promptguard.score import paths

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
# JSON, vocabularies, chat templates and safetensors of the top folder; everything else stays where it is.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["*/*"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A classifier in memory.

    Attributes:
        model: transformers sequence classifier, in evaluation mode, on its device.
        tokenizer: its tokenizer.
    """

    model: Any
    tokenizer: Any


def fetch(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; files of a hub repository come from the cache or are downloaded.

    Args:
        path_or_hub_id: a folder, or `org/name`.
        revision: commit, tag or branch on the hub.

    Raises:
        UnknownName: there is no such folder or repository, or no access to it.
        WeightsError: the repository is not in the cache and the hub cannot be reached.
    """
    spec = str(path_or_hub_id)
    if Path(spec).is_dir():
        return Path(spec)
    if not paths.is_hub_id(spec):
        raise UnknownName(f"there is no folder {spec!r}, and it is no hub id (org/name)")
    try:
        local = huggingface_hub.snapshot_download(
            spec, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError, hub_errors.HFValidationError):
        raise UnknownName(
            f"the hub has no model {spec!r} at that revision, or it is gated: check the name, accept its licence, "
            "log in with `hf auth login`"
        ) from None
    except Exception as error:
        raise WeightsError(
            f"cannot get {spec!r} from the hub and it is not in the cache ({type(error).__name__}): check the network "
            "and HF_HUB_OFFLINE, or pass a local folder"
        ) from None
    return Path(local)


# Settings that make transformers load code: modules of the repository, or kernels from the hub.
_CODE = frozenset(
    {"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "fusion_config"}
)


def check(folder: Path) -> None:
    """Refuse a folder that is incomplete or would need code.

    Raises:
        WeightsError: there is no `config.json`, it names custom code, weights are missing or pickled, or the folder
            is an adapter.
    """
    for name in ("config.json", "tokenizer_config.json"):
        for key in _CODE & _read_json(folder / name, required=name == "config.json").keys():
            raise WeightsError(f"{folder.name} needs code of its own ({name} has {key}), and promptguard runs none")
    if (folder / "adapter_config.json").exists():
        raise WeightsError(f"{folder.name} is an adapter: merge it into its base model and save that as safetensors")
    files = [path for path in folder.iterdir() if path.is_file()]
    if any(path.suffix == ".safetensors" for path in files):
        return
    if any(path.suffix in _PICKLES for path in files):
        raise WeightsError(
            f"{folder.name} has pickled weights only, and pickles can run code: convert them to safetensors "
            "(`save_pretrained`) on a machine that you can lose"
        )
    raise WeightsError(f"{folder.name} has no weights: it needs a model.safetensors (pickled weights are refused)")


def load(folder: Path, *, device: str, dtype: str) -> Checkpoint:
    """Load a checked classifier.

    Args:
        folder: as `fetch` returns it.
        device: for instance "cpu" or "cuda".
        dtype: "float32" or "bfloat16".

    Raises:
        WeightsError: see `check`; or the files are corrupt, or lack tensors that the classifier needs.
        InvalidArgument: `device` or `dtype` cannot be used.
    """
    precision = torch_dtype(dtype)
    check(folder)
    closed: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with quiet():
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, dtype=precision, output_loading_info=True, **closed
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **closed)
        except Exception as error:
            raise WeightsError(f"{folder.name} does not load as a sequence classifier: {_first_line(error)}") from None
    # transformers fills missing tensors with noise: the head of an encoder that was never fine-tuned.
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise WeightsError(f"{folder.name} lacks weights of a classifier: {', '.join(absent[:4])}; fine-tune it first")
    return Checkpoint(place(model, device), tokenizer)


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch type of "float32" or "bfloat16".

    Raises:
        InvalidArgument: `dtype` is neither.
    """
    if dtype not in _DTYPES:
        raise InvalidArgument(f"unknown dtype {dtype!r}: {' or '.join(_DTYPES)}")
    return _DTYPES[dtype]


def place(model: Any, device: str) -> Any:
    """The model in evaluation mode on a device.

    Raises:
        InvalidArgument: this machine has no such device.
    """
    try:
        return model.to(torch.device(device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgument(f"cannot use device {device!r} here: {_first_line(error)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the terminal; what matters is raised instead."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    if bars:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _read_json(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise WeightsError(f"{path.parent.name} is no model folder: it has no {path.name}")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise WeightsError(f"{path.name} of {path.parent.name} is not a JSON object")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
