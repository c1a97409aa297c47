"""The forward pass of an encoder over many short sequences at once, without padding.

All tokens of a pack are the rows of one matrix, so every linear layer is one multiplication over real tokens only;
attention runs over the sequences of one length together. It and the head compute in float32. Two cuts change nothing
of the result:

* What the first block makes of a token before attention depends on its id, place and segment alone: it is computed once
  for each such triple. The erasures of a text share most of them.
* Behind the last block only the first token is read, so there only its query, attention and feed-forward are computed.

Together they save about a sixth of the arithmetic of six blocks. The number of rows is rounded up a little, since
oneDNN compiles a kernel (half a megabyte, a millisecond) for each number of rows that it meets. Sums are rounded in
another order than in the model's own forward pass, as they are between batches of different shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional

from promptguard.score.encoders import Block, Encoder
from promptguard.score.linear import Linear, linear
from promptguard.score.windows import Window


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring sequences of one length: the first row, how many sequences, tokens of each."""

    start: int
    count: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)


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
        self._last_pair = _joined(last.key, last.value)

    def __call__(self, windows: Sequence[Window]) -> torch.Tensor:
        """Logits of shape (windows, labels); windows of one length must be neighbours, and none may be empty."""
        groups = _grouped(windows)
        distinct, which = self._embed(windows)
        hidden = distinct.index_select(0, which)
        for index, project in enumerate(self._projections):
            projected = project(hidden) if index else project(distinct).index_select(0, which)
            hidden = self._tails[index](hidden, self._attend(projected, groups))
        return self._head(self._read(hidden, groups)[: len(windows)].float())

    def _embed(self, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normed embeddings of the distinct (id, place, segment), and for each token which of them it is."""
        parts, places = self._parts, self._parts.positions.num_embeddings
        key = self._numbers(token for window in windows for token in window.ids) * places
        key += self._numbers(place for window in windows for place in range(len(window.ids)))
        if self._segments > 1:
            key = key * self._segments + self._numbers(kind for window in windows for kind in window.types)
        keys, which = torch.unique(key, return_inverse=True)
        keys, which = _filled(keys), _filled(which)
        kinds, keys = keys % self._segments, keys // self._segments
        summed = parts.words(keys // places)
        if parts.types is not None:
            summed = summed + parts.types(kinds)
        return parts.norm(summed + parts.positions(keys % places)), which

    def _numbers(self, values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self._parts.words.weight.device)

    def _attend(self, projected: torch.Tensor, groups: Sequence[_Group]) -> torch.Tensor:
        """Context of every row, shape (rows, hidden), of queries, keys and values of shape (rows, 3 hidden)."""
        wide = projected.float()
        context = wide.new_zeros(len(wide), wide.shape[1] // 3)
        for group in groups:
            split = wide[group.rows].view(group.count, group.length, 3, self._parts.heads, -1)
            query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
            attended = functional.scaled_dot_product_attention(query, key, value)
            context[group.rows] = attended.transpose(1, 2).reshape(-1, context.shape[1])
        return context.to(projected.dtype)

    def _read(self, hidden: torch.Tensor, groups: Sequence[_Group]) -> torch.Tensor:
        """States of the first tokens behind the last block, shape (windows, hidden)."""
        starts = [group.start + i * group.length for group in groups for i in range(group.count)]
        first = hidden.index_select(0, _filled(self._numbers(starts)))
        queries, pairs = self._last_query(first).float(), self._last_pair(hidden).float()
        context = torch.zeros_like(queries)
        done = 0
        for group in groups:
            split = pairs[group.rows].view(group.count, group.length, 2, self._parts.heads, -1)
            key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
            rows = slice(done, done + group.count)
            query = queries[rows].view(group.count, self._parts.heads, 1, -1)
            context[rows] = functional.scaled_dot_product_attention(query, key, value).reshape(group.count, -1)
            done += group.count
        return self._tails[-1](first, context.to(hidden.dtype))

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


def _filled(indices: torch.Tensor) -> torch.Tensor:
    """Row indices, the first one repeated behind them until their number is a round one."""
    step = 16 if len(indices) <= 256 else 64
    return torch.cat([indices, indices[:1].expand(-len(indices) % step)])


def _in_float32(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, layer.weight.float(), layer.bias.float())


def _grouped(windows: Sequence[Window]) -> list[_Group]:
    groups: list[_Group] = []
    start = 0
    for length, members in groupby(len(window.ids) for window in windows):
        groups.append(_Group(start, sum(1 for _ in members), length))
        start += groups[-1].count * length
    return groups
