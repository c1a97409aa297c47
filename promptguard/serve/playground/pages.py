"""The workbench on the web: the page's files, and one route for each of its questions.

The page loads nothing from elsewhere and runs no inline script (content security policy, level 3); bodies are strict
JSON of a bounded size and of that type, so that no other site can make a browser send them unasked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.resources import files
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from promptguard.errors import FilterError, InvalidRequest, PromptGuardError
from promptguard.guard.strict_json import parse
from promptguard.serve.playground.limits import in_words
from promptguard.serve.playground.requests import AttackRequest, PrefixRequest, TextRequest
from promptguard.serve.playground.workbench import Workbench

MAX_BODY = 64 * 1024
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_FILES = {
    "/": ("index.html", "text/html"),
    "/playground/style.css": ("style.css", "text/css"),
    "/playground/app.js": ("app.js", "text/javascript"),
    "/playground/attack.js": ("attack.js", "text/javascript"),
    "/playground/text.js": ("text.js", "text/javascript"),
    "/playground/strip.js": ("strip.js", "text/javascript"),
    "/playground/icon.svg": ("icon.svg", "image/svg+xml"),
}

_T = TypeVar("_T")
_Body = TypeVar("_Body", TextRequest, PrefixRequest, AttackRequest)


def routes(workbench: Workbench, run: Callable[[Callable[[], _T]], Awaitable[_T]]) -> list[BaseRoute]:
    """The routes of the playground: the page at "/", the rest under "/playground/".

    Args:
        workbench: what answers.
        run: takes blocking work to where the server does it. A `PromptGuardError` of its own, for instance because a
            queue is full, is answered with status 503; anything else is left to the server.
    """
    folder = files(__package__) / "static"

    def page(file: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
        body = folder.joinpath(file).read_bytes()

        async def send(_request: Request) -> Response:
            return Response(body, media_type=media_type, headers=HEADERS)

        return send

    def question(shape: type[_Body], ask: Callable[[_Body], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                asked = _validated(shape, await _body(request))
            except InvalidRequest as error:
                return _refusal(error, 400)

            def work() -> Any:  # the server says for what type it runs
                try:
                    return JSONResponse(asdict(ask(asked)), headers=HEADERS)
                except PromptGuardError as error:
                    return _refusal(error, 500 if isinstance(error, FilterError) else 400)

            try:
                found: Any = await run(work)
            except PromptGuardError as error:  # nobody began: the queue is full, or time is up
                return _refusal(error, 503)
            return cast(Response, found)

        return answer

    async def menu(_request: Request) -> Response:
        return JSONResponse(asdict(workbench.menu()), headers=HEADERS)

    questions = {
        "cost": question(TextRequest, lambda body: workbench.cost(body.text, body.choice)),
        "check": question(TextRequest, lambda body: workbench.check(body.text, body.choice)),
        "prefixes": question(PrefixRequest, lambda body: workbench.prefixes(body.text, body.choice, body.start)),
        "attack": question(AttackRequest, lambda body: workbench.attack(body.text, body.choice, body.attack)),
    }
    return [
        *(Route(path, page(*file)) for path, file in _FILES.items()),
        Route("/playground/menu", menu),
        *(Route(f"/playground/{name}", answer, methods=["POST"]) for name, answer in questions.items()),
    ]


async def _body(request: Request) -> bytes:
    """The body, if it is plain JSON of a bounded size.

    Raises:
        InvalidRequest: it is not.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("send JSON, with content type application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("send the body as it is, not compressed")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidRequest(f"the body is over {MAX_BODY:,} bytes")
    return bytes(body)


def _validated(shape: type[_Body], body: bytes) -> _Body:
    """A request of its shape.

    Raises:
        InvalidRequest: the body is not; the message names what is wrong and quotes no value.
    """
    value = parse(body)
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "extra_forbidden":
        raise InvalidRequest("the request has a key that is not known")
    where = ".".join(map(str, first["loc"])) or "the request"
    raise InvalidRequest(f"{where}: {first['msg']}")


def _refusal(error: PromptGuardError, status: int) -> Response:
    """An error in words."""
    body = {"error": {"kind": type(error).__name__, "message": in_words(error)}}
    return JSONResponse(body, status_code=status, headers=HEADERS)
