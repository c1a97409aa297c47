"""What a transformers model can be asked: its identity, its longest input, its precision."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from promptguard.errors import FilterError, InvalidArgument

# Fields of a configuration that do not change what the model computes.
_COSMETIC = frozenset({"_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version"})
_LONGEST_BY_DEFAULT = 512
_STRETCHING = frozenset({"dynamic", "longrope"})

# Scores move with the composition of a batch: padding and batch size choose other kernels, which add in another order.
# Measured on a 6-layer encoder with heads of several scales, 300 texts alone and batched: at most 2e-6 in float32 and
# 2.4e-2 in bfloat16 (one unit in the last place of a logit near 4 is 1.6e-2). The bands leave room for deeper models.
GUARD_BANDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def model_digest(model: Any) -> str:
    """sha256 over the class, the configuration and every tensor (name, dtype, shape, bytes) of a model, in hex."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _COSMETIC}
    digest = hashlib.sha256(type(model).__name__.encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def position_limit(model: Any) -> int | None:
    """Tokens, special ones included, that the model has positions for; None when its configuration does not say.

    Rotary embeddings that stretch with the longest text of a batch are taken up to the length where they begin to:
    beyond it the score of a text would depend on its neighbours.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if stretches(config):
        unstretched = getattr(config, "original_max_position_embeddings", None)
        scaling = getattr(config, "rope_parameters", None) or {}
        unstretched = unstretched or scaling.get("original_max_position_embeddings")
        positions = min(positions, unstretched) if isinstance(unstretched, int) else positions
    return positions - _shifted_positions(model)


def stretches(config: Any) -> bool:
    """Whether rotary embeddings change with the length of the forward pass ("dynamic", "longrope")."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in rope.values() if isinstance(value, dict)]
    return any(each.get("rope_type") in _STRETCHING for each in (rope, *by_layer))


def default_window(model: Any, tokenizer: Any) -> int:
    """Tokens, special ones included, that model and tokenizer both accept; 512 when neither says."""
    # transformers writes an unknown length as 1e30.
    limits = [limit for limit in (position_limit(model), tokenizer.model_max_length) if limit and limit < 1e9]
    return min(limits, default=_LONGEST_BY_DEFAULT)


def default_guard_band(dtype: torch.dtype) -> float:
    """How far a score in [0, 1] may move with its batch in this precision.

    Raises:
        InvalidArgument: no figure is known for `dtype`.
    """
    if dtype not in GUARD_BANDS:
        raise InvalidArgument(f"no guard band is known for {dtype}: use float32 or bfloat16, or pass guard_band")
    return GUARD_BANDS[dtype]


def _shifted_positions(model: Any) -> int:
    # RoBERTa and its relatives number positions from padding_idx + 1 and show it by a padded table of positions.
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def refuse_quantised(model: Any) -> None:
    """Refuse models whose score may depend on what else is in the batch.

    Raises:
        FilterError: the model is quantised. Dynamic int8 takes its scales from the batch, so "the score of a text" does
            not exist and nothing can be certified about it.
    """
    dynamic = any("quantized.dynamic" in type(module).__module__ for module in model.modules())
    if dynamic or getattr(model.config, "quantization_config", None) is not None:
        raise FilterError(
            "the model is quantised and its scores may depend on the batch: load it as float32 or bfloat16"
        )
