"""Erased versions of a text in words.

A punctuation mark counts as a word, as in promptguard's unit "word".
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from augment import units

Eraser = Callable[[str], list[str]]


def prefixes(text: str, budget: int) -> list[str]:
    """The text with at most `budget` last words dropped (suffix mode)."""
    words = units(text)
    return ["".join(words[: len(words) - k]) for k in range(min(budget, len(words)) + 1)]


def deletions(text: str, low: int, high: int) -> list[str]:
    """The text with one contiguous block of `low` to `high` words dropped (insertion mode, one block)."""
    words = units(text)
    return [
        "".join([*words[:at], *words[at + size :]])
        for size in range(low, min(high, len(words)) + 1)
        for at in range(len(words) - size + 1)
    ]


def subsets(text: str, budget: int) -> list[str]:
    """The text with at most `budget` words dropped anywhere (infusion mode)."""
    words = units(text)
    gone = (set(pick) for size in range(min(budget, len(words)) + 1) for pick in combinations(range(len(words)), size))
    return ["".join(word for i, word in enumerate(words) if i not in drop) for drop in gone]


def scattered(text: str, count: int, rng: np.random.Generator) -> str:
    """The text with `count` single words dropped at random (one infusion erasure)."""
    words = units(text)
    gone = set(rng.choice(len(words), min(count, len(words)), replace=False).tolist())
    return "".join(word for i, word in enumerate(words) if i not in gone)


MODES: dict[str, Eraser] = {
    "plain": lambda text: [text],
    "suffix20": lambda text: prefixes(text, 20),
    "insertion10": lambda text: [text, *deletions(text, 1, 10)],
    "infusion2": lambda text: subsets(text, 2),
}
