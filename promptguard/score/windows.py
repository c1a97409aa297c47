"""Texts of any length to token ids: overlapping windows over the whole text, nothing truncated.

The tokenizer cuts the windows itself, so each carries the special tokens that it would give a short text. With overlap
o, any run of at most o + 1 tokens lies whole in some window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from promptguard.errors import InvalidArgument, discreetly
from promptguard.score.spelling import Spelling, Window

__all__ = ["Attribution", "Window", "WindowTokenizer"]


@dataclass(frozen=True, slots=True)
class Attribution:
    """Which piece of a text each token came from.

    Attributes:
        window: the tokens.
        owners: one index of a piece per token; None for special tokens.
    """

    window: Window
    owners: list[int | None]


class WindowTokenizer:
    """A private copy of a fast tokenizer that cuts long texts into windows.

    It drops the truncation and padding that a `tokenizer.json` may carry (those of sentence-transformers cut at 128
    tokens), and reads names of special tokens in a text as plain text: no prompt can place a real [SEP] or [PAD].
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
        self._whole = Tokenizer.from_str(backend.to_str())
        self._whole.no_truncation()
        self._whole.no_padding()
        self._whole.encode_special_tokens = True
        serialised = self._whole.to_str()
        self.digest = hashlib.sha256(serialised.encode()).hexdigest()
        room = window - self._whole.num_special_tokens_to_add(is_pair=False)
        if room < 1 or not 0 <= overlap < room:
            raise InvalidArgument(f"window {window} has room for {room} tokens: overlap {overlap} must be under that")
        self.window = window
        self.overlap = overlap
        self._spelling = Spelling.of(self._whole)
        self._cutting = Tokenizer.from_str(serialised)
        self._cutting.encode_special_tokens = True
        self._cutting.enable_truncation(window, stride=overlap, direction="right")

    def __call__(self, texts: Sequence[str]) -> list[list[Window]]:
        """The windows of each text, at least one; a text without tokens has one window without content.

        Raises:
            FilterError: the tokenizer refuses a text (lone surrogates, not a string).
        """
        if self._spelling is None:
            return self._cut(list(texts))
        found = [[whole] for whole in self._spelling(texts)]
        long = [index for index, (window,) in enumerate(found) if len(window.ids) > self.window]
        for index, windows in zip(long, self._cut([texts[index] for index in long]), strict=True):
            found[index] = windows
        return found

    def _cut(self, texts: list[str]) -> list[list[Window]]:
        if not texts:
            return []
        encodings = discreetly("the tokenizer", lambda: self._cutting.encode_batch_fast(texts))
        return [[Window(part.ids, part.type_ids) for part in (whole, *whole.overflowing)] for whole in encodings]

    def attribute(self, pieces: Sequence[str]) -> Attribution:
        """The tokens of the joined pieces, each with the piece that holds its first character that is no white space.

        Byte-level and sentencepiece tokenizers put the space before a word into the word's token; white space is
        skipped so that the token belongs to the word.

        Raises:
            FilterError: the tokenizer refuses the text.
            InvalidArgument: the text does not fit one window.
        """
        text = "".join(pieces)
        encoding = discreetly("the tokenizer", lambda: self._whole.encode(text))
        if len(encoding.ids) > self.window:
            raise InvalidArgument(f"{len(encoding.ids)} tokens are over the window of {self.window}: shorten the text")
        holder = [i for i, piece in enumerate(pieces) for _ in piece]
        owners: list[int | None] = []
        for special, (start, end) in zip(encoding.special_tokens_mask, encoding.offsets, strict=True):
            first = next((at for at in range(start, end) if not text[at].isspace()), start)
            owners.append(None if special or not holder else holder[min(first, len(holder) - 1)])
        return Attribution(Window(encoding.ids, encoding.type_ids), owners)
