"""The application: routes, the life of what they need, and the outermost edge.

Every guarded route runs in `promptguard.serve.call.answer`, so nothing but typed errors reaches a client, and the edge
below it lets nothing but types of errors reach a log.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptguard.serve import judging, proxy, status
from promptguard.serve.answers import ApiError
from promptguard.serve.audit import AuditLog
from promptguard.serve.call import ANONYMOUS, Call, Services, answer
from promptguard.serve.certifier import filters
from promptguard.serve.config import Config
from promptguard.serve.launch import stay_responsive
from promptguard.serve.metrics import Metrics
from promptguard.serve.playground import Workbench
from promptguard.serve.playground import routes as playground
from promptguard.serve.playground.requests import Attack, Choice
from promptguard.serve.playground.results import Outcome, Report, Strip
from promptguard.serve.reload import on_hangup, reload
from promptguard.serve.settings import configured
from promptguard.serve.state import Holder, State
from promptguard.types import Filter

_log = logging.getLogger("promptguard.serve")
_T = TypeVar("_T")
_Handler = Callable[[Call], Awaitable[Response]]
_STATE = "promptguard.state"


def create_app(config: Config, *, upstream_transport: httpx2.AsyncBaseTransport | None = None) -> Starlette:
    """The server for a configuration. Filters are loaded here; the audit log opens with the application.

    Args:
        config: what `load_config` returns.
        upstream_transport: instead of the network, for tests.

    Raises:
        PromptGuardError: a setting means nothing, or a file is missing.
    """
    holder = Holder(State.of(config, upstream_transport))
    services = Services(holder, Metrics(lambda: holder.current.pool.inside))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if config.audit.path is not None:
            services.audit = AuditLog(config.audit, config.server.workers)
        services.is_ready = True
        with on_hangup(lambda: reload(holder, upstream_transport)):
            yield
        services.is_ready = False
        await holder.close()
        if services.audit is not None:
            await asyncio.to_thread(services.audit.close)

    return Starlette(
        routes=_routes(services, config),
        middleware=[Middleware(Edge, holder=holder)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


def from_environment() -> Starlette:
    """The application of a worker process: `PGUARD_CONFIG` names the file.

    Raises:
        PromptGuardError: as `create_app`.
    """
    app = create_app(configured(os.environ))
    stay_responsive()
    return app


def _routes(services: Services, config: Config) -> list[BaseRoute]:
    def route(path: str, handle: _Handler, method: str = "POST") -> Route:
        async def serve(request: Request) -> Response:
            return await answer(Call(request, request.scope[_STATE], services, path), handle)

        return Route(path, serve, methods=[method])

    probes = status.Probes(services)
    found: list[BaseRoute] = [
        *(route(f"/v1/{shape.path}", proxy.handler(shape)) for shape in proxy.SHAPES),
        route("/v1/moderations", judging.moderations),
        route("/v1/certify", judging.certify),
        route("/beta/litellm_basic_guardrail_api", judging.litellm),
        route("/v1/models", status.models, "GET"),
        Route("/healthz", probes.health),
        Route("/readyz", probes.ready),
        Route("/metrics", probes.metrics),
    ]
    return found + _playground(services) if _is_open(config) else found


def _playground(services: Services) -> list[BaseRoute]:
    """The page, with the filters of the configuration that the server was started with, as long as it is open."""

    async def run(work: Callable[[], _T]) -> _T:
        current = services.holder.current
        return await current.pool.run(lambda _ticket: work(), current.config.limits.seconds)

    # The page is about erasures: there is none for certifiers of other kinds.
    known = filters(services.holder.current.requests.certifier)
    routes = playground(_Metered(known, services.holder), run) if known else []
    return [_while_open(route) for route in routes if isinstance(route, Route)]


def _is_open(config: Config) -> bool:
    """Whether the page is served."""
    return config.playground if config.playground is not None else not config.keys


def _while_open(route: Route) -> Route:
    """The route, which is not there once a configuration was loaded that does not serve the page."""

    async def serve(request: Request) -> Response:
        if not _is_open(request.scope[_STATE].config):
            raise HTTPException(404)
        response: Response = await route.endpoint(request)
        return response

    return Route(route.path, serve, methods=list(route.methods or ()))


class _Metered(Workbench):
    """Charges the work of the page to whoever comes without a key."""

    def __init__(self, known: Mapping[str, Filter], holder: Holder) -> None:
        super().__init__(known)
        self._holder = holder

    def check(self, text: str, choice: Choice) -> Report:
        self._charge(text, choice)
        return super().check(text, choice)

    def prefixes(self, text: str, choice: Choice, start: int = 0) -> Strip:
        self._charge(text, choice)
        return super().prefixes(text, choice, start)

    def attack(self, text: str, choice: Choice, attack: Attack) -> Outcome:
        self._charge(text, choice, times=2)  # before the attack and after it
        return super().attack(text, choice, attack)

    def _charge(self, text: str, choice: Choice, times: int = 1) -> None:
        """Take what a check of the text costs.

        Raises:
            Throttled: the work for the minute is used up.
        """
        state, quote = self._holder.current, self.cost(text, choice)
        per_minute = state.config.limits.work_per_minute
        if per_minute is not None:
            state.buckets.take(ANONYMOUS, len(text) if quote.refusal else times * quote.characters, per_minute)


class Edge:
    """Keeps the configuration that a request began with, and keeps errors from the server's log.

    Args:
        app: what answers.
        holder: the current configuration.
    """

    def __init__(self, app: ASGIApp, holder: Holder) -> None:
        self._app = app
        self._holder = holder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        with self._holder.use() as state:
            try:
                await self._app({**scope, _STATE: state}, receive, watched)
                return
            except Exception as error:  # its message may quote a text, and the server would log it
                _log.error("%s", type(error).__name__)
            if not has_begun:
                await ApiError(500, "the server failed", "internal_error").response()(scope, receive, send)


async def _http_error(_request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is no such route", 405: "this route takes another method"}
    name = "not_found" if code == 404 else "refused"
    return ApiError(code, words.get(code, "the request cannot be served"), name).response()
