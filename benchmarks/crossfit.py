"""Prompts beside filters that have not seen them, so that a setting can be chosen on all prompts of one kind.

Cross-fitting: the paper's training-side prompts are cut into five folds at random, each label apart, and `bag` is
fitted five times by its own recipe (`filters/bag/train.py`, calibration included), each time without one fold. Rows
that share 0.7 of their words with a prompt of the fold are left out with it, from the fit and from the calibration,
since `train.jsonl` holds no such row of `bench.jsonl` either. A fit takes seconds. The five filters are not kept; their
digests are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy.sparse import csr_matrix

from promptguard.evaluate.prompts import Prompt
from promptguard.score.bag import BagFilter
from promptguard.score.wordpieces import read_words
from promptguard.types import Filter

sys.path.extend(str(Path(__file__).resolve().parent.parent / "filters" / name) for name in ("recipe", "evidence"))

from data import Row, Split, load_rows, split_rows
from lexical import fit

BAG = Path(__file__).resolve().parent.parent / "filters" / "bag" / "train.py"
FOLDS = 5
NEAR = 0.7  # Jaccard, of words
FALSE_POSITIVES = 0.02  # what the recipe calibrates for


@dataclass(frozen=True, slots=True)
class Unseen:
    """Prompts, and a filter that was trained and calibrated without them."""

    filter: Filter
    prompts: Sequence[Prompt]


def prompts_of(rows: Iterable[Row]) -> list[Prompt]:
    """Rows of the recipe as prompts; the id is a digest of the text."""
    return [
        Prompt(hashlib.sha256(row["text"].encode()).hexdigest()[:16], row["source"], row["label"], row["text"])
        for row in rows
    ]


def cut(rows: Sequence[Row], count: int, seed: int) -> list[list[Row]]:
    """The rows in `count` folds of one size, as nearly as can be; harmful rows first in each."""
    rng = random.Random(seed)
    kinds = [[row for row in rows if row["label"] == label] for label in ("harmful", "safe")]
    for kind in kinds:
        rng.shuffle(kind)
    return [[row for kind in kinds for row in kind[at::count]] for at in range(count)]


def without(split: Split, left_out: Sequence[Row]) -> Split:
    """The split without these rows and their near duplicates."""

    def far(rows: list[Row]) -> list[Row]:
        return [row for row, near in zip(rows, near_any(rows, left_out), strict=True) if not near]

    return Split(far(split.train), far(split.held))


def near_any(rows: Sequence[Row], others: Sequence[Row]) -> list[bool]:
    """For each row: does one of the others share `NEAR` of the words that occur in the two?"""
    words = [set(read_words(row["text"])) for row in (*rows, *others)]
    column = {word: at for at, word in enumerate(sorted(set().union(*words)))}
    pairs = [(at, column[word]) for at, found in enumerate(words) for word in found]
    at = tuple(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    occurs = csr_matrix((np.ones(len(pairs)), at), shape=(len(words), len(column)))
    sizes = np.array([len(found) for found in words])
    shared = (occurs[: len(rows)] @ occurs[len(rows) :].T).tocoo()
    union = sizes[shared.row] + sizes[len(rows) + shared.col] - shared.data
    texts, near = {row["text"] for row in others}, set(shared.row[shared.data >= NEAR * union].tolist())
    return [at in near or row["text"] in texts for at, row in enumerate(rows)]


def fitted(split: Split) -> BagFilter:
    """`bag` as its recipe makes it of a split."""
    recipe = bag_recipe()
    whole = {word: round(value * recipe.SCALE) for word, value in fit(split.train, recipe.PLAN).items()}
    weights = {word: value for word, value in whole.items() if value}
    total = recipe.calibrate(weights, split.held, FALSE_POSITIVES)["total"]
    return BagFilter(weights, unit=total + 0.5)


def bag_recipe() -> ModuleType:
    """The recipe of `bag`; every filter's is called train.py, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("bag_recipe", BAG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cross_fitted(train: Path, source: str, seed: int) -> list[Unseen]:
    """All prompts of a source of train.jsonl, in folds, each beside a `bag` that was fitted without it.

    Args:
        train: train.jsonl; what else the recipe reads is the repository's.
        source: whose prompts are left out; other sources are trained on in every fold.
        seed: of the folds.
    """
    split = split_rows(load_rows(train), shift=False)
    folds = cut([row for row in (*split.train, *split.held) if row["source"] == source], FOLDS, seed)
    return [Unseen(fitted(without(split, fold)), prompts_of(fold)) for fold in folds]


def held_out(filter_: Filter, train: Path, source: str, safe: int, seed: int) -> Unseen:
    """For filters that take long to train: the tenth that no bundled one has seen, with safe prompts of all sources."""
    rows = split_rows(load_rows(train), shift=False).held
    harmful = [row for row in rows if row["label"] == "harmful" and row["source"] == source]
    drawn = random.Random(seed).sample([row for row in rows if row["label"] == "safe"], safe)
    return Unseen(filter_, prompts_of([*harmful, *drawn]))
