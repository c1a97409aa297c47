"""Whose request it is: keys are stored hashed and compared in constant time.

A key is looked for in `x-promptguard-key`, `Authorization: Bearer` and `x-api-key`. Every stored hash of a kind is
compared, whichever of them fits: the time says nothing about them. A scrypt hash costs milliseconds and memory by
design, so what was accepted once is remembered by a keyed digest, and few requests at once may ask for one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence

from promptguard.errors import InvalidArgument
from promptguard.serve.config import Key

_LONGEST = 512
_MAX_MEMORY = 256 * 2**20
_SLOW_AT_ONCE = 2


class Keys:
    """The keys of a configuration; without any, every request is anonymous.

    Args:
        keys: hashed keys.

    Raises:
        InvalidArgument: a slow hash that cannot be computed: every request that shows another key would fail on it.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)
        self._slow = tuple(key for key in keys if key.scrypt)
        self._salt = secrets.token_bytes(32)
        self._known: dict[bytes, Key] = {}
        self._turn = asyncio.Semaphore(_SLOW_AT_ONCE)
        for key in self._slow:
            _check(key)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    async def find_in_turn(self, given: str | None) -> Key | None:
        """As `find`; slow hashes wait for their turn and run in a thread."""
        secret = _secret(given)
        if secret is None:
            return None
        if (found := self._fast(secret)) or not self._slow:
            return found
        async with self._turn:
            return await asyncio.to_thread(self._slowly, secret)

    def find(self, given: str | None) -> Key | None:
        """The key that was given, or None if it is none of ours."""
        secret = _secret(given)
        return None if secret is None else self._fast(secret) or self._slowly(secret)

    def _fast(self, secret: bytes) -> Key | None:
        mark = self._mark(secret)
        if mark in self._known:
            return self._known[mark]
        matching = [key for key in self._keys if key.sha256 and _fits(key, secret)]
        return matching[0] if matching else None

    def _slowly(self, secret: bytes) -> Key | None:
        matching = [key for key in self._slow if _fits(key, secret)]
        if matching:
            self._known[self._mark(secret)] = matching[0]
        return matching[0] if matching else None

    def _mark(self, secret: bytes) -> bytes:
        return hmac.digest(self._salt, secret, "sha256")


def _secret(given: str | None) -> bytes | None:
    return given.encode("utf-8", "surrogatepass") if given and len(given) <= _LONGEST else None


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


def _check(key: Key) -> None:
    try:
        _fits(key, b"")
    except (ValueError, MemoryError, OverflowError):
        fault = f"keys: the scrypt hash of {key.name} cannot be computed: n is a power of 2, salt and hash are base64"
    else:
        return
    raise InvalidArgument(fault)


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
