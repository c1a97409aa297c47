"""Evidence windows: a filter whose maximum over all infusion erasures is a dynamic programme.

Every word has a fixed vector, the mean of its word pieces. A *pattern* is a row of w position scorers and a price for
every word it skips; its evidence is the largest sum of position scores over the ways to place its positions, in order,
on words of the text, less the price of the words skipped between them (a soft-pattern automaton as in Schwartz et al.
2018, "SoPa", over the max-plus semiring). The score grows with every pattern's evidence and with the weights of known
words that occur; it depends on nothing else.

Erasing a skipped word makes it free. The evidence after at most r erasures is therefore a recurrence over words,
positions and r, with n w d steps for a pattern, exact for that pattern. Taking each pattern at its own best erasure
bounds the score from above, since no weight of the combination is negative.

Everything up to the score is integer arithmetic held in float64, far below 2**53, so it is exact and does not depend on
batches, order or machine; the last step is three roundings that keep order. The guard band is therefore 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from promptguard.errors import FilterError, InvalidArgument, WeightsError
from promptguard.score.arrays import Array, ArraysConfig, digest, read_arrays, read_config, unpacked
from promptguard.score.wordpieces import WordVectors, read_words
from promptguard.view import VIEW

HEAD_UNIT = 65_536  # a weight of 1 in the head
EXACT = 64  # erased words up to which bounds are computed; beyond, the bound for any number answers
_EXACT_INTEGERS = 2.0**52
_RULES = f"evidence 1, {VIEW}"


@dataclass(frozen=True, slots=True)
class Patterns:
    """K patterns of w positions; integers in float64.

    Attributes:
        weight: (w, D, K) position scorers.
        bias: (w, K) added to them.
        cap: the most that one position may score.
        skip: (K,) price of a skipped word, not negative.
    """

    weight: Array
    bias: Array
    cap: float
    skip: Array

    def scores(self, vectors: Array) -> Array:
        """(w, n, K): what each position scores on each word."""
        return np.asarray(np.minimum(vectors @ self.weight + self.bias[:, None, :], self.cap))

    def unlimited(self, scores: Array) -> Array:
        """(K,): evidence when any number of words may be erased."""
        best = scores[0]
        for score in scores[1:]:
            before = np.maximum.accumulate(best, axis=0)[:-1]
            best = np.full_like(score, -np.inf)
            best[1:] = score[1:] + before
        return np.asarray(best.max(axis=0, initial=-np.inf))

    def evidence(self, scores: Array, jump: Array, budget: int) -> Array:
        """(budget + 1, K): evidence after at most 0, 1, ... erased pieces; the last rows are left out if they repeat.

        `reach[j]` has row i + 1: the best sum of positions up to j with the last of them at or before word i, less the
        price of the words after it up to i. Erasing the piece that ends at word i leads there from row jump[i].

        Args:
            scores: what `scores` returned.
            jump: (n,) the number of words before the piece that ends at word i; 0 if none ends there.
            budget: pieces.
        """
        width, n, count = scores.shape
        price = np.arange(n)[:, None] * self.skip
        end = self.unlimited(scores)
        reach = np.full((width - 1, n + 1, count), -np.inf)
        rows: list[Array] = []
        for erased in range(budget + 1):
            latest = scores[0]
            for j in range(width - 1):
                if erased:
                    latest = np.maximum(latest, reach[j][jump])
                reach[j, 1:] = np.maximum.accumulate(latest + price, axis=0) - price
                latest = scores[j + 1] + reach[j, :-1]
            rows.append(latest.max(axis=0, initial=-np.inf))
            if (rows[-1] == end).all():
                break
            if erased == EXACT:
                rows.append(end)
                break
        return np.array(rows[: budget + 1])


@dataclass(frozen=True, slots=True)
class Head:
    """Evidence to score: not decreasing in any pattern. Integers in float64.

    Attributes:
        bias: (K,) added to the evidence; what is then negative counts as 0.
        weight: (K, H) not negative, to H hidden sums.
        least: (H,) not negative, taken off the sums; what is then negative counts as 0.
        most: the largest hidden value.
        hidden: (H,) not negative.
        direct: (K,) not negative.
        unit: total evidence that scores 0.5.
    """

    bias: Array
    weight: Array
    least: Array
    most: float
    hidden: Array
    direct: Array
    unit: float

    def __call__(self, evidence: Array, known: int) -> list[float]:
        """Scores in [0, 1] of rows of evidence, (rows, K), and of the total weight of known words."""
        found = np.maximum(evidence + self.bias, 0.0)
        sums = np.floor(found @ self.weight / HEAD_UNIT)  # back to the evidence's unit, still exact and in order
        hidden = np.minimum(np.maximum(sums - self.least, 0.0), self.most)
        total = hidden @ self.hidden + found @ self.direct + float(known * HEAD_UNIT)
        return [1.0 - 1.0 / (1.0 + float(value) / self.unit) for value in total]

    def largest(self, evidence: Array) -> float:
        """A bound on every sum of the call above, for evidence of at most this, (K,)."""
        found = np.maximum(evidence + self.bias, 0.0)
        total = self.most * self.hidden.sum() + found @ self.direct
        return float(max(total, (found @ self.weight).max(initial=0.0)))


class EvidenceFilter:
    """Scores by evidence windows.

    Theorem: for words w and any budget r, `infusion_scores(w, r)[r]` is at least the score of w with any r or fewer
    words erased, and with one pattern that counts it is the maximum over them. Dropping words at the ends never raises
    the score ("suffix" and "wrap"): what lies between is unchanged, so every placing of a pattern in the part is one in
    the whole, at the same price. If no pattern charges for skipped words, no erasure of words raises it.

    Both speak of words as the units of the prompt cut them. Erasing the mark between glued words ("a-b" without "-")
    also makes a word that was in neither: a list of erased texts holds it, these bounds do not. No certificate needs
    it: a prompt's own words are still whole in what an attack of unit "word" makes of it.
    """

    def __init__(
        self, arrays: Mapping[str, Array], *, unit: float, threshold: float = 0.5, name: str = "evidence"
    ) -> None:
        """Make the filter.

        Args:
            arrays: integers; names and shapes are those of `weights.safetensors` in `filters/evidence`.
            unit: total evidence that scores 0.5; positive.
            threshold: scores at or above it are harmful; useful values are in (0, 1].
            name: for people.

        Raises:
            WeightsError: an array is missing, left over, of the wrong shape, not of integers, or negative where the
                bounds need that it is not.
            InvalidArgument: `threshold` or `unit` is not a number that can be used.
        """
        if not math.isfinite(threshold):
            raise InvalidArgument(f"threshold is {threshold}; it must be a finite number")
        if not (math.isfinite(unit) and unit > 0):
            raise InvalidArgument(f"unit is {unit}; it must be a positive number")
        self._vectors, self._patterns, self._head, self._weights = _assembled(arrays, float(unit))
        self.name = name
        self.digest = digest(_RULES, arrays, [unit])
        self.threshold = float(threshold)
        self.guard_band = 0.0

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score in [0, 1] per text.

        Raises:
            FilterError: something in `texts` is not a string.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise FilterError(f"filter {self.name} takes a list of strings")
        return [self._bounds([[word] for word in read_words(text)], 0)[0] for text in texts]

    def infusion_scores(self, words: Sequence[str], budget: int) -> list[float]:
        """Upper bounds B_0, ..., B_budget over the erasures of `words`; see `promptguard.capabilities.InfusionFilter`.

        Args:
            words: canonical pieces of the unit "word", in order. A piece whose canonical view holds several words is
                erased as one.
            budget: words that may be erased.

        Raises:
            InvalidArgument: `budget` is negative.
        """
        if budget < 0:
            raise InvalidArgument(f"budget is {budget}; it must not be negative")
        return self._bounds([read_words(word) for word in words], budget)

    def monotone(self, kind: str, unit: str) -> bool:
        """Whether no erasure of this kind raises the score: in unit "word", "suffix" and "wrap" always."""
        free = all(len(p.weight) == 1 or not p.skip.any() for p in self._patterns)
        return unit == "word" and (kind in {"suffix", "wrap"} or (free and kind in {"insertion", "infusion"}))

    def _bounds(self, pieces: Sequence[Sequence[str]], budget: int) -> list[float]:
        words = [word for piece in pieces for word in piece]
        jump = np.zeros(len(words), dtype=np.intp)
        start = 0
        for piece in pieces:
            if piece:
                jump[start + len(piece) - 1] = start
                start += len(piece)
        order = {word: row for row, word in enumerate(dict.fromkeys(words))}
        index = [order[word] for word in words]
        vectors = self._vectors(list(order))
        known = sum(self._weights.get(word, 0) for word in order)
        found = [p.evidence(p.scores(vectors)[:, index], jump, budget) for p in self._patterns]
        rows = max(map(len, found))
        padded = [np.concatenate([part, np.repeat(part[-1:], rows - len(part), axis=0)]) for part in found]
        scores = self._head(np.concatenate(padded, axis=1), known)
        return scores + scores[-1:] * (budget + 1 - rows)


def _assembled(arrays: Mapping[str, Array], unit: float) -> tuple[WordVectors, list[Patterns], Head, dict[str, int]]:
    left = dict(arrays)

    def take(name: str, *shape: int | None, least: int | None = None) -> Array:
        array = left.pop(name, None)
        if array is None or not np.issubdtype(array.dtype, np.integer) or array.dtype.itemsize > 4:
            raise WeightsError(f"evidence weights lack {name}, or it does not hold integers of at most 32 bits")
        if array.ndim != len(shape) or any(size not in {None, n} for size, n in zip(shape, array.shape, strict=True)):
            raise WeightsError(f"evidence weights have the wrong shape for {name}")
        if least is not None and (array < least).any():
            raise WeightsError(f"evidence weights hold numbers below {least} in {name}")
        return array if name.startswith(("pieces.", "words.")) else array.astype(np.float64)

    pieces = unpacked(take("pieces.names", None))
    table = take("pieces.vectors", len(pieces), None)
    patterns: list[Patterns] = []
    while f"windows.{len(patterns)}.weight" in left:
        key = f"windows.{len(patterns)}"
        weight = take(f"{key}.weight", None, table.shape[1], None)
        width, _, count = weight.shape
        if not width:
            raise WeightsError(f"evidence weights have no position in {key}")
        bias, cap = take(f"{key}.bias", width, count), take(f"{key}.cap", 1)
        patterns.append(Patterns(weight, bias, float(cap[0]), take(f"{key}.skip", count, least=0)))
    total = sum(p.weight.shape[2] for p in patterns)
    if not total:
        raise WeightsError("evidence weights hold no patterns")
    weight = take("head.weight", total, None, least=0)
    hidden = weight.shape[1]
    head = Head(
        bias=take("head.bias", total),
        weight=weight,
        least=take("head.least", hidden, least=0),
        most=float(take("head.most", 1, least=0)[0]),
        hidden=take("head.hidden", hidden, least=0),
        direct=take("head.direct", total, least=0),
        unit=unit,
    )
    words = unpacked(take("words.names", None))
    weights = dict(zip(words, take("words.weight", len(words), least=0).tolist(), strict=True))
    if left:
        raise WeightsError(f"evidence weights hold what no filter uses: {', '.join(sorted(left)[:4])}")
    highest = np.concatenate([np.full(p.weight.shape[2], len(p.weight) * p.cap) for p in patterns])
    if head.largest(highest) + HEAD_UNIT * sum(weights.values()) >= _EXACT_INTEGERS:
        raise WeightsError("evidence weights are too large for exact sums")
    return WordVectors(pieces, table), patterns, head, weights


class EvidenceConfig(ArraysConfig):
    """The `config.json` of a bundled evidence filter."""

    kind: Literal["evidence"]


def load_evidence(folder: Path, threshold: float | None = None) -> EvidenceFilter:
    """The evidence filter in a folder; needs no model and no tokenizer.

    Args:
        folder: holds `config.json` and the weights that it names.
        threshold: scores at or above it are harmful; default the one it was calibrated at.

    Raises:
        WeightsError: a file is missing, damaged or does not fit the other.
        InvalidArgument: `threshold` is not finite.
    """
    config = read_config(folder, EvidenceConfig)
    arrays = read_arrays(folder / config.weights.file, config.weights.sha256)
    chosen = config.threshold if threshold is None else threshold
    return EvidenceFilter(arrays, unit=config.unit, threshold=chosen, name=config.name)
