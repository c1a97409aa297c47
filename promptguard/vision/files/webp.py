"""WebP: one opaque still picture, lossy or lossless, in the file that its header says."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from promptguard.errors import PictureRefused
from promptguard.vision.files.exif import check_exif, check_xmp

_EXIF, _XMP, _ALPHA = 0x08, 0x04, 0x10
_KEY_FRAME = b"\x9d\x01\x2a"
_LOSSLESS = 0x2F
_ALPHA_BIT = 28  # of a lossless picture's header
_FIRST = 12  # where the chunks begin


def is_one(data: bytes) -> bool:
    """Whether it begins like one."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height: of the canvas too, if there is one."""
    canvas: tuple[int, int] | None = None
    for kind, body in _chunks(data):
        if kind == b"VP8X":
            canvas = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        elif kind in _FRAMES:
            size = _FRAMES[kind](body)
            if canvas not in {None, size}:
                break
            return size
    raise PictureRefused("the WebP has no picture that is read here")


def verify(data: bytes) -> None:
    """Refuse what is not one picture that all programs show alike; see `with_alpha`, too."""
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    frame = kinds[0] if kinds[0] in _FRAMES else kinds[1]
    allowed = [frame] if kinds[0] == frame else [b"VP8X", frame, *(k for k in (b"EXIF", b"XMP ") if k in kinds)]
    if frame not in _FRAMES or kinds != allowed:
        raise PictureRefused("the WebP is not one still picture without transparency and colour profile")
    for kind, body in chunks:
        if kind == b"VP8X" and (len(body) != 10 or body[0] & ~(_EXIF | _XMP)):
            raise PictureRefused("the WebP is not one still picture without transparency and colour profile")
        if kind == b"EXIF":
            check_exif(body.removeprefix(b"Exif\0\0"))
        if kind == b"XMP ":
            check_xmp(body)


def with_alpha(data: bytes) -> bytes:
    """The same file, declared to be transparent.

    A lossless picture holds transparency whether it declares it or not, and only some decoders go by what it declares.
    """
    found, at = bytearray(data), _FIRST
    for kind, body in _chunks(data):
        if kind == b"VP8X":
            found[at + 8] |= _ALPHA
        if kind == b"VP8L":
            found[at + 8 + 1 + _ALPHA_BIT // 8] |= 1 << _ALPHA_BIT % 8
        at += 8 + len(body) + len(body) % 2
    return bytes(found)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 != len(data):
        raise PictureRefused("the WebP is cut short, or there are bytes behind its end")
    at = _FIRST
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if at > len(data):
            raise PictureRefused("the WebP is cut short")
        yield kind, body


def _lossy(body: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", body, 6)
    # An inter frame, or one that asks to be shown larger.
    if body[0] & 1 or body[3:6] != _KEY_FRAME or (width | height) >> 14 or not width or not height:
        raise PictureRefused("the WebP has no picture that is read here")
    return width, height


def _lossless(body: bytes) -> tuple[int, int]:
    mark, bits = struct.unpack_from("<BI", body)
    if mark != _LOSSLESS or bits >> 29:
        raise PictureRefused("the WebP has no picture that is read here")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


_FRAMES = {b"VP8 ": _lossy, b"VP8L": _lossless}
