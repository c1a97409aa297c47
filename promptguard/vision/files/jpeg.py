"""JPEG: one baseline or progressive picture of 8 bits, grey or YCbCr, complete, and nothing behind it."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator

from promptguard.errors import PictureRefused
from promptguard.vision.files.exif import check_exif, check_xmp
from promptguard.vision.files.jpeg_data import DQT, PROGRESSIVE, check_data, weaker

_SOF, _SOS, _EOI = frozenset({0xC0, 0xC1, PROGRESSIVE}), 0xDA, 0xD9
_TABLES = frozenset({0xC4, DQT, 0xDD, 0xFE})  # codes, quantisation, restart interval, comment
_APP0, _APP1, _PHOTOSHOP, _ADOBE = 0xE0, 0xE1, 0xED, 0xEE
_JFIF, _EXIF, _XMP = b"JFIF\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_YCBCR = 1  # as the Adobe segment says it
_IDS = b"\1\2\3"  # of components that no decoder takes for RGB
_IDS_OF_JFIF = b"\0\1\2"  # neither, if the file says that it is JFIF
_MAX_SCANS = 32  # each is a pass over all coefficients, whatever its length
# In a scan: a marker that is neither a stuffed byte nor a restart; and any marker. One FF only, for linear time.
_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_MARKER = re.compile(rb"\xff[\x01-\xfe]")


def is_one(data: bytes) -> bool:
    """Whether it begins like one."""
    return data.startswith(b"\xff\xd8\xff")


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height."""
    for marker, body, _ in _segments(data):
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", body, 1)
            if width and height:
                return width, height
            break
    raise PictureRefused("the JPEG has no header that is read here")


def verify(data: bytes) -> None:
    """Refuse what is not one picture that all programs show alike."""
    segments = [
        (marker, body, data[end : _end_of_scan(data, end)] if marker == _SOS else b"")
        for marker, body, end in _segments(data)
    ]
    markers = [marker for marker, _, _ in segments]
    frames = [body for marker, body, _ in segments if marker in _SOF]
    adobes = [body for marker, body, _ in segments if marker == _ADOBE]
    exifs = [body for marker, body, _ in segments if marker == _APP1 and body.startswith(_EXIF)]
    if len(frames) != 1 or len(exifs) > 1 or not 1 <= markers.count(_SOS) <= _MAX_SCANS:
        raise PictureRefused("the JPEG is not one picture")
    if not _SOF.intersection(markers[: markers.index(_SOS)]):
        raise PictureRefused("the JPEG has data before its header")
    _check_colours(frames[0], adobes, segments[0][1].startswith(_JFIF))
    for marker, body, _ in segments:
        _check(marker, body)
    check_data(segments, frames[0], PROGRESSIVE in markers)


def with_more_data(data: bytes) -> bytes:
    """The same picture with further bytes at the end of every run of coded data.

    A decoder that has all rows skips them. Of a picture that was cut short and closed again it decodes them, where it
    would otherwise show grey and say nothing.
    """
    more = hashlib.sha256(data).digest().replace(b"\xff", b"\xfe")
    found, at = [], 0
    for marker, _, end in _segments(data):
        if marker == _SOS:
            scan_end = _end_of_scan(data, end)
            scan = _MARKER.sub(lambda restart: more + restart[0], data[end:scan_end])
            found += [data[at:end], scan, more]
            at = scan_end
    return b"".join([*found, data[at:]])


def with_less_contrast(data: bytes) -> bytes:
    """The same picture with less contrast; what no pixels can be is glaring all the same: see `weaker`."""
    found, at = [], 2
    for marker, body, end in _segments(data):
        if marker == DQT:
            found += [data[at : end - len(body)], weaker(body)]
            at = end
    return b"".join([data[:2], *found, data[at:]])


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content, and where it ends in the file, of every segment; after a scan's header comes its data."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise PictureRefused("the JPEG is damaged")
        while data[at] == 0xFF:
            at += 1
        marker, at = data[at], at + 1
        if marker == _EOI:
            break
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:
            raise PictureRefused("the JPEG is damaged")
        (size,) = struct.unpack_from(">H", data, at)
        if size < 2 or at + size > len(data):
            raise PictureRefused("the JPEG is damaged")
        yield marker, data[at + 2 : at + size], at + size
        at += size
        if marker == _SOS:
            at = _end_of_scan(data, at)
    if at != len(data):
        raise PictureRefused("there are bytes behind the end of the JPEG")


def _end_of_scan(data: bytes, start: int) -> int:
    found = _END.search(data, start)
    if found is None:
        raise PictureRefused("the file ends too early")
    return found.start()


def _check_colours(frame: bytes, adobes: list[bytes], is_jfif: bool) -> None:
    """Refuse what is not grey or YCbCr by whatever a program may go by."""
    precision, components = frame[0], frame[5]
    if precision != 8 or components not in {1, 3} or len(frame) != 6 + 3 * components:
        raise PictureRefused("the JPEG is not of 8 bits, grey or YCbCr")
    is_known = frame[6::3] == _IDS or (is_jfif and frame[6::3] == _IDS_OF_JFIF)
    if components == 3 and (not is_known or any(adobe[11] != _YCBCR for adobe in adobes)):
        raise PictureRefused("the JPEG has colours that programs may show differently")


def _check(marker: int, body: bytes) -> None:
    if marker in _SOF or marker in _TABLES or marker == _SOS:
        return
    if marker == _APP1 and body.startswith(_EXIF):
        check_exif(body[len(_EXIF) :])
    elif marker == _APP1 and body.startswith(_XMP):
        check_xmp(body[len(_XMP) :])
    elif not (
        (marker == _APP0 and body.startswith(_JFIF) and body[8:10] == body[10:12])  # square pixels
        or (marker == _PHOTOSHOP and body.startswith(b"Photoshop 3.0\0"))
        or (marker == _ADOBE and body.startswith(b"Adobe"))
    ):
        raise PictureRefused("the JPEG has a segment by which programs may show it differently: drop its metadata")
