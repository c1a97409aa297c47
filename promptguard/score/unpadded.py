"""The forward pass of an encoder over many short sequences at once, without padding.

All tokens of a pack are the rows of one matrix, so every linear layer is one multiplication over real tokens only;
attention runs over the sequences of one length together (`promptguard.score.attention`). It and the head compute in
float32. Three cuts change nothing of the result:

* What the first block makes of a token before attention depends on its id, place and segment alone: it is computed once
  for each such triple. The erasures of a text share most of them.
* Behind the last block only the first token is read, so there only its query, attention and feed-forward are computed.
* There the keys and values of the other tokens are never made: q (K h + b) is (K^T q) h plus what is the same for all
  tokens, and the mean of V h + b is V (mean of h) + b.

Together they save about a fifth of the arithmetic of six blocks. The number of rows is rounded up a little, since
oneDNN compiles a kernel (half a megabyte, a millisecond) for each number of rows that it meets. Sums are rounded in
another order than in the model's own forward pass, as they are between batches of different shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from promptguard.score.attention import FirstTokens, Group, attend, grouped
from promptguard.score.encoders import Block, Encoder
from promptguard.score.linear import Linear, linear
from promptguard.score.windows import Window


class UnpaddedEncoder:
    """Logits of packs of windows. It keeps packed copies of the linear layers, so the weights must stay as they are."""

    def __init__(self, encoder: Encoder, *, segments: bool) -> None:
        """Pack the weights.

        Args:
            encoder: the model's parts.
            segments: pass the windows' segment ids on; else every token is of segment 0.
        """
        *inner, last = encoder.blocks
        self._parts = encoder
        self._segments = encoder.types.num_embeddings if segments and encoder.types is not None else 1
        self._projections = [_joined(block.query, block.key, block.value) for block in inner]
        self._tails = [_Tail(block) for block in encoder.blocks]
        self._last_query = _joined(last.query)
        self._last = FirstTokens(last.key.weight, last.value.weight, last.value.bias, encoder.heads)

    def __call__(self, windows: Sequence[Window]) -> torch.Tensor:
        """Logits of shape (windows, labels); windows of one length must be neighbours, and none may be empty."""
        groups = grouped(len(window.ids) for window in windows)
        distinct, which = self._embed(windows, groups)
        hidden = distinct.index_select(0, which)
        for index, project in enumerate(self._projections):
            projected = project(hidden) if index else project(distinct).index_select(0, which)
            hidden = self._tails[index](hidden, attend(projected, groups, self._parts.heads))
        starts = torch.cat([torch.arange(group.start, group.rows.stop, group.length) for group in groups])
        first = hidden.index_select(0, _filled(starts.to(hidden.device)))
        context = self._last(self._last_query(first), hidden, groups)
        return self._head(self._tails[-1](first, context)[: len(windows)].float())

    def _embed(self, windows: Sequence[Window], groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normed embeddings of the distinct (id, place, segment), and which of them each row is."""
        parts, places = self._parts, self._parts.positions.num_embeddings
        ids = torch.tensor([token for window in windows for token in window.ids])
        of_group = (ids[group.rows].view(group.count, group.length) for group in groups)
        key = ids * places + torch.cat([parts.places(some).flatten() for some in of_group])
        if self._segments > 1:
            key = key * self._segments + torch.tensor([kind for window in windows for kind in window.types])
        keys, which = torch.unique(key, return_inverse=True)
        keys, which = (
            indices.to(parts.words.weight.device)
            for indices in (_filled(keys), _filled(which, max(group.end for group in groups)))
        )
        kinds, keys = keys % self._segments, keys // self._segments
        summed = parts.words(keys // places)
        if parts.types is not None:
            summed = summed + parts.types(kinds)
        return parts.norm(summed + parts.positions(keys % places)), which

    def _head(self, first: torch.Tensor) -> torch.Tensor:
        """Logits in float32, which a bfloat16 model would round to two or three digits."""
        return _in_float32(self._parts.classifier, self._parts.pooled(_in_float32(self._parts.pooler, first)))


class _Tail:
    """What a block does behind its attention."""

    def __init__(self, block: Block) -> None:
        self._out, self._up, self._down = (_joined(layer) for layer in (block.out, block.up, block.down))
        self._attention_norm, self._norm = block.attention_norm, block.norm

    def __call__(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        attended = self._attention_norm(self._out.plus(context, hidden))
        return torch.as_tensor(self._norm(self._down.plus(self._up.gelu(attended), attended)))


def _joined(*layers: Any) -> Linear:
    return linear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def _filled(indices: torch.Tensor, least: int = 0) -> torch.Tensor:
    """Row indices, the first one repeated behind them until their number is a round one, and at least so large."""
    least = max(least, len(indices))
    least += -least % (16 if least <= 256 else 64)
    return torch.cat([indices, indices[:1].expand(least - len(indices))])


def _in_float32(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, layer.weight.float(), layer.bias.float())
