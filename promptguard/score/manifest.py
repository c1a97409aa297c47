"""The `config.json` of a bundled filter, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promptguard.errors import WeightsError

ARITHMETIC = frozenset({"evidence", "bag"})  # kinds that are no models and have no device
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A path inside its folder: no part is "..", and it is not absolute.
Inside = Annotated[str, Field(pattern=r"^\w[\w-]*(/\w[\w-]*)*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseSource(_Strict):
    """The pretrained encoder under a filter and the digests that it must have.

    Attributes:
        repo: its hub repository.
        package: the registry package that carries it.
        module: the package's top-level module.
        folder: the model's folder inside the module.
        weights_sha256: digest of its `model.safetensors`.
        vocab_sha256: digest of its tokens in id order, joined by newlines, in UTF-8.
    """

    repo: str
    package: str
    module: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    folder: Inside
    weights_sha256: Sha256
    vocab_sha256: Sha256


class OwnWeights(_Strict):
    """Our own tensors.

    Attributes:
        file: safetensors file beside `config.json`.
        sha256: its digest.
    """

    file: Annotated[str, Field(pattern=r"^[\w-]+\.safetensors$")]
    sha256: Sha256


class BundledConfig(_Strict):
    """Everything about a bundled transformer but its tensors.

    Attributes:
        name: the folder's name.
        kind: "delta": differences to a public base model; "causal": such a model that reads its score off the last
            token of a text, without special tokens behind it.
        summary: one line for people.
        base: the base model.
        architecture: transformers class of the classifier.
        id2label: names of its labels.
        harmful: the one that means harm.
        threshold: scores at or above it are harmful.
        window: tokens read at once, special ones included.
        overlap: tokens that neighbouring windows share.
        weights: our own tensors.
    """

    name: str
    kind: Literal["delta", "causal"]
    summary: str
    base: BaseSource
    architecture: Annotated[str, Field(pattern=r"^\w+For(Sequence|Token)Classification$")]
    id2label: Annotated[dict[int, str], Field(min_length=1)]
    harmful: str
    threshold: Annotated[float, Field(ge=0, le=1)]
    window: Annotated[int, Field(gt=0)]
    overlap: Annotated[int, Field(ge=0)]
    weights: OwnWeights

    @model_validator(mode="after")
    def _labels_agree(self) -> BundledConfig:
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError("id2label must number its labels from 0")
        if self.harmful not in self.id2label.values():
            raise ValueError("harmful must be one of id2label")
        return self


class Entry(BaseModel):
    """What every bundled filter's `config.json` says, whatever its kind.

    Attributes:
        name: the folder's name.
        kind: which loader reads the rest.
        summary: one line for people.
        threshold: scores at or above it are harmful.
        base: the base model, for kinds that have one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    kind: Literal["delta", "causal", "evidence", "bag"]
    summary: str
    threshold: Annotated[float, Field(ge=0, le=1)]
    base: BaseSource | None = None


def read_entry(folder: Path) -> Entry:
    """The part of a bundled filter's `config.json` that all kinds share.

    Raises:
        WeightsError: as `read_manifest`.
    """
    return _read(folder, Entry)


def read_manifest(folder: Path) -> BundledConfig:
    """The validated `config.json` of a bundled filter's folder.

    Raises:
        WeightsError: it is missing, no JSON, has unknown or missing fields, or another name than its folder.
    """
    return _read(folder, BundledConfig)


_C = TypeVar("_C", BundledConfig, Entry)


def _read(folder: Path, model: type[_C]) -> _C:
    path = folder / "config.json"
    try:
        config = model.model_validate_json(path.read_bytes())
    except OSError:
        raise WeightsError(f"the bundled filter {folder.name} cannot be read: reinstall promptguard") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3])
        raise WeightsError(f"config.json of filter {folder.name} is not valid: {faults}") from None
    if config.name != folder.name:
        raise WeightsError(f"config.json in folder {folder.name} is that of filter {config.name!r}")
    return config
