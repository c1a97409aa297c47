"""The form of picture files, read from their bytes before a decoder sees them.

Two programs must show the same of a file, or the one that judges and the one that is guarded see different pictures. So
a file passes only if it is one still picture from the first byte to the last: a complete PNG, JPEG or WebP of 8 bits a
channel, with no second frame, no rotation and no colour profile that a program may or may not heed, and with no chunk
or segment that is not known to change nothing. `promptguard.vision.pictures` looks at the pixels after that.

Not seen: what libjpeg only warns of, such as a wrong code amid a JPEG's data; and data behind its last row, which no
decoder shows.

Source: PNG (third edition), sections 5, 7 and 11; ITU-T T.81, annex B; JFIF 1.02; Exif 2.32, section 4.5; RFC 9649.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol, TypeVar

from promptguard.errors import PictureRefused
from promptguard.vision.files import jpeg, png, webp

_T = TypeVar("_T")


class _Form(Protocol):
    """What each module here has."""

    def is_one(self, data: bytes) -> bool: ...
    def size_of(self, data: bytes) -> tuple[int, int]: ...
    def verify(self, data: bytes) -> None: ...


_KINDS: dict[str, _Form] = {"PNG": png, "JPEG": jpeg, "WEBP": webp}


def kind_of(data: bytes) -> str:
    """The format, by Pillow's name.

    Raises:
        PictureRefused: it is none of the three.
    """
    for kind, form in _KINDS.items():
        if form.is_one(data):
            return kind
    raise PictureRefused("only PNG, JPEG and WebP are read")


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height, as the header has them: little is read and nothing decoded.

    Raises:
        PictureRefused: there is no such header.
    """
    return _read(_KINDS[kind_of(data)].size_of, data)


def verify(data: bytes) -> None:
    """Look at the whole form of a file. A PNG is inflated, so look at its size first.

    Raises:
        PictureRefused: it is not one complete still picture that all programs show alike.
    """
    size_of(data)
    _read(_KINDS[kind_of(data)].verify, data)


def _read(work: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return work(data)
    except (struct.error, IndexError):
        raise PictureRefused("the file ends too early") from None
