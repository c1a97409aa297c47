"""The coded data of a JPEG: every coefficient once, in full, by tables that no program reads differently.

A decoder may go over a picture's data as a whole or scan by scan, so scans that say something twice, or not at all, are
pictures that two programs show differently; so are a table of quantisation that comes between scans, restart markers
out of their order, and coefficients so large that one program computes with 16 bits and another does not.

Source: ITU-T T.81, sections A.2, B.2, F.1.2, G.1.1 and tables F.1 and F.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from promptguard.errors import PictureRefused

# Marker, content, and the coded data behind it.
Segment = tuple[int, bytes, bytes]
DHT, DQT, DRI, SOS, PROGRESSIVE = 0xC4, 0xDB, 0xDD, 0xDA, 0xC2
_BLOCK = 64  # coefficients
_MAX_DC, _MAX_AC, _MAX_SHIFT = 11, 10, 3  # bits of a coefficient, and those that a scan may leave for later
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_ORDER = bytes(range(0xD0, 0xD8))
_SMALL, _WEAKER = 4, 8


def check_data(segments: Sequence[Segment], frame: bytes, is_progressive: bool) -> None:
    """Refuse data that two programs may show differently.

    Args:
        segments: all of the file, in their order.
        frame: content of the frame header, of one component or three.
        is_progressive: what the header's marker says.

    Raises:
        PictureRefused: they may.
        IndexError: a segment ends early.
    """
    parts = {frame[i]: (frame[i + 1] >> 4, frame[i + 1] & 15) for i in range(6, len(frame), 3)}
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in parts.values()):
        raise PictureRefused("the JPEG has no header that is read here")
    levels: dict[tuple[int, int], int] = {}  # bits that are still missing, by component and coefficient
    interval, has_scan = 0, False
    for marker, body, coded in segments:
        if marker == DQT and (has_scan or not all(len(values) == _BLOCK for _, values in _tables(body))):
            raise PictureRefused("the JPEG's tables of quantisation are not of 8 bits, all before its data")
        if marker == DHT:
            _check_codes(body)
        if marker == DRI:
            interval = int.from_bytes(body, "big")
        if marker == SOS:
            has_scan = True
            ids = list(body[1:-3:2])
            if len(body) != 4 + 2 * body[0] or not ids or len(set(ids)) != len(ids) or not parts.keys() >= set(ids):
                raise PictureRefused("the JPEG has a scan that is not of its components")
            _follow(levels, ids, body[-3:], is_progressive)
            _check_restarts(coded, interval, _units(frame, parts, ids))
    if len(levels) != _BLOCK * len(parts) or any(levels.values()):
        raise PictureRefused("the JPEG's scans leave something out")


def weaker(body: bytes) -> bytes:
    """Quantisation tables by which a picture keeps an eighth of its contrast or little more, and what is small is 0.

    No coefficient is so large by them that 16 bits do not hold it. So a picture that is glaring all the same has
    coefficients that do not come from pixels.
    """
    found = bytearray()
    for head, values in _tables(body):
        found += bytes([head, *(0 if q < _SMALL else max(1, q // _WEAKER) for q in values)])
    return bytes(found)


def _tables(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The tables of quantisation in a segment; one that is not of 8 bits is empty."""
    at = 0
    while at < len(body):
        values = body[at + 1 : at + 1 + _BLOCK]
        yield body[at], values if body[at] < 16 else b""
        at += 1 + _BLOCK


def _check_codes(body: bytes) -> None:
    """Refuse codes of coefficients that no picture of 8 bits has."""
    at = 0
    while at < len(body):
        is_ac, count = body[at] >> 4, sum(body[at + 1 : at + 17])
        values = body[at + 17 : at + 17 + count]
        if any(value & 15 > _MAX_AC if is_ac else value > _MAX_DC for value in values):
            raise PictureRefused("the JPEG has codes that no picture of 8 bits needs")
        at += 17 + count


def _follow(levels: dict[tuple[int, int], int], ids: Sequence[int], about: bytes, is_progressive: bool) -> None:
    """Note what a scan brings; it must be new."""
    first, last, before, left = about[0], about[1], about[2] >> 4, about[2] & 15
    if not is_progressive:
        first, last, before, left = 0, _BLOCK - 1, 0, 0
    elif (last != 0 if first == 0 else not first <= last < _BLOCK or len(ids) != 1) or left > _MAX_SHIFT:
        raise PictureRefused("the JPEG has a scan that is not of its components")
    for one in ids:
        for k in range(first, last + 1):
            known = levels.get((one, k))
            is_next = known is None if before == 0 else known == before == left + 1
            if not is_next or (first and (one, 0) not in levels):
                raise PictureRefused("the JPEG's scans say something twice, or not in order")
            levels[one, k] = left


def _units(frame: bytes, parts: dict[int, tuple[int, int]], ids: Sequence[int]) -> int:
    """How many coded units a scan has."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    h_most, v_most = max(h for h, _ in parts.values()), max(v for _, v in parts.values())
    if len(ids) > 1:  # squares with blocks of all components
        return -(-width // (8 * h_most)) * -(-height // (8 * v_most))
    h, v = parts[ids[0]]
    across, down = -(-width * h // h_most), -(-height * v // v_most)
    return -(-across // 8) * -(-down // 8)


def _check_restarts(coded: bytes, interval: int, units: int) -> None:
    expected = -(-units // interval) - 1 if interval else 0
    found = b"".join(_RESTART.findall(coded))
    if found != (_ORDER * (expected // 8 + 1))[:expected]:
        raise PictureRefused("the JPEG's restart markers are not in their order")
