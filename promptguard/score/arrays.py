"""Files of bundled filters that need no model: a validated `config.json` and arrays in a safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from promptguard.errors import WeightsError
from promptguard.score.manifest import OwnWeights

Array = NDArray[Any]


class ArraysConfig(BaseModel):
    """What the `config.json` of such a filter holds, whatever its kind.

    Attributes:
        name: the folder's name.
        summary: one line for people.
        threshold: scores at or above it are harmful.
        unit: total evidence that scores 0.5.
        weights: its arrays.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    threshold: Annotated[float, Field(ge=0, le=1)]
    unit: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    weights: OwnWeights


_C = TypeVar("_C", bound=ArraysConfig)


def read_config(folder: Path, kind: type[_C]) -> _C:
    """The validated `config.json` of a folder.

    Raises:
        WeightsError: it is missing, no JSON, has unknown or missing fields, or another name than its folder.
    """
    try:
        config = kind.model_validate_json((folder / "config.json").read_bytes())
    except OSError:
        raise WeightsError(f"the bundled filter {folder.name} cannot be read: reinstall promptguard") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3])
        raise WeightsError(f"config.json of filter {folder.name} is not valid: {faults}") from None
    if config.name != folder.name:
        raise WeightsError(f"config.json in folder {folder.name} is that of filter {config.name!r}")
    return config


def read_arrays(path: Path, sha256: str) -> dict[str, Array]:
    """The arrays of a safetensors file, read once, so that what was verified is what is used.

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
        return dict(safetensors.numpy.load(content))
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise WeightsError(f"{path.name} is no safetensors file that fits here: reinstall it") from None


def packed(names: Sequence[str]) -> Array:
    """Names as one array of UTF-8 bytes, for a safetensors file; none may hold a line break."""
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8).copy()


def unpacked(data: Array) -> list[str]:
    """What `packed` packed.

    Raises:
        WeightsError: the bytes are no text, or a name occurs twice.
    """
    try:
        names = data.astype(np.uint8).tobytes().decode().split("\n")
    except UnicodeDecodeError:
        raise WeightsError("the words in the weights are no UTF-8: reinstall the filter") from None
    if len(set(names)) != len(names):
        raise WeightsError("a word occurs twice in the weights: reinstall the filter")
    return names


def digest(rules: str, arrays: Mapping[str, Array], settings: Sequence[float]) -> str:
    """sha256 over what a filter computes: its rules, its arrays by name, type, shape and content, its settings."""
    found = hashlib.sha256(f"{rules}|{[float(value).hex() for value in settings]}".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"|{name}|{array.dtype.str}|{array.shape}|".encode())
        found.update(array.tobytes())
    return found.hexdigest()
