"""Attention over many short sequences of one length, from the rows of one matrix, without padding in that matrix.

The general kernels of torch spend about two microseconds on every head of every sequence, which at ten tokens is ten
times the arithmetic. Here the heads of all sequences of a length are one batched product each for scores and contexts.
The softmax is fast over rows that fill whole vectors only, so the keys of a sequence are read on into the rows behind
it, up to a multiple of 16, and these scores are -inf: their weights are exactly 0 and the result is that of the
sequence alone. All of it in float32, whatever the precision of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn import functional

_VECTOR = 16  # numbers in float32 in the widest vector of a processor
_SHORT = 96  # tokens; from there on the general kernels are as fast and need no memory for the scores
_CACHED = 1 << 18  # numbers in the keys of the sequences that are worked on at once, so that they stay in the cache


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring sequences of one length.

    Attributes:
        start: their first row.
        count: how many there are.
        length: tokens of each.
    """

    start: int
    count: int
    length: int

    @property
    def rows(self) -> slice:
        """All their rows."""
        return slice(self.start, self.start + self.count * self.length)

    @property
    def keys(self) -> int:
        """Rows that are read as keys of a sequence, those behind it included."""
        return self.length if self.length > _SHORT else self.length + -self.length % _VECTOR

    @property
    def end(self) -> int:
        """The end of the rows that are read."""
        return self.start + (self.count - 1) * self.length + self.keys

    def parts(self, width: int) -> Iterator[Group]:
        """The group in parts whose keys of `width` numbers stay in a processor's cache."""
        most = max(1, _CACHED // (self.keys * width))
        for done in range(0, self.count, most):
            yield Group(self.start + done * self.length, min(most, self.count - done), self.length)


def grouped(lengths: Iterable[int]) -> list[Group]:
    """Sequences of these lengths, one after the other, as groups."""
    groups: list[Group] = []
    start = 0
    for length, members in groupby(lengths):
        groups.append(Group(start, sum(1 for _ in members), length))
        start += groups[-1].count * length
    return groups


def attend(projected: torch.Tensor, groups: Iterable[Group], heads: int) -> torch.Tensor:
    """Context of every row, shape (rows, hidden), in the precision of the rows.

    Args:
        projected: queries, keys and values beside each other, shape (rows, 3 hidden), contiguous; finite. Rows up to
            the largest `end` of the groups must be there.
        groups: the sequences.
        heads: attention heads, a divisor of hidden.
    """
    width = projected.shape[1] // 3
    context = projected.new_zeros(len(projected), width)
    for part in (part for group in groups for part in group.parts(width)):
        split = context[part.rows].view(part.count, part.length, heads, -1).transpose(1, 2)
        is_cheap = part.length <= _SHORT and projected.device.type == "cpu"
        split.copy_((_by_products if is_cheap else _by_kernel)(projected, part, heads))
    return context


class FirstTokens:
    """Contexts of the first tokens alone, from the states of all tokens, without their keys and values.

    The score of a key K h + b for a query q is (K^T q) h + q b; the last term is the same for all tokens of a sequence
    and leaves the softmax as it is. The context, a mean of V h + b, is V (mean of h) + b. So the weights meet one row
    per sequence and head, and not every token.
    """

    def __init__(self, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, heads: int) -> None:
        """Copy the weights.

        Args:
            key: weight of the keys, shape (hidden, hidden).
            value: weight of the values, shape (hidden, hidden).
            bias: bias of the values, shape (hidden,).
            heads: attention heads.
        """
        hidden = len(key)
        self._key = key.detach().float().view(heads, -1, hidden) * (hidden // heads) ** -0.5
        self._value = value.detach().float().view(heads, -1, hidden).transpose(1, 2).contiguous()
        self._bias = bias.detach().float()

    def __call__(self, queries: torch.Tensor, states: torch.Tensor, groups: Iterable[Group]) -> torch.Tensor:
        """Contexts in the precision of the states, one row per row of `queries`.

        Args:
            queries: of the first tokens, shape (at least as many as sequences, hidden).
            states: of all tokens, shape (rows, hidden), contiguous; finite. Rows up to the largest `end` of the groups
                must be there.
            groups: the sequences.
        """
        heads, size, hidden = self._key.shape
        split = queries.float().view(-1, heads, size).transpose(0, 1)
        wanted = torch.bmm(split, self._key).transpose(0, 1).contiguous()
        means = torch.zeros_like(wanted)
        done = 0
        for group in groups:
            of = slice(done, done + group.count)
            found = states.as_strided(
                (group.count, group.keys, hidden), (group.length * hidden, hidden, 1), group.start * hidden
            )
            wide = found.float()
            scores = torch.baddbmm(
                _behind(group, states.device).expand(group.count, heads, -1), wanted[of], wide.transpose(1, 2)
            )
            torch.bmm(torch.softmax(scores, -1), wide, out=means[of])
            done += group.count
        made = torch.bmm(means.transpose(0, 1), self._value).transpose(0, 1).reshape(-1, hidden)
        return (made + self._bias).to(states.dtype)


def _by_products(projected: torch.Tensor, group: Group, heads: int) -> torch.Tensor:
    """Contexts of shape (count, heads, length, size)."""
    count, length, keys = group.count, group.length, group.keys
    wide = projected.shape[1]
    size = wide // 3 // heads
    first = projected.storage_offset() + group.start * wide
    strides = (length * wide, size, wide, 1)
    queries = projected.as_strided((count, heads, length, size), strides, first)
    pairs = projected.as_strided((2, count, heads, keys, size), (wide // 3, *strides), first + wide // 3)
    key, value = _copied(pairs).view(2, count * heads, keys, size).unbind(0)
    scores = torch.baddbmm(
        _behind(group, projected.device).expand(count * heads, length, keys),
        _copied(queries).view(count * heads, length, size),
        key.transpose(1, 2),
        alpha=size**-0.5,
    )
    return torch.bmm(torch.softmax(scores, -1), value).view(count, heads, length, size)


def _by_kernel(projected: torch.Tensor, group: Group, heads: int) -> torch.Tensor:
    """As `_by_products`."""
    split = projected[group.rows].float().view(group.count, group.length, 3, heads, -1)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    return functional.scaled_dot_product_attention(query, key, value)


def _behind(group: Group, device: torch.device) -> torch.Tensor:
    """What is added to the scores of a sequence's keys: 0, and -inf for those behind it."""
    added = torch.zeros(group.keys, device=device)
    added[group.length :] = -math.inf
    return added


def _copied(view: torch.Tensor) -> torch.Tensor:
    """In float32, in the order of its dimensions, in one pass."""
    return torch.empty(view.shape, dtype=torch.float32, device=view.device).copy_(view)
