"""JSON that every parser reads alike, or none at all.

A guard reads a request and another program answers it. Where two parsers may differ, text slips between them: of
duplicate keys one takes the first and the other the last, and a body in UTF-16 is JSON to some. So `parse` refuses what
is ambiguous (RFC 8259, sections 4, 6, 8.1 and 8.2 name these cases), and `dump` writes what was checked, in one form:
the bytes that are forwarded are those of the checked value, never the client's own.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from promptguard.errors import InvalidRequest

MAX_DEPTH = 32
_LARGEST = 2**64  # integers beyond it are not exact everywhere
_TOO_DEEP = "the body is nested too deep"
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # UTF-8, UTF-16 and UTF-32 byte order marks


def parse(body: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text in UTF-8.

    Args:
        body: the bytes as they came, not compressed.
        max_depth: arrays and objects inside each other; a bare string has depth 0.

    Raises:
        InvalidRequest: not UTF-8, a byte order mark, no JSON, a key twice in an object, NaN or an infinity, a number
            that is not finite or over 2**64, a lone surrogate, or too deep. The message quotes nothing.
    """
    if body.startswith(_MARKS):
        raise InvalidRequest("the body begins with a byte order mark: send plain UTF-8")
    fault = "the body is not JSON"
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
        _check(value, max_depth)
    except InvalidRequest as error:
        fault = str(error)
    except UnicodeError:
        fault = "the body is not UTF-8, or holds a lone surrogate"
    except RecursionError:
        fault = _TOO_DEEP
    except ValueError:
        pass
    else:
        return value
    # Outside of the handler: the errors above hold the whole body, and a chain would carry it into logs.
    raise InvalidRequest(fault)


def dump(value: Any) -> bytes:
    """The canonical bytes of a value: ASCII, so that no reader decodes them in another way.

    Args:
        value: what `parse` returned, or is made of such values.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise InvalidRequest("an object has a key twice")
    return made


def _constant(_name: str) -> NoReturn:
    raise InvalidRequest("NaN and infinities are not JSON")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise InvalidRequest("a number is too large")
    return number


def _int(digits: str) -> int:
    # Counted before it is converted: the time of the conversion grows faster than the number of digits.
    if len(digits) > len(str(_LARGEST)) + 1 or not -_LARGEST <= int(digits) <= _LARGEST:
        raise InvalidRequest("a number is too large")
    return int(digits)


def _check(value: Any, max_depth: int) -> None:
    """Refuse depth and lone surrogates; level by level, so that depth costs no stack.

    Raises:
        InvalidRequest: too deep.
        UnicodeError: a lone surrogate.
    """
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode("utf-8")
            elif isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if any(isinstance(item, dict | list) for item in level):
            depth += 1
            if depth > max_depth:
                raise InvalidRequest(_TOO_DEEP)
        level = below
