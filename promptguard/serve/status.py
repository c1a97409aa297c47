"""The routes that ask no filter: they answer from the event loop while every thread is busy."""

from __future__ import annotations

import re
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from promptguard.serve.answers import json_response
from promptguard.serve.call import Call, Services

_NAME = re.compile(r"[\w.:/@+-]{1,200}", re.ASCII)


async def models(call: Call) -> Response:
    """`GET /v1/models`: the upstream's models by name, and the guard."""
    own = {"id": call.state.config.model, "object": "model", "created": 0, "owned_by": "promptguard"}
    upstream = call.state.upstream
    if upstream is None:
        return json_response({"object": "list", "data": [own]})
    async with upstream.send("GET", "models", None, call.request.headers) as received:
        value, _ = await upstream.json(received)
    data = value.get("data")
    found = [_model(item) for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    return json_response({"object": "list", "data": [*(item for item in found if item), own]})


def _model(item: dict[str, Any]) -> dict[str, Any] | None:
    """A model as the upstream lists it, names and numbers only."""
    name, created, owner = item.get("id"), item.get("created"), item.get("owned_by")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    return {
        "id": name,
        "object": "model",
        "created": created if isinstance(created, int) else 0,
        "owned_by": owner if isinstance(owner, str) and _NAME.fullmatch(owner) else "upstream",
    }


class Probes:
    """Health, readiness and numbers.

    Args:
        services: the server's.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, _request: Request) -> Response:
        """`GET /healthz`: the process answers."""
        return json_response({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """`GET /readyz`: filters are loaded, and the server is not stopping."""
        is_ready = self._services.is_ready
        return json_response({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """`GET /metrics`: Prometheus' text format."""
        return Response(self._services.metrics.text(), media_type=CONTENT_TYPE_LATEST)
