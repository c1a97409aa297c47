"""A bag of evidence: words, and words in order, each with a weight that is not negative.

The limit case of erase-and-check: the score is monotone, so one pass certifies against infusion of unlimited length.
Weights are integers and sums are exact, so batches and machines do not matter.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from promptguard.errors import FilterError, InvalidArgument, WeightsError
from promptguard.score.arrays import Array, ArraysConfig, digest, read_arrays, read_config, unpacked
from promptguard.score.wordpieces import read_words
from promptguard.view import VIEW

_RULES = f"bag 1, {VIEW}"
_DROPPING = frozenset({"suffix", "insertion", "infusion", "wrap"})


class BagFilter:
    """Scores t / (t + unit), where t is the total weight of the entries that occur.

    An entry is one word or several; it occurs when its words stand in the text in this order, whatever stands between
    them. Each entry counts once.

    Theorem: dropping words never raises the score. What occurs in the rest occurs in the whole, and no weight is
    negative. Hence the maximum over any erasures of words is the score itself, and no amount of added words hides it.

    This speaks of words as the units of the prompt cut them. Erasing the mark between glued words ("a-b" without "-")
    makes a word that the text did not have; no certificate needs that erasure, since a prompt's own words are still
    whole in what an attack of unit "word" makes of it.
    """

    def __init__(self, weights: Mapping[str, int], *, unit: float, threshold: float = 0.5, name: str = "bag") -> None:
        """Make the filter.

        Args:
            weights: entries, words as `read_words` gives them and joined by single spaces, with their weights.
            unit: total weight that scores 0.5; positive.
            threshold: scores at or above it are harmful; useful values are in (0, 1].
            name: for people.

        Raises:
            InvalidArgument: there is no entry, one is not as `read_words` gives it, a weight is no integer or
                negative, or `threshold` or `unit` cannot be used.
        """
        if not math.isfinite(threshold):
            raise InvalidArgument(f"threshold is {threshold}; it must be a finite number")
        if not (math.isfinite(unit) and unit > 0):
            raise InvalidArgument(f"unit is {unit}; it must be a positive number")
        if not weights or any(not isinstance(value, int) or value < 0 for value in weights.values()):
            raise InvalidArgument("weights must hold at least one entry, and integers that are not negative")
        self._entries: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for entry, weight in weights.items():
            if not _is_entry(entry):
                raise InvalidArgument("an entry of weights is not made of words as read_words gives them")
            first, *rest = entry.split(" ")
            self._entries[first].append((tuple(rest), weight))
        self._unit = float(unit)
        self.name = name
        rows = sorted(weights.items())
        text = np.frombuffer("\n".join(entry for entry, _ in rows).encode(), dtype=np.uint8)
        values = np.array([weight for _, weight in rows], dtype=np.int64)
        self.digest = digest(_RULES, {"entries": text, "weights": values}, [unit])
        self.threshold = float(threshold)
        self.guard_band = 0.0

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score in [0, 1] per text.

        Raises:
            FilterError: something in `texts` is not a string.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise FilterError(f"filter {self.name} takes a list of strings")
        return [1.0 - 1.0 / (1.0 + self.total(text) / self._unit) for text in texts]

    def total(self, text: str) -> int:
        """Total weight of the entries that occur in a text."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(read_words(text)):
            places[word].append(place)
        return sum(
            weight
            for first, found in places.items()
            for rest, weight in self._entries.get(first, ())
            if _follow(rest, found[0], places)
        )

    def monotone(self, kind: str, unit: str) -> bool:
        """True for every mode that drops words: "suffix", "insertion", "infusion" and "wrap" in unit "word"."""
        return unit == "word" and kind in _DROPPING


def _is_entry(entry: str) -> bool:
    words = entry.split(" ")
    return all(read_words(word) == [word] for word in words)


def _follow(words: Sequence[str], place: int, places: Mapping[str, Sequence[int]]) -> bool:
    """Whether words stand after a place in this order; taking each at its earliest is best."""
    for word in words:
        found = places.get(word, ())
        at = bisect_left(found, place + 1)
        if at == len(found):
            return False
        place = found[at]
    return True


class BagConfig(ArraysConfig):
    """The `config.json` of a bundled bag."""

    kind: Literal["bag"]


def load_bag(folder: Path, threshold: float | None = None) -> BagFilter:
    """The bag in a folder; needs no model and no tokenizer.

    Args:
        folder: holds `config.json` and the weights that it names: `entries` (UTF-8 bytes, one entry a line) and
            `weights` (integers, one an entry).
        threshold: scores at or above it are harmful; default the one it was calibrated at.

    Raises:
        WeightsError: a file is missing, damaged or does not fit the other.
        InvalidArgument: `threshold` is not finite.
    """
    config = read_config(folder, BagConfig)
    arrays = read_arrays(folder / config.weights.file, config.weights.sha256)
    chosen = config.threshold if threshold is None else threshold
    weights = _weights(arrays)
    return BagFilter(weights, unit=config.unit, threshold=chosen, name=config.name)


def _weights(arrays: Mapping[str, Array]) -> dict[str, int]:
    if set(arrays) != {"entries", "weights"} or not np.issubdtype(arrays["weights"].dtype, np.integer):
        raise WeightsError("bag weights hold something else than entries and integer weights")
    entries, values = unpacked(arrays["entries"]), arrays["weights"]
    if values.shape != (len(entries),) or (values < 0).any():
        raise WeightsError("bag weights are not one number per entry, or negative")
    if not all(map(_is_entry, entries)):
        raise WeightsError("an entry of the bag is not made of words as they are read: reinstall the filter")
    return dict(zip(entries, values.tolist(), strict=True))
