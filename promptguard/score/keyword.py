"""Harm by keyword: an exact filter whose score anyone can compute by hand."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence

from promptguard.errors import FilterError, InvalidArgument
from promptguard.view import canonical


class KeywordFilter:
    """Scores 1.0 when a keyword occurs as a whole word and no `absent` word does, else 0.0.

    Comparison ignores case. A keyword may hold several words; they must then occur exactly as written.
    """

    def __init__(self, keywords: Iterable[str], threshold: float = 0.5, absent: Iterable[str] = ()) -> None:
        """Make the filter.

        Args:
            keywords: at least one; compared in the canonical view, as texts are.
            threshold: scores at or above it are harmful; useful values are in (0, 1].
            absent: words that make any text safe. They turn the filter into one that an appended word can fool.

        Raises:
            InvalidArgument: there is no keyword, one is empty, or `threshold` is not finite.
        """
        present, missing = _folded(keywords, "keywords"), _folded(absent, "absent")
        if not present:
            raise InvalidArgument("keywords is empty: give at least one word")
        if not math.isfinite(threshold):
            raise InvalidArgument(f"threshold is {threshold}; it must be a finite number")
        identity = json.dumps({"keywords": present, "absent": missing}, sort_keys=True)
        self._present = _pattern(present)
        self._absent = _pattern(missing) if missing else None
        self.name = "keyword"
        self.digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
        self.threshold = float(threshold)
        self.guard_band = 0.0

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text, exactly 0.0 or 1.0.

        Raises:
            FilterError: something in `texts` is not a string.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise FilterError("filter keyword takes a list of strings")
        return [float(self._harmful(text.casefold())) for text in texts]

    def _harmful(self, folded: str) -> bool:
        if self._absent is not None and self._absent.search(folded):
            return False
        return self._present.search(folded) is not None


def _folded(words: Iterable[str], argument: str) -> list[str]:
    if isinstance(words, str):
        raise InvalidArgument(f"{argument} is one string: give a list of words")
    folded = sorted({canonical(word).casefold() for word in words})  # texts arrive in the canonical view
    if "" in folded:
        raise InvalidArgument(f"{argument} holds an empty word")
    return folded


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    # Lookarounds, not \b: a keyword may begin or end with a character that is no word character ("c++").
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")
