"""PNG: one still picture of at most 8 bits a channel, in sRGB or no named colour space, complete, and no more."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise

from promptguard.errors import PictureRefused
from promptguard.vision.files.exif import check_exif

_MAGIC = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_CHANNELS = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}
_DEPTHS = {0: {1, 2, 4, 8}, 2: {8}, _PALETTE: {1, 2, 4, 8}, 4: {8}, 6: {8}}
# What all programs show alike, with or without heeding it: the values of sRGB, square pixels, all bits significant.
_GAMMA = struct.pack(">I", 45455)
_CHROMA = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_PLAIN = frozenset({b"tIME", b"bKGD"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_METADATA = (b"raw profile type", b"xml:com.adobe.xmp")  # keywords of texts that some programs take for Exif or XMP
# First column and row, steps between columns and rows, of the passes of an interlaced picture.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def is_one(data: bytes) -> bool:
    """Whether it begins like one."""
    return data.startswith(_MAGIC)


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, len(_MAGIC))
    if kind != b"IHDR" or length != 13 or not width or not height:
        raise PictureRefused("the PNG has no header")
    return width, height


def verify(data: bytes) -> None:
    """Refuse what is not one picture that all programs show alike."""
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    header = chunks[0][1]
    if kinds[0] != b"IHDR" or len(header) != 13 or kinds.count(b"IHDR") != 1:
        raise PictureRefused("the PNG has no header, or more than one")
    width, height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", header)
    if depth not in _DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
        raise PictureRefused("the PNG is not of 8 bits a channel or less")
    if kinds.count(b"PLTE") != (colour == _PALETTE) or kinds.count(b"eXIf") > 1:
        raise PictureRefused("the PNG has a chunk too many or too few")
    starts = sum(now == b"IDAT" and before != b"IDAT" for before, now in pairwise(kinds))
    if starts != 1 or (colour == _PALETTE and kinds.index(b"PLTE") > kinds.index(b"IDAT")):
        raise PictureRefused("the PNG's data are not in one piece")
    for kind, body in chunks:
        _check(kind, body, depth)
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = (((width - x + dx - 1) // dx, (height - y + dy - 1) // dy) for x, y, dx, dy in passes)
    expected = sum((1 + (w * bits + 7) // 8) * h for w, h in sizes if w > 0 and h > 0)
    _inflate(b"".join(body for kind, body in chunks if kind == b"IDAT"), expected)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = len(_MAGIC), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (code,) = struct.unpack_from(">I", data, at + 8 + length)
        if code != zlib.crc32(body, zlib.crc32(kind)):
            raise PictureRefused("the PNG is damaged")
        yield kind, body
        at += 12 + length
    if at != len(data) or length:
        raise PictureRefused("there are bytes behind the end of the PNG")


def _check(kind: bytes, body: bytes, depth: int) -> None:
    match kind:
        case b"IHDR" | b"PLTE" | b"IDAT" | b"IEND":
            return
        case b"sRGB":
            fits = len(body) == 1
        case b"gAMA":
            fits = body == _GAMMA
        case b"cHRM":
            fits = body == _CHROMA
        case b"pHYs":
            fits = len(body) == 9 and body[:4] == body[4:8]
        case b"sBIT":
            fits = all(bits == depth for bits in body)
        case b"eXIf":
            check_exif(body)
            return
        case _ if kind in _TEXTS:
            fits = not body.lower().startswith(_METADATA)
        case _:
            fits = kind in _PLAIN
    if not fits:
        raise PictureRefused("the PNG has a chunk by which programs may show it differently: save it without metadata")


def _inflate(stream: bytes, expected: int) -> None:
    """Make sure that the data are exactly the rows."""
    inflater = zlib.decompressobj()
    try:
        length = len(inflater.decompress(stream, expected + 1))
    except zlib.error:
        raise PictureRefused("the PNG's data are damaged") from None
    if length != expected or not inflater.eof or inflater.unused_data:
        raise PictureRefused("the PNG's data are not exactly one picture")
