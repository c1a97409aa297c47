"""The network of the filter: all-MiniLM-L6-v2 turned causal, with a head on every token, and its margins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from augment import units
from encoder import CLS, base_tensors, encode
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

MAX_TOKENS = 127  # of text in one window; with [CLS] the window is 128
OVERLAP = 32
LONGEST_PROMPT = 40  # units of the substrings in wrap mode
UNKNOWN = 100


def build(folder: Path, dropout: float = 0.1) -> BertForTokenClassification:
    """The base as a decoder with a fresh two-class head; embeddings frozen."""
    config = BertConfig.from_pretrained(folder, num_labels=2, classifier_dropout=dropout)
    config.id2label, config.label2id = {0: "safe", 1: "harmful"}, {"safe": 0, "harmful": 1}
    config.is_decoder = True
    config._attn_implementation = "eager"
    model = BertForTokenClassification(config)
    base = {name: value for name, value in base_tensors(folder).items() if ".pooler." not in name}
    missing = model.load_state_dict(base, strict=False)
    if set(missing.missing_keys) != {"classifier.weight", "classifier.bias"} or missing.unexpected_keys:
        raise SystemExit("the base encoder does not match BertForTokenClassification")
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    model.bert.embeddings.requires_grad_(False)
    return model


def collate(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Padded ids after [CLS], and the attention mask."""
    width = max(len(row) for row in ids) + 1
    batch = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros_like(batch)
    for i, row in enumerate(ids):
        batch[i, : len(row) + 1] = torch.tensor([CLS, *row])
        mask[i, : len(row) + 1] = 1
    return batch, mask


@torch.inference_mode()
def token_margins(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], bf16: bool = False, tokens: int = 4096
) -> list[np.ndarray]:
    """The logit margin at every token of each text, [CLS] left out; of a longer text, its first window."""
    model.eval()
    encoded = [row[:MAX_TOKENS] or [UNKNOWN] for row in encode(tokenizer, texts)]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    found: list[np.ndarray] = [np.empty(0)] * len(encoded)
    at = 0
    while at < len(order):
        size = max(1, tokens // (len(encoded[order[min(at + 255, len(order) - 1)]]) + 1))
        chunk = order[at : at + size]
        ids, mask = collate([encoded[i] for i in chunk])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
        margins = (logits[..., 1] - logits[..., 0]).numpy()
        for row, i in enumerate(chunk):
            found[i] = margins[row, 1 : 1 + len(encoded[i])]
        at += size
    return found


def max_margins(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], mode: str) -> np.ndarray:
    """The largest margin over the erasures of each text: "plain", "suffix" (unlimited) or "wrap".

    Every token ends a prefix here, inside words too: a little more than the unit "word" asks for.
    """
    if mode == "plain":
        return np.array([row[-1] for row in token_margins(model, tokenizer, texts)])
    if mode == "suffix":
        return np.array([row.max() for row in token_margins(model, tokenizer, texts)])
    owners, parts = [], []
    for owner, text in enumerate(texts):
        words = units(text)
        for start in range(max(1, len(words))):
            parts.append("".join(words[start : start + LONGEST_PROMPT]).strip())
            owners.append(owner)
    distinct = list(dict.fromkeys(parts))
    known = dict(zip(distinct, (row.max() for row in token_margins(model, tokenizer, distinct)), strict=True))
    best = np.full(len(texts), -np.inf)
    np.maximum.at(best, owners, [known[part] for part in parts])
    return best
