"""Words as a filter without a network reads them, and fixed vectors for them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from promptguard.score.arrays import Array
from promptguard.units import Words
from promptguard.view import canonical

WORD_NORM = 1024  # length of a word vector, in its integer units
_LONGEST_WORD = 100  # letters; a longer word has no vector
_CACHED_WORDS = 65_536
_WORDS = Words()


def read_words(text: str) -> list[str]:
    """The words of a text: units "word" of its canonical view, without case and accents.

    A unit of nothing but combining marks is no word. Joining the words of all units of a text gives the words of the
    text, except where "\N{DEGREE CELSIUS}" or "\N{DEGREE FAHRENHEIT}" is glued to a following letter: the canonical
    view makes one word of the two.
    """
    return [word for word in map(_folded, _WORDS(canonical(text))) if word]


def _folded(piece: str) -> str:
    apart = unicodedata.normalize("NFD", piece.strip().casefold())
    return "".join(char for char in apart if not unicodedata.category(char).startswith("M"))


class WordVectors:
    """Vectors of words from vectors of word pieces; continuations are written "##piece", as in WordPiece.

    Whole numbers all the way, so that a word's vector is the same on every machine.
    """

    def __init__(self, pieces: Sequence[str], table: Array) -> None:
        """Take the vectors.

        Args:
            pieces: names of the rows.
            table: integers, (pieces, D).
        """
        self._rows = {piece: row for row, piece in enumerate(pieces)}
        self._table = table
        self._known: dict[str, Array] = {}

    def spell(self, word: str) -> list[int]:
        """Rows of the longest pieces from the left; empty if a part of the word has none, or it is very long."""
        rows: list[int] = []
        start = 0
        while start < len(word) <= _LONGEST_WORD:
            for end in range(len(word), start, -1):
                row = self._rows.get(word[start:end] if start == 0 else f"##{word[start:end]}")
                if row is not None:
                    rows.append(row)
                    break
            else:
                return []
            start = end
        return rows

    def __call__(self, words: Sequence[str]) -> Array:
        """(words, D), integers in float64: the sum of a word's pieces, brought to length `WORD_NORM`, or zero."""
        return np.array([self._vector(word) for word in words]).reshape(len(words), self._table.shape[1])

    def _vector(self, word: str) -> Array:
        known = self._known.get(word)
        if known is None:
            total = self._table[self.spell(word)].astype(np.float64).sum(axis=0)
            square = float(total @ total)  # exact: a sum of integers
            known = np.rint(total * (WORD_NORM / math.sqrt(square))) if square else total
            if len(self._known) < _CACHED_WORDS:
                self._known[word] = known
        return known
