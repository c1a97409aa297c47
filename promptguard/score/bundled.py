"""Filters that ship with promptguard: our own tensors over a public base model, or evidence without a model.

`weights.safetensors` holds `delta.<name>`, added in float32 to the base's tensor, and `full.<name>`, which replaces or
creates one. Every parameter of the classifier is accounted for; the result is a plain `HFFilter` or `CausalFilter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptguard.errors import InvalidArgument, UnknownName, WeightsError
from promptguard.score import checkpoint, paths
from promptguard.score.bag import BagFilter, load_bag
from promptguard.score.base import Base, build, load_base, read_tensors
from promptguard.score.causal import CausalFilter
from promptguard.score.evidence import EvidenceFilter, load_evidence
from promptguard.score.hf import HFFilter
from promptguard.score.manifest import ARITHMETIC, BundledConfig, read_entry, read_manifest

BundledFilter = HFFilter | CausalFilter | EvidenceFilter | BagFilter

__all__ = [
    "Base",
    "BundledConfig",
    "BundledFilter",
    "assemble",
    "load_base",
    "load_bundled",
    "load_folder",
    "read_manifest",
]


def load_bundled(
    name: str, *, threshold: float | None = None, device: str = "cpu", dtype: str = "float32"
) -> BundledFilter:
    """Load a bundled filter; its base comes from its package, the hub's cache or the hub.

    Args:
        name: one of `promptguard.score.bundled_names()`.
        threshold: scores at or above it are harmful; default the one it was calibrated at.
        device: for instance "cpu" or "cuda".
        dtype: "float32" or "bfloat16".

    Raises:
        UnknownName: no bundled filter has this name.
        WeightsError: the filter's files or its base are missing, damaged or do not fit each other.
        MissingDependency: its base is not installed and cannot be downloaded.
        InvalidArgument: `threshold`, `device` or `dtype` cannot be used.
    """
    known = paths.bundled_names()
    if name not in known:
        raise UnknownName(f"unknown bundled filter {name!r}: there are {', '.join(known) or 'none'}")
    return load_folder(paths.filters_dir() / name, threshold=threshold, device=device, dtype=dtype)


def load_folder(
    folder: Path, *, threshold: float | None = None, device: str = "cpu", dtype: str = "float32"
) -> BundledFilter:
    """The filter in a folder with `config.json` and weights, as training writes it.

    Args:
        folder: its name is the filter's.
        threshold: as for `load_bundled`.
        device: as for `load_bundled`.
        dtype: as for `load_bundled`.

    Raises:
        WeightsError: as for `load_bundled`.
        MissingDependency: as for `load_bundled`.
        InvalidArgument: as for `load_bundled`.
    """
    precision = checkpoint.torch_dtype(dtype)
    kind = read_entry(folder).kind
    if kind in ARITHMETIC:
        if device != "cpu" or dtype != "float32":
            raise InvalidArgument(f"filter {folder.name} is arithmetic on the CPU: drop device and dtype")
        return load_evidence(folder, threshold) if kind == "evidence" else load_bag(folder, threshold)
    config = read_manifest(folder)
    own = read_tensors(folder / config.weights.file, config.weights.sha256)
    base = load_base(config)
    made: type[HFFilter] | type[CausalFilter] = CausalFilter if kind == "causal" else HFFilter
    return made(
        checkpoint.place(assemble(config, own, base).to(precision), device),
        base.tokenizer,
        label=config.harmful,
        activation="softmax",
        threshold=config.threshold if threshold is None else threshold,
        window=config.window,
        overlap=config.overlap,
        name=config.name,
    )


def assemble(config: BundledConfig, own: Mapping[str, torch.Tensor], base: Base | None = None) -> Any:
    """The classifier of a bundled filter, in float32 on the CPU and in evaluation mode.

    Args:
        config: the filter's manifest.
        own: our tensors under `delta.` and `full.` keys, in any floating type.
        base: what `load_base(config)` returned; None loads it.

    Raises:
        WeightsError: a tensor is missing, left over, of the wrong shape or not finite.
    """
    base = load_base(config) if base is None else base
    model = build(base.config, config.architecture)
    state = _merged(own, base.state)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() & state.keys() if expected[name] != state[name].shape)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    for fault, names in (("lacks", missing), ("does not use", extra), ("has the wrong shape for", wrong)):
        if names:
            raise WeightsError(f"filter {config.name} {fault} {', '.join(names[:4])}")
    model.load_state_dict(state)
    return model.eval()


def _merged(own: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = dict(base)
    seen: set[str] = set()
    for key, tensor in own.items():
        how, _, name = key.partition(".")
        if how not in {"delta", "full"} or name in seen:
            raise WeightsError(f"own tensor {key} is neither delta.<name> nor full.<name>, or its name occurs twice")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"own tensor {key} is not floating point, or not finite")
        seen.add(name)
        if how == "full":
            state[name] = tensor.float()
        elif name in base and base[name].shape == tensor.shape:
            state[name] = base[name] + tensor.float()
        else:
            raise WeightsError(f"own tensor {key} has no counterpart of shape {tuple(tensor.shape)} in the base")
    return state
