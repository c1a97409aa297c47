"""Pictures as files, plain and crafted, and small classifiers of them."""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from promptguard.vision.models import PretrainedClassifier
from promptguard.vision.training.gaussian import GaussianAugmentation
from promptguard.vision.training.loop import Schedule, train

SIDE = 16
SIGMA = 0.25
NAMES = {0: "meadow", 1: "weapon", 2: "sea"}
PNG = b"\x89PNG\r\n\x1a\n"


class Brightness(nn.Module):
    """Class 1 for bright images, 0 for dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1) - 0.5
        return self.scale * torch.stack([-mean, mean], 1)


def scene(kind: str, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of a class: a red cross is a weapon, green a meadow, blue the sea."""
    made = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3))
    made[..., {"meadow": 1, "weapon": 0, "sea": 2}[kind]] += 150
    if kind == "weapon":
        made[size[1] // 3 : size[1] // 2] = 230
    return Image.fromarray(made.astype(np.uint8))


def tensor_of(image: Image.Image) -> torch.Tensor:
    """Its pixels in [0, 1], (3, height, width)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def url_of(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def chat_part(data: bytes, kind: str = "png", **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url_of(data, kind), **more}}


def input_part(data: bytes, kind: str = "png", **more: Any) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url_of(data, kind), **more}


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A chunk of a PNG, with its code."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """A PNG of these raw rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    at = len(PNG) + 25
    return data[:at] + chunk(kind, body) + data[at:]


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment at its beginning."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of these chunks."""
    body = b"".join(kind + struct.pack("<I", len(b)) + b + b"\0" * (len(b) % 2) for kind, b in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def processor() -> Any:
    made: Any = ViTImageProcessorPil
    return made(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@functools.cache
def vit() -> Any:
    """A small vision transformer that learned the three scenes under noise."""
    torch.manual_seed(0)
    configure: Any = ViTConfig
    config = configure(
        image_size=SIDE, patch_size=4, hidden_size=32, intermediate_size=32, num_attention_heads=2,
        num_hidden_layers=2, num_labels=3, id2label=NAMES, label2id={name: i for i, name in NAMES.items()},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    make: Any = ViTForImageClassification
    model = make(config)
    scenes = [(scene(name, seed), label) for seed in range(100) for label, name in NAMES.items()]
    images = torch.stack([tensor_of(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image, _ in scenes])
    labels = torch.tensor([label for _, label in scenes])
    base = PretrainedClassifier(model, processor())
    train(
        base, images, labels, GaussianAugmentation(SIGMA),
        generator=torch.Generator().manual_seed(0), schedule=Schedule(epochs=6, rate=0.01),
    )  # fmt: skip
    return model.eval()


def vit_folder(folder: Path) -> Path:
    """Its folder, as `save_pretrained` writes it."""
    vit().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
