"""OpenAI's Python client with a guard in it: majors 2 and 3, synchronous and asynchronous, Azure's and others too.

    client = GuardedOpenAI(guard=Guard(certifier))  # or wrap_openai(client, guard)

The promise: no request leaves the client unless the guard allows the body that is sent, byte for byte: whatever method
built it (`create`, `parse`, `stream`, `responses`, `with_raw_response`, `post`, ...), with `extra_body` merged and
after every hook of the client. A body that is not JSON (an uploaded file, a form) is unscannable, as are histories on
the server (`previous_response_id`, `conversation`). Websockets (`realtime`, `live`, `responses.connect`) are refused.
Requests without a body, such as `models.list`, pass.

Source of the contract: `openai/_base_client.py`, versions 2.54 and 3.54.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, TypeVar

import openai

from promptguard.errors import Blocked, InvalidArgument, InvalidRequest, MissingDependency
from promptguard.guard import Decision, Guard
from promptguard.guard.chat_answer import is_answer, read_answer, read_events
from promptguard.guard.chat_request import ChatRequest, read_request
from promptguard.guard.strict_json import parse

_Client = TypeVar("_Client", openai.OpenAI, openai.AsyncOpenAI)
_UNREADABLE = ChatRequest((None,), ())
# Endpoints whose answers have another form than a model's text; whatever text there is in them is read.
_OF_NUMBERS = ("/embeddings", "/moderations")
# What is asked for without a body and names things instead of holding a model's text; not the contents of files.
_LISTS = re.compile(r"/(?:models|files|batches|containers|vector_stores|fine_tuning/jobs)(?:/[^/]+)?/?")


class BlockedRequest(Blocked, openai.BadRequestError):
    """A block that code which handles OpenAI's own refusals understands: `except openai.BadRequestError`.

    Attributes:
        decision: the `promptguard.guard.Decision` behind the block.
        code: "content_filter", as in the API's errors; `status_code` is 400. No request was sent for a blocked input.
    """

    def __init__(self, decision: Decision, request: Any) -> None:
        # Of the library that this client uses, and without the body: what holds this error holds no text.
        http = import_module(type(request).__module__.partition(".")[0])
        sent = http.Request(request.method, request.url)
        body = {"message": "blocked by promptguard", "type": "invalid_request_error", "param": None}
        response = http.Response(400, request=sent, json={"error": body})
        self.decision = decision
        openai.BadRequestError.__init__(
            self, "blocked by promptguard", response=response, body={**body, "code": "content_filter"}
        )


class _WebsocketsAreNotGuarded:
    """Stands where the client looks for the address of a websocket; it is no address, so that nothing is opened."""

    def __str__(self) -> str:
        raise InvalidArgument("websockets go round the guard: a guarded client does not open them")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a guarded client was given beside the options of openai's."""

    guard: Guard
    check_output: bool
    unguarded: tuple[str, ...]

    def of_request(self, request: Any) -> ChatRequest | None:
        """What is to be checked of a request; None if there is no text in it."""
        body = bytes(request.content)
        if not body or request.url.path.endswith(self.unguarded):
            return None
        try:
            found = read_request(parse(body))
        except InvalidRequest:
            return _UNREADABLE
        return found if found.messages or found.context else None

    def of_response(self, response: Any, base: str) -> tuple[object, ...] | None:
        """What is to be checked of an answer to a client with this path in its base URL; None if it holds no text."""
        path = response.request.url.path
        if not self.check_output or not response.content or path.endswith(self.unguarded):
            return None
        events = read_events(response.content, response.headers.get("content-type", ""))
        if events is None:
            return (None,)
        if not is_answer(events):
            if response.request.method != "GET" and not path.endswith(_OF_NUMBERS):
                return (None,)
            if response.request.method == "GET" and _LISTS.fullmatch(path.removeprefix(base.rstrip("/"))):
                return None
        return read_answer(events) or None

    def keywords(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class GuardedOpenAI(openai.OpenAI):
    """`openai.OpenAI` whose requests are checked.

    Args:
        guard: what decides.
        check_output: check answers as well. Streams are then collected, checked, and only then given out.
        unguarded: ends of paths whose requests and answers are not checked, such as "/moderations" or "/files".
    """

    def __init__(
        self, *args: Any, guard: Guard, check_output: bool = False, unguarded: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _guard(self, _Settings(guard, check_output, tuple(unguarded)))

    def copy(self, *args: Any, _extra_kwargs: Any = None, **kwargs: Any) -> Any:
        """A client with other options and the same guard."""
        return super().copy(*args, _extra_kwargs={**(_extra_kwargs or {}), **_settings(self).keywords()}, **kwargs)

    with_options = copy

    def _prepare_request(self, request: Any) -> None:
        super()._prepare_request(request)
        request.read()
        settings = _settings(self)
        if (found := settings.of_request(request)) is not None:
            _pass(settings.guard.check(found.messages, context=found.context), request)

    def _process_response(self, *, response: Any, **kwargs: Any) -> Any:
        settings = _settings(self)
        if settings.check_output:
            response.read()
        if (found := settings.of_response(response, self.base_url.path)) is not None:
            _pass(settings.guard.check(found), response.request)
        return super()._process_response(response=response, **kwargs)


class GuardedAsyncOpenAI(openai.AsyncOpenAI):
    """`openai.AsyncOpenAI` whose requests are checked, in worker threads; as `GuardedOpenAI` in all else."""

    def __init__(
        self, *args: Any, guard: Guard, check_output: bool = False, unguarded: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _guard(self, _Settings(guard, check_output, tuple(unguarded)))

    def copy(self, *args: Any, _extra_kwargs: Any = None, **kwargs: Any) -> Any:
        """A client with other options and the same guard."""
        return super().copy(*args, _extra_kwargs={**(_extra_kwargs or {}), **_settings(self).keywords()}, **kwargs)

    with_options = copy

    async def _prepare_request(self, request: Any) -> None:
        await super()._prepare_request(request)
        await request.aread()
        settings = _settings(self)
        if (found := settings.of_request(request)) is not None:
            _pass(await settings.guard.acheck(found.messages, context=found.context), request)

    async def _process_response(self, *, response: Any, **kwargs: Any) -> Any:
        settings = _settings(self)
        if settings.check_output:
            await response.aread()
        if (found := settings.of_response(response, self.base_url.path)) is not None:
            _pass(await settings.guard.acheck(found), response.request)
        return await super()._process_response(response=response, **kwargs)


def wrap_openai(client: _Client, guard: Guard, *, check_output: bool = False, unguarded: Sequence[str] = ()) -> _Client:
    """A guarded copy of a client, of its own class and options; `AzureOpenAI` and other subclasses included.

    Args:
        client: any client of openai's; it stays as it is.
        guard: what decides.
        check_output: as for `GuardedOpenAI`.
        unguarded: as for `GuardedOpenAI`.

    Raises:
        InvalidArgument: the client is guarded already, or is no client of openai's.
    """
    kind = type(client)
    if not isinstance(client, openai.OpenAI | openai.AsyncOpenAI) or isinstance(
        client, GuardedOpenAI | GuardedAsyncOpenAI
    ):
        raise InvalidArgument("wrap_openai takes an unguarded client of openai's")
    guarded: Any = GuardedOpenAI if isinstance(client, openai.OpenAI) else GuardedAsyncOpenAI
    copied: Any = client.copy()
    copied.__class__ = type(f"Guarded{kind.__name__}", (guarded, kind), {})
    _guard(copied, _Settings(guard, check_output, tuple(unguarded)))
    made: _Client = copied
    return made


def _guard(client: Any, settings: _Settings) -> None:
    client._promptguard = settings
    client.websocket_base_url = _WebsocketsAreNotGuarded()


def _settings(client: Any) -> _Settings:
    settings: _Settings = client._promptguard
    return settings


def _pass(decision: Decision, request: Any) -> None:
    if not decision.allowed:
        raise BlockedRequest(decision, request)


def check_version(clients: Sequence[Any]) -> None:
    """Make sure that every request of these clients goes through the two methods that are overridden here.

    Raises:
        MissingDependency: it does not.
    """
    used = {"_prepare_request", "_process_response"}
    if any(not used <= set(client.request.__code__.co_names) for client in clients):
        raise MissingDependency("this version of openai is not supported: install openai>=2.20,<4")


check_version((openai.OpenAI, openai.AsyncOpenAI))
