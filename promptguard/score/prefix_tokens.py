"""The token windows of every prefix of a text, and of whole texts, exactly as the tokenizer cuts each of them.

Tokens of a prefix are in general not a prefix of the tokens: cut inside a word, "bombing" becomes "bomb". Most
tokenizers look at the whole text, so each prefix is tokenised by itself. Those of the BERT family cut at every white
space first, and then a prefix differs from the text in its last word only.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer

from promptguard.errors import InvalidArgument, discreetly

Ids = tuple[int, ...]

# Each of these cuts at white space whatever stands around it, and these normalisers work on single characters.
_CUTTING = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_LOCAL = frozenset({None, "BertNormalizer", "Lowercase"})


class PrefixTokenizer:
    """A private copy of a fast tokenizer. Texts longer than a window become overlapping windows, none is cut short.

    Window k of a text holds its tokens from k * (room - overlap) on, as many as there is room for, between the special
    tokens of a short text; `promptguard.score.windows` cuts the same windows.
    """

    def __init__(self, tokenizer: Any, window: int, overlap: int) -> None:
        """Copy the tokenizer.

        Args:
            tokenizer: a transformers tokenizer backed by the tokenizers library; it is not changed.
            window: tokens in a window, with special tokens.
            overlap: tokens that neighbouring windows share.

        Raises:
            InvalidArgument: the tokenizer is a slow one, or cuts at random, or the window has no room.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InvalidArgument(f"{type(tokenizer).__name__} is no fast tokenizer: save a tokenizer.json for it")
        if getattr(backend.model, "dropout", None):
            raise InvalidArgument(
                "the tokenizer has BPE dropout, so a text has no fixed score: set its dropout to null"
            )
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # names of special tokens in a text are plain text
        self._before, self._after = self._specials()
        self.window = window
        self.overlap = overlap
        self._room = window - len(self._before) - len(self._after)
        if self._room < 1 or not 0 <= overlap < self._room:
            raise InvalidArgument(
                f"window {window} has room for {self._room} tokens: overlap {overlap} must be under that"
            )
        serialised = self._tokenizer.to_str()
        self.digest = hashlib.sha256(serialised.encode()).hexdigest()
        self.cuts_at_spaces = _cuts_at_spaces(json.loads(serialised))

    def texts(self, texts: Sequence[str]) -> list[list[Ids]]:
        """The windows of each text.

        Raises:
            FilterError: the tokenizer refuses a text.
        """
        return [self._windows(ids) for ids in self._encode(texts)]

    def prefixes(self, text: str, ends: Sequence[int]) -> list[list[Ids]]:
        """The windows of text[:end] for each end.

        Args:
            text: single spaces between words and none around them, as in the canonical view.
            ends: code point offsets.

        Raises:
            FilterError: the tokenizer refuses the text.
        """
        if not self.cuts_at_spaces:
            return self.texts([text[:end] for end in ends])
        words = text.split(" ")
        # Where each word starts; a prefix ends inside, or at the end of, the last one that starts before its end.
        starts = list(accumulate((len(word) + 1 for word in words), initial=0))[:-1]
        cuts = [(at := bisect_right(starts, end - 1) - 1, words[at][: end - starts[at]]) for end in ends]
        needed = list(dict.fromkeys([*words, *(rest for _, rest in cuts)]))
        known = dict(zip(needed, self._encode(needed), strict=True))
        trunk: list[int] = []
        lengths = []
        for word in words:
            lengths.append(len(trunk))
            trunk += known[word]
        return [self._windows([*trunk[: lengths[at]], *known[rest]]) for at, rest in cuts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encode = self._tokenizer.encode_batch_fast
        return [
            found.ids for found in discreetly("the tokenizer", lambda: encode(list(texts), add_special_tokens=False))
        ]

    def _windows(self, ids: list[int]) -> list[Ids]:
        step = self._room - self.overlap
        count = 1 if len(ids) <= self._room else 1 + -(-(len(ids) - self._room) // step)
        starts = range(0, count * step, step)
        return [(*self._before, *ids[start : start + self._room], *self._after) for start in starts]

    def _specials(self) -> tuple[Ids, Ids]:
        """The special tokens before and after a text."""
        found = self._tokenizer.encode("a")
        content = [at for at, special in enumerate(found.special_tokens_mask) if not special] or [len(found.ids)]
        return tuple(found.ids[: content[0]]), tuple(found.ids[content[-1] + 1 :])


def _cuts_at_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokens of "a b" are always those of "a" and then those of "b"."""
    normaliser = tokenizer["normalizer"]
    cutting = (tokenizer["pre_tokenizer"] or {}).get("type") in _CUTTING
    plain = all(token["special"] for token in tokenizer["added_tokens"])
    return cutting and plain and (normaliser or {}).get("type") in _LOCAL
