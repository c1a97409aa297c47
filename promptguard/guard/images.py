"""Pictures in requests: the forms that are read, and what judges them.

A content part is a picture only if it is exactly one of two forms with the picture's bytes in it. Addresses, paths,
file ids, further fields, other spellings of a data URL: whatever else there is stays unscannable. So what is judged is
what is forwarded, and nothing is ever fetched.

Source: the OpenAI API reference, chat completions (`image_url`), responses (`input_image`) and moderations.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Protocol

from promptguard.types import Certifier

_DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,([A-Za-z0-9+/]+={0,2})", re.ASCII)
_DETAILS = ("auto", "low", "high", "original")
_CACHED = {"type": "ephemeral"}


class Images(Certifier[bytes], Protocol):
    """What judges pictures, by the bytes of a file: `promptguard.vision.pictures.Pictures` is one.

    A verdict says HARMFUL, SAFE or ABSTAIN; an index of a class is none. A picture that is not judged is a
    `PictureRefused` or a `PictureTooLarge`.
    """

    @property
    def max_pictures(self) -> int:
        """Different pictures in a request."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and where it comes from.

    Attributes:
        where: its content part.
        data: the bytes of its file.
    """

    where: str
    data: bytes


def picture(part: object) -> bytes | None:
    """The bytes of the picture that a content part is; None if it is anything else, or has anything beside it."""
    if not isinstance(part, dict):
        return None
    about: dict[object, object]
    match part:
        case {"type": "image_url", "image_url": {"url": str(url), **inside}, **rest}:
            about = inside
        case {"type": "input_image", "image_url": str(url), **rest}:
            about = {key: rest.pop(key) for key in ("detail",) if key in rest}
        case _:
            return None
    is_known = about.keys() <= {"detail"} and about.get("detail", "auto") in _DETAILS
    return _bytes(url) if is_known and rest in ({}, {"cache_control": _CACHED}) else None


def _bytes(url: str) -> bytes | None:
    """What a data URL holds, if its media type is the file's and there is one way to decode it."""
    found = _DATA_URL.fullmatch(url)
    if found is None:
        return None
    try:
        data = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return None
    is_canonical = base64.b64encode(data) == found[2].encode()
    return data if is_canonical and _begins_as(found[1], data) else None


def _begins_as(kind: str, data: bytes) -> bool:
    match kind:
        case "png":
            return data.startswith(b"\x89PNG\r\n\x1a\n")
        case "jpeg":
            return data.startswith(b"\xff\xd8\xff")
        case _:
            return data[:4] == b"RIFF" and data[8:12] == b"WEBP"
