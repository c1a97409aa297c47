"""The network of the filter: all-MiniLM-L6-v2 as a plain `BertForSequenceClassification`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from encoder import CLS, SEP, base_tensors, encode
from erasures import MODES
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

MAX_TOKENS = 126  # of text in one window; with [CLS] and [SEP] the window is 128
OVERLAP = 32


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


def max_margins(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], mode: str, bf16: bool = False
) -> np.ndarray:
    """Margin of the worst erasure of each text, in one of `MODES`."""
    candidates = [MODES[mode](text) for text in texts]
    flat = margins(model, tokenizer, [text for group in candidates for text in group], bf16=bf16)
    ends = np.cumsum([len(group) for group in candidates])
    return np.array([part.max() for part in np.split(flat, ends[:-1])], dtype=np.float32)
