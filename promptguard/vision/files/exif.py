"""Metadata by which a program may turn a picture: Exif and XMP."""

from __future__ import annotations

import re
import struct

from promptguard.errors import PictureRefused

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION, _SHORT, _UPRIGHT = 0x0112, 3, 1
_MENTIONS = re.compile(rb"Orientation", re.IGNORECASE)
_IS_UPRIGHT = re.compile(rb"""<tiff:Orientation>1</tiff:Orientation>|tiff:Orientation=(["'])1\1""")


def check_exif(block: bytes) -> None:
    """Refuse an Exif block (from its byte order on) that turns the picture, or cannot be read.

    Raises:
        PictureRefused: it does.
        struct.error: it ends too early.
    """
    order = _ORDERS.get(block[:4])
    if order is None:
        raise PictureRefused("the Exif data cannot be read")
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for i in range(count):
        tag, kind, many, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * i)
        if tag == _ORIENTATION and (kind, many, value) != (_SHORT, 1, _UPRIGHT):
            raise PictureRefused("the picture is turned by its Exif data: turn its pixels instead")


def check_xmp(packet: bytes) -> None:
    """Refuse an XMP packet that may turn the picture.

    Raises:
        PictureRefused: it mentions an orientation that is not "as it is", or is not in UTF-8.
    """
    if b"\0" in packet or _MENTIONS.search(_IS_UPRIGHT.sub(b"", packet)):
        raise PictureRefused("the picture may be turned by its XMP data: turn its pixels instead")
