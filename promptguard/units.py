"""Units: what a budget counts, and which string attacks it covers.

A unit is a piece of the *original* string. Law: `"".join(units(text)) == text`, and no piece is empty. Erasing drops
pieces and joins the rest; nothing is ever decoded from token ids.

An attack is covered when the prompt's pieces all still stand in the attacked text, in order, up to what the canonical
view ignores, and it costs the pieces that it adds. Invisible code points are free for the defender: they ride along
with a neighbouring piece. Which string attacks that amounts to differs by unit and is written at each one's `covers`.
"""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from typing import Any

from promptguard.errors import InvalidArgument, UnknownName, UnsupportedThreat
from promptguard.types import Units
from promptguard.view import kinds

# Patterns over `view.kinds(text)`: i invisible, s white space, w word, p stands alone.
_CHAR = re.compile(r"i*[swp]i*|i+")
_WORD = re.compile(r"[si]*(?:w[wi]*|pi*)(?:[si]+\Z)?|[si]+")


def _pieces(pattern: re.Pattern[str], text: str) -> list[str]:
    return [text[match.start() : match.end()] for match in pattern.finditer(kinds(text))]


class Chars:
    """Units of one code point each, white space included; invisible code points belong to the unit before them."""

    name = "char"
    covers = (
        "every string attack: text appended to the prompt or inserted anywhere in it, glued to its words or not, of at "
        "most that many visible code points and white space characters; invisible code points are free"
    )

    def __call__(self, text: str) -> list[str]:
        """Cut the text."""
        return _pieces(_CHAR, text)


class Words:
    """Units of one word or one punctuation mark each, with the white space before it.

    A word is a run of letters, digits and combining marks; an ideograph is a unit of its own, and so is an underscore.
    White space at the end belongs to the last unit.
    """

    name = "word"
    covers = (
        "attacks that leave every word and mark of the prompt whole, and behind white space if and only if it was: any "
        "text appended that begins with white space or punctuation; any words and marks inserted before white space "
        'of the prompt. Letters glued to a word, or a mark put between white space and a word, need unit "char"'
    )

    def __call__(self, text: str) -> list[str]:
        """Cut the text."""
        return _pieces(_WORD, text)


class Tokens:
    """Units of one token each, as a tokenizer cuts the text, with what the tokenizer ignores before it.

    Pieces are cut out of the original string by offsets. Special tokens are not units. Tokens that share an end (bytes
    of one character) are one unit.

    Args:
        tokenizer: a fast tokenizer of transformers; copied, so that threads may share it.

    Raises:
        UnsupportedThreat: it is a slow one, which reports no offsets, or it cuts at random.
    """

    covers = (
        "attacks on token ids that leave the prompt's own tokens, and the white space before them, as they are; a "
        'tokenizer may cut the prompt differently when text is glued to it: that needs unit "char"'
    )

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedThreat("token units need a fast tokenizer, which reports offsets")
        if getattr(backend.model, "dropout", None):
            raise UnsupportedThreat("the tokenizer has BPE dropout: it cuts the same text differently each time")
        self._tokenizer = type(backend).from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = f"token:{hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:12]}"

    def __call__(self, text: str) -> list[str]:
        """Cut the text."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        ends = sorted({end for start, end in offsets if end > start})[:-1]
        return [text[a:b] for a, b in pairwise([0, *ends, len(text)]) if b > a]


def load_units(name: str, tokenizer: Any = None) -> Units:
    """The units of a name: "char", "word", or "token" with the filter's own fast tokenizer.

    Raises:
        UnknownName: another name.
        InvalidArgument: "token" without a tokenizer.
        UnsupportedThreat: the tokenizer is not a fast one.
    """
    if name == "char":
        return Chars()
    if name == "word":
        return Words()
    if name != "token":
        raise UnknownName(f"unknown unit {name!r}: known are char, word, token")
    if tokenizer is None:
        raise InvalidArgument("unit 'token' needs a filter with a tokenizer")
    return Tokens(tokenizer)
