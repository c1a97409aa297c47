"""Image classifiers from a folder, read as data: safetensors and JSON, never code.

What `save_pretrained` of a model and of its image processor write. Of the processor only its numbers are read: pictures
come in their final size and in [0, 1], and are normalised here. Nothing is cropped, so that nothing goes unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from transformers import AutoModelForImageClassification

from promptguard.errors import UnknownName, WeightsError
from promptguard.score import checkpoint
from promptguard.vision.models import PretrainedClassifier

_NUMBERS = "preprocessor_config.json"
_RGB = 3
_Three = Annotated[tuple[float, ...], Field(min_length=_RGB, max_length=_RGB)]
_Side = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True, slots=True, eq=False)
class ImageClassifier:
    """A classifier in memory.

    Attributes:
        model: batches (count, 3, height, width) in [0, 1] to logits, in evaluation mode, on its device.
        labels: of its classes.
        size: height and width that it is given.
    """

    model: PretrainedClassifier
    labels: tuple[str, ...]
    size: tuple[int, int]


class _Preprocessing(BaseModel):
    """What an image processor does to a picture; its further settings concern how a picture gets to its size."""

    image_mean: _Three = (0.0,) * _RGB
    image_std: _Three = (1.0,) * _RGB
    do_normalize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    rescale_offset: bool = False
    size: dict[str, _Side] | _Side
    crop_size: dict[str, _Side] | _Side | None = None
    do_center_crop: bool | None = None

    def shape(self) -> tuple[int, int]:
        """Height and width that the model is given."""
        given = self.crop_size if self.do_center_crop and self.crop_size else self.size
        if isinstance(given, int):
            return given, given
        if given.keys() == {"shortest_edge"}:
            return given["shortest_edge"], given["shortest_edge"]
        return given["height"], given["width"]


def load_image_classifier(folder: Path, device: str = "cpu") -> ImageClassifier:
    """Load a classifier, in float32.

    Args:
        folder: with config.json, preprocessor_config.json and safetensors.
        device: for instance "cpu" or "cuda".

    Raises:
        UnknownName: there is no such folder.
        WeightsError: a file is missing, corrupt or would need code, or they do not make a classifier of RGB pictures.
        InvalidArgument: this machine has no such device.
    """
    if not folder.is_dir():
        raise UnknownName(f"there is no folder {str(folder)!r} with an image classifier")
    checkpoint.check(folder)
    numbers = _numbers(folder)
    size = numbers.shape()
    with checkpoint.quiet():
        try:
            model, info = AutoModelForImageClassification.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        except Exception as error:
            raise WeightsError(f"{folder.name} does not load as an image classifier: {type(error).__name__}") from None
    if info["missing_keys"] or info["mismatched_keys"]:  # transformers fills them with noise
        raise WeightsError(f"{folder.name} lacks weights of an image classifier: fine-tune it first")
    made = PretrainedClassifier(checkpoint.place(model, device), numbers).to(device).eval()
    labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    _try(made, size, len(labels), folder.name)
    return ImageClassifier(made, labels, size)


def _numbers(folder: Path) -> _Preprocessing:
    try:
        found = _Preprocessing.model_validate_json((folder / _NUMBERS).read_bytes())
        found.shape()
    except (OSError, ValidationError, KeyError):
        raise WeightsError(f"{folder.name} has no {_NUMBERS} with a size, and a mean and a deviation of RGB") from None
    if not found.do_rescale or found.rescale_offset or abs(found.rescale_factor * 255 - 1) > 1e-6:
        raise WeightsError(
            f"{_NUMBERS} of {folder.name} does not bring pictures to [0, 1]: rescale_factor must be 1/255"
        )
    if found.do_normalize:
        return found
    return found.model_copy(update={"image_mean": (0.0,) * _RGB, "image_std": (1.0,) * _RGB})


def _try(model: PretrainedClassifier, size: tuple[int, int], classes: int, name: str) -> None:
    """Make sure, before the first picture, that the model takes this size."""
    like: Any = next(model.parameters())
    try:
        with torch.inference_mode():
            shape = tuple(model(torch.zeros(1, _RGB, *size, device=like.device)).shape)
    except Exception as error:
        raise WeightsError(
            f"{name} cannot read RGB pictures of {size[0]} x {size[1]}: {type(error).__name__}"
        ) from None
    if shape != (1, classes) or classes < 2:
        raise WeightsError(f"{name} is no classifier of two classes or more")
