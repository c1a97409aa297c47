"""The model behind the guard, over HTTP; its failures have a status and no text."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2

from promptguard.errors import InvalidArgument, InvalidRequest
from promptguard.serve.answers import ApiError
from promptguard.serve.config import UpstreamSection
from promptguard.serve.large import parsed

_PASSED = re.compile(r"retry-after|x-ratelimit-[a-z-]{1,40}|openai-processing-ms|openai-version")
_LAST_PORT = 65535
_REFUSED = frozenset({400, 404, 405, 409, 413, 422})


class Upstream:
    """A client of one upstream.

    Args:
        section: address, key and limits; the address is set.
        transport: instead of the network, for tests.

    Raises:
        InvalidArgument: the address has no host or no such port, or the environment variable of the key is not set.
    """

    def __init__(self, section: UpstreamSection, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        if section.url is None:
            raise InvalidArgument("upstream.url is not set")
        self._section = section
        headers = {"accept-encoding": "identity", "user-agent": "promptguard"}
        if section.key_env:
            key = os.environ.get(section.key_env, "").strip()
            if not key or not key.isascii() or not key.isprintable():
                raise InvalidArgument(f"upstream.key_env: the environment variable {section.key_env} holds no key")
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx2.AsyncClient(
            base_url=_address(section.url),
            headers=headers,
            timeout=httpx2.Timeout(section.seconds, connect=section.connect_seconds),
            limits=httpx2.Limits(max_connections=section.connections),
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.aclose()

    @asynccontextmanager
    async def send(
        self, method: str, path: str, body: bytes | None, asked: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        """The response of the upstream, its body not read yet.

        Args:
            method: "GET" or "POST".
            path: below the address, such as "chat/completions".
            body: JSON, already checked.
            asked: the client's headers.

        Raises:
            ApiError: 502 or 504 if it cannot be reached, or breaks off; a 4xx that the client can do something about.
        """
        headers = {"content-type": "application/json"} if body is not None else {}
        if self._section.forward_authorization and "authorization" in asked:
            if not asked["authorization"].isascii():
                raise ApiError(401, "the Authorization header is not ASCII", "invalid_api_key")
            headers["authorization"] = asked["authorization"]
        with _faults():
            async with self._client.stream(method, path, content=body, headers=headers) as response:
                if not response.is_success:
                    raise _refused(response, self._section.forward_authorization)
                yield response

    async def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """The body as it comes, up to the limit.

        Raises:
            ApiError: 502 or 504, it is over the limit or breaks off.
        """
        total = 0
        with _faults():
            async for chunk in response.aiter_bytes():
                total += len(chunk)
                if total > self._section.max_bytes:
                    raise ApiError(502, "the upstream's answer is over the limit", "upstream_error")
                yield chunk

    async def json(self, response: httpx2.Response) -> tuple[dict[str, Any], int]:
        """The body as a JSON object, and its bytes.

        Raises:
            ApiError: 502, it is none.
        """
        content = b"".join([chunk async for chunk in self.chunks(response)])
        try:
            value = await parsed(content)
        except InvalidRequest:
            value = None
        if not isinstance(value, dict):
            raise ApiError(502, "the upstream's answer is not a JSON object", "upstream_error")
        return value, len(content)


def _address(url: str) -> httpx2.URL:
    try:
        found = httpx2.URL(url.rstrip("/") + "/")
    except httpx2.InvalidURL:
        found = None
    if found is None or not found.host or not (found.port is None or 0 < found.port <= _LAST_PORT):
        raise InvalidArgument("upstream.url needs a host, and a port from 1 to 65535 if it names one")
    return found


@contextmanager
def _faults() -> Iterator[None]:
    """What goes wrong on the way to the upstream and back, as the API has it."""
    try:
        yield
    except httpx2.TimeoutException:
        raise ApiError(504, "the upstream did not answer in time", "upstream_timeout") from None
    except (httpx2.HTTPError, httpx2.StreamError):
        raise ApiError(502, "the upstream cannot be reached, or broke off", "upstream_error") from None


def passed_headers(response: httpx2.Response) -> dict[str, str]:
    """The upstream's headers that clients act on; none that a response could not carry."""
    return {
        name: value
        for name, value in response.headers.items()
        if _PASSED.fullmatch(name) and value.isascii() and value.isprintable()
    }


def _refused(response: httpx2.Response, is_clients_key: bool) -> ApiError:
    status = response.status_code
    if status == 429:
        return ApiError(
            429, "the upstream's rate limit is reached", "upstream_rate_limit", headers=passed_headers(response)
        )
    if status in _REFUSED:
        return ApiError(status, f"the upstream refused the request with status {status}", "upstream_refused")
    if status in {401, 403}:
        said = f"the upstream did not accept the key (status {status})"
        return ApiError(status if is_clients_key else 502, said, "upstream_unauthorized")
    return ApiError(504 if status == 504 else 502, f"the upstream failed with status {status}", "upstream_error")
