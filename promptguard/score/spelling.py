"""Tokens of a text from those of its words, for tokenizers that read every word by itself.

The erasures of a text share its words: with their tokens remembered, an erasure costs a look-up per word and no run of
the tokenizer, whose threads are in the way of the model's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from promptguard.errors import discreetly

_CACHED_WORDS = 65_536
_LONGEST_WORD = 64  # code points; longer words are looked up anew each time, which bounds the memory


@dataclass(frozen=True, slots=True)
class Window:
    """What the model reads at once: a text as tokens, or a part of it.

    Attributes:
        ids: token ids with special tokens.
        types: segment ids, one per token.
    """

    ids: list[int]
    types: list[int]


class Spelling:
    """The tokens of whole texts, equal to what the tokenizer makes of them.

    Lemma: WordPiece behind BERT's normaliser and pre-tokenizer is additive over spaces: a space is kept by the
    normaliser, which maps code points by themselves and reorders marks between starters only, and no word of the
    pre-tokenizer reaches over one. Special tokens are put around the whole.
    """

    def __init__(self, tokenizer: Tokenizer, before: Window, after: Window, kind: int) -> None:
        self._tokenizer = tokenizer
        self._before, self._after, self._kind = before, after, kind
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Spelling | None:
        """The tokens of a tokenizer's texts, or None if it is not known to be additive over spaces.

        Args:
            tokenizer: without truncation and padding, and reading special tokens as plain text.
        """
        if not _is_additive(json.loads(tokenizer.to_str())):
            return None
        probe = tokenizer.encode("a")
        inside = [index for index, special in enumerate(probe.special_tokens_mask) if not special]
        if not inside:
            return None
        first, last = inside[0], inside[-1] + 1
        before = Window(probe.ids[:first], probe.type_ids[:first])
        after = Window(probe.ids[last:], probe.type_ids[last:])
        return cls(tokenizer, before, after, probe.type_ids[first])

    def __call__(self, texts: Sequence[str]) -> list[Window]:
        """The tokens of each text.

        Raises:
            FilterError: the tokenizer refuses a text (lone surrogates, not a string).
        """
        return discreetly("the tokenizer", lambda: self._spelled([text.split(" ") for text in texts]))

    def _spelled(self, texts: Sequence[list[str]]) -> list[Window]:
        table = self._table({word for words in texts for word in words})
        found = []
        for words in texts:
            ids = [token for word in words for token in table[word]]
            types = [*self._before.types, *[self._kind] * len(ids), *self._after.types]
            found.append(Window([*self._before.ids, *ids, *self._after.ids], types))
        return found

    def _table(self, words: set[str]) -> dict[str, list[int]]:
        """The tokens of these words, remembered or made now."""
        table = {word: ids for word in words if (ids := self._known.get(word)) is not None}
        new = [word for word in words if word not in table]
        if new:
            encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
            made = {word: encoding.ids for word, encoding in zip(new, encodings, strict=True)}
            kept = {word: ids for word, ids in made.items() if len(word) <= _LONGEST_WORD}
            if len(self._known) + len(kept) <= _CACHED_WORDS:
                self._known.update(kept)
            else:  # a new table, since other threads may be reading the old one
                self._known = kept if len(kept) <= _CACHED_WORDS else {}
            table |= made
        return table


def _is_additive(parts: dict[str, Any]) -> bool:
    """Whether the parts of a serialised tokenizer are those of the lemma."""
    frame = parts["post_processor"] or {}
    holes = [piece for piece in frame.get("single", [{"Sequence": {}}]) if "Sequence" in piece]
    return (
        _type(parts["normalizer"]) == "BertNormalizer"
        and _type(parts["pre_tokenizer"]) == "BertPreTokenizer"
        and _type(parts["model"]) == "WordPiece"
        and _type(parts["post_processor"]) in {None, "BertProcessing", "TemplateProcessing"}
        and len(holes) == 1
        and all(token["special"] for token in parts["added_tokens"])
    )


def _type(part: dict[str, Any] | None) -> str | None:
    return None if part is None else str(part["type"])
