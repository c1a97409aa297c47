"""The parts of a transformers encoder whose forward pass is known here: BERT (MiniLM among them), DistilBERT, RoBERTa.

Only the stock classes count. A layer of another class, a replaced `forward`, a hook or a parametrisation computes
something else, and such a model runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    RobertaForSequenceClassification,
)
from transformers.activations import GELUActivation

_LAYERS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.ModuleList, nn.Tanh, GELUActivation)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Block:
    """The layers of one transformer block with its norms behind the residuals."""

    query: Any
    key: Any
    value: Any
    out: Any
    attention_norm: Any
    up: Any
    activation: Any
    down: Any
    norm: Any


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with learnt absolute positions, bidirectional attention, exact GELU, read at its first token.

    Attributes:
        words: embedding of token ids.
        positions: embedding of places in the sequence.
        places: the places of tokens from their ids, int64 of shape (sequences, length) both.
        types: embedding of segment ids, or None.
        norm: of the sum of embeddings.
        blocks: at least one.
        heads: attention heads.
        pooler: linear layer over the last states of the first tokens.
        pooled: what follows it.
        classifier: linear layer to the logits.
    """

    words: Any
    positions: Any
    places: Callable[[torch.Tensor], torch.Tensor]
    types: Any
    norm: Any
    blocks: tuple[Block, ...]
    heads: int
    pooler: Any
    pooled: Callable[[torch.Tensor], torch.Tensor]
    classifier: Any


def encoder_of(model: Any) -> Encoder | None:
    """The parts of a sequence classifier, or None if its forward pass is not one that is known here."""
    read = _KNOWN.get(type(model))
    if read is None or not all(map(_is_stock, model.modules())):
        return None
    encoder = read(model)
    uses_gelu = all(isinstance(block.activation, GELUActivation) for block in encoder.blocks)
    return encoder if encoder.blocks and uses_gelu and not getattr(model.config, "is_decoder", False) else None


def _is_stock(module: nn.Module) -> bool:
    if "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
        return False
    # Exact types: subclasses are other layers (adapters, parametrisations).
    return type(module) in _LAYERS or type(module).__module__ in _MODULES


def _in_order(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


@dataclass(frozen=True, slots=True)
class _BehindPadding:
    """RoBERTa's places: padding stands at its own id, other tokens are counted from the next number on."""

    padding: int

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        counted = (ids != self.padding).long()
        return counted.cumsum(1) * counted + self.padding


def _bert(model: Any) -> Encoder:
    return _like_bert(model, model.bert, _in_order, model.bert.pooler.dense, model.classifier)


def _roberta(model: Any) -> Encoder:
    places = _BehindPadding(model.roberta.embeddings.padding_idx)
    return _like_bert(model, model.roberta, places, model.classifier.dense, model.classifier.out_proj)


def _like_bert(
    model: Any, base: Any, places: Callable[[torch.Tensor], torch.Tensor], pooler: Any, classifier: Any
) -> Encoder:
    blocks = tuple(
        Block(
            query=layer.attention.self.query,
            key=layer.attention.self.key,
            value=layer.attention.self.value,
            out=layer.attention.output.dense,
            attention_norm=layer.attention.output.LayerNorm,
            up=layer.intermediate.dense,
            activation=layer.intermediate.intermediate_act_fn,
            down=layer.output.dense,
            norm=layer.output.LayerNorm,
        )
        for layer in base.encoder.layer
    )
    tables = base.embeddings
    return Encoder(
        words=tables.word_embeddings,
        positions=tables.position_embeddings,
        places=places,
        types=tables.token_type_embeddings,
        norm=tables.LayerNorm,
        blocks=blocks,
        heads=model.config.num_attention_heads,
        pooler=pooler,
        pooled=torch.tanh,
        classifier=classifier,
    )


def _distilbert(model: Any) -> Encoder:
    blocks = tuple(
        Block(
            query=layer.attention.q_lin,
            key=layer.attention.k_lin,
            value=layer.attention.v_lin,
            out=layer.attention.out_lin,
            attention_norm=layer.sa_layer_norm,
            up=layer.ffn.lin1,
            activation=layer.ffn.activation,
            down=layer.ffn.lin2,
            norm=layer.output_layer_norm,
        )
        for layer in model.distilbert.transformer.layer
    )
    tables = model.distilbert.embeddings

    return Encoder(
        words=tables.word_embeddings,
        positions=tables.position_embeddings,
        places=_in_order,
        types=None,
        norm=tables.LayerNorm,
        blocks=blocks,
        heads=model.config.n_heads,
        pooler=model.pre_classifier,
        pooled=torch.relu,
        classifier=model.classifier,
    )


_KNOWN: dict[type, Callable[[Any], Encoder]] = {
    BertForSequenceClassification: _bert,
    DistilBertForSequenceClassification: _distilbert,
    RobertaForSequenceClassification: _roberta,
}
_MODULES = frozenset(kind.__module__ for kind in _KNOWN)
