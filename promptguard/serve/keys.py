"""Whose request it is: keys are stored hashed and compared in constant time.

A key is looked for in `x-promptguard-key`, `Authorization: Bearer` and `x-api-key`. Every stored hash is compared,
whichever of them fits: the time says nothing about them. A scrypt hash costs milliseconds by design, so what was
accepted once is remembered by a keyed digest.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence

from promptguard.serve.config import Key

_LONGEST = 512
_MAX_MEMORY = 256 * 2**20


class Keys:
    """The keys of a configuration; without any, every request is anonymous.

    Args:
        keys: hashed keys.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)
        self._salt = secrets.token_bytes(32)
        self._known: dict[bytes, Key] = {}

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    @property
    def is_slow(self) -> bool:
        """Whether `find` may take milliseconds."""
        return any(key.scrypt for key in self._keys)

    def find(self, given: str | None) -> Key | None:
        """The key that was given, or None if it is none of ours."""
        if not given or len(given) > _LONGEST:
            return None
        secret = given.encode("utf-8", "surrogatepass")
        mark = hmac.digest(self._salt, secret, "sha256")
        if mark in self._known:
            return self._known[mark]
        matching = [key for key in self._keys if _fits(key, secret)]
        if matching:
            self._known[mark] = matching[0]
        return matching[0] if matching else None


def given_key(headers: Mapping[str, str], *, own_header_only: bool = False) -> str | None:
    """The key in a request's headers.

    Args:
        headers: of the request.
        own_header_only: the other headers go to the upstream, so no key of ours is taken from them.
    """
    if own_header_only or "x-promptguard-key" in headers:
        return headers.get("x-promptguard-key")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def _fits(key: Key, secret: bytes) -> bool:
    if key.sha256 is not None:
        return hmac.compare_digest(hashlib.sha256(secret).digest(), bytes.fromhex(key.sha256))
    _, n, r, p, salt, stored = (key.scrypt or "").split("$")
    expected = base64.b64decode(stored)
    found = hashlib.scrypt(
        secret,
        salt=base64.b64decode(salt),
        n=int(n),
        r=int(r),
        p=int(p),
        maxmem=_MAX_MEMORY,
        dklen=len(expected),
    )
    return hmac.compare_digest(found, expected)
