"""The canonical view: what a filter sees of a text, with the cheap disguises taken off.

`canonical(text)` maps every code point by itself (no code point's image depends on its neighbours) and then collapses
white space:

* white space of every kind, and blanks that only look like it, become one space; ends are stripped;
* invisible code points vanish: format and control characters, soft hyphens, zero-width characters, bidirectional
  marks, variation selectors, the combining grapheme joiner, Hangul and Khmer fillers, everything that Unicode calls
  default-ignorable;
* tag characters (U+E0020 to U+E007E), which carry hidden ASCII, are decoded to the ASCII they carry;
* Unicode compatibility forms (full-width, mathematical, circled letters) are normalised by NFKC, code point by code
  point;
* homoglyphs of Latin letters (Cyrillic, Greek, Armenian, Cherokee, Lisu, small capitals) are folded to them. Words of
  these scripts come out mixed: a filter for them needs a view of its own.

Context-freedom is what the certificates need: view(P) can be recovered from a text that contains P, whatever stands
next to it (`promptguard.units` builds on this; NFKC of the *whole* text would merge the last character of P with a
combining mark that an attacker puts behind it). The view is idempotent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

from promptguard.errors import EmptyText, InvalidText, TextTooLong

# The rules below, kinds included, have a number, which certificates name: another view is another filter.
VIEW = f"canonical view 2, Unicode {unicodedata.unidata_version}"
_CACHED_CODE_POINTS = 65_536  # bounds the tables' memory whatever texts arrive

_SURROGATE = re.compile("[\ud800-\udfff]")

# Unicode 16 Default_Ignorable_Code_Point, assigned or not, and U+1D159 (a musical blank).
_IGNORABLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D159, 0x1D159), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip

# Look-alikes of ASCII: (look-alikes, what they look like), position by position.
_LOOK_ALIKES = (
    # Cyrillic
    ("АВЕЅІЈКМНОРСТУХҮԚԜӀЬ", "ABESIJKMHOPCTYXYQWIb"),
    ("аеорсухѕіјһԁԛԝӏѵгѡ", "aeopcyxsijhdqwlvrw"),
    # Greek
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹͿ", "ABEZHIKMNOPTYXCJ"),
    ("αβγεηικνορστυχωϲϳ", "abyenikvopotuxwcj"),
    # Armenian
    ("ՍՏԼՕոսօհցզյ", "USLOnuohgqj"),
    # Cherokee
    ("ᎪᏴᏟᎠᎬᏀᎻᎥᎫᏦᏞᎷᏢᎡᏚᎢᏙᎳᏃ", "ABCDEGHiJKLMPRSTVWZ"),
    # Lisu
    ("ꓐꓑꓒꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ", "BPdDTGKJCZFMNLSRVHWXYAEIOU"),
    # Latin letters that are not ASCII: small capitals, script and dotless forms
    ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘǫʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnopqrstuvwyz"),
    ("ıɑɡɩƅ", "iagib"),
    # punctuation
    ("‘’‚‛′`´“”„‟″‐‑‒–—―−⁃∕⁄ǃ", "''''''" + "'" + '"""""' + "--------" + "//!"),
)


def _is_between(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= code <= high for low, high in ranges)


@cache
def _homoglyphs() -> dict[str, str]:
    table = {alike: plain for alikes, plains in _LOOK_ALIKES for alike, plain in zip(alikes, plains, strict=True)}
    for first in (0x1F150, 0x1F170, 0x1F1E6):  # negative circled, negative squared, regional indicator letters
        table |= {chr(first + i): chr(ord("A") + i) for i in range(26)}
    return table


def _image(code: int) -> str:
    """The canonical image of one code point: possibly empty, possibly several characters."""
    if 0xE0020 <= code <= 0xE007E:
        code -= 0xE0000
    char = chr(code)
    if char.isspace() or code == 0x2800:  # U+2800 is the blank braille pattern
        return " "
    if unicodedata.category(char) in {"Cf", "Cc"} or _is_between(code, _IGNORABLE):
        return ""
    fold = _homoglyphs()
    if char in fold:
        return fold[char]
    normal = unicodedata.normalize("NFKC", char)
    return normal if normal == char else "".join(_image(ord(part)) for part in normal)


# Ideographs and kana are written without spaces, so each one is a unit of its own (the ranges BERT uses, and kana).
_UNSPACED = (
    (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)  # fmt: skip


def _kind(code: int) -> str:
    image = _image(code)
    if not image:
        return "i"
    if image.isspace():
        return "s"
    if _is_between(code, _UNSPACED):
        return "p"
    if image[0] == " ":  # Spacing accents: white space sets them off.
        return "p"
    # Both ends: the image of U+2103 is a degree sign and a C, to which a letter behind it would be glued.
    is_word = any(end.isalnum() or unicodedata.category(end).startswith("M") for end in (image[0], image[-1]))
    return "w" if is_word else "p"


class _Table(dict[int, str]):
    """A translation table that computes an entry when it is first needed."""

    def __init__(self, compute: Callable[[int], str]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, code: int) -> str:
        value = self._compute(code)
        if len(self) < _CACHED_CODE_POINTS:
            self[code] = value
        return value


_IMAGES = _Table(_image)
_KINDS = _Table(_kind)


def canonical(text: str) -> str:
    """The canonical view of a text: what a filter scores. Idempotent; see the module for the rules."""
    return " ".join(text.translate(_IMAGES).split())


def prefix_views(pieces: Iterable[str]) -> tuple[str, list[int]]:
    """The canonical view of the joined pieces, and where the view of each prefix of them ends in it.

    `view[: ends[i]]` is `canonical("".join(pieces[: i + 1]))`: images depend on single code points, so the view of a
    prefix is a prefix of the view.
    """
    parts: list[str] = []
    ends: list[int] = []
    length, apart = 0, False
    for piece in pieces:
        image = piece.translate(_IMAGES)
        words = " ".join(image.split())
        if words:
            separator = " " if length and (apart or image[0] == " ") else ""
            parts += (separator, words)
            length += len(separator) + len(words)
            apart = False
        apart = apart or image[-1:] == " "
        ends.append(length)
    return "".join(parts), ends


def kinds(text: str) -> str:
    """One letter per code point: "i" invisible, "s" white space, "w" part of a word, "p" stands alone."""
    return text.translate(_KINDS)


def check_text(text: object, max_chars: int) -> str:
    """The text itself, if it can be checked.

    Raises:
        InvalidText: not a string, or it holds NUL bytes or lone surrogates.
        TextTooLong: more than `max_chars` code points.
        EmptyText: its canonical view is empty.
    """
    if not isinstance(text, str):
        raise InvalidText(f"text must be a string, not {type(text).__name__}")
    if len(text) > max_chars:
        raise TextTooLong(len(text), max_chars)
    if "\0" in text:
        raise InvalidText("text holds NUL bytes")
    if _SURROGATE.search(text):
        raise InvalidText("text holds lone surrogates")
    if not canonical(text):
        raise EmptyText("text is empty: nothing but white space or invisible code points")
    return text
