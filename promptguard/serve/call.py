"""One request on its way through the server: its body, its checks, its line in the audit log, its headers."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from promptguard.errors import InvalidRequest, PromptGuardError
from promptguard.guard import Decision, Reason
from promptguard.guard.chat_request import ChatRequest
from promptguard.serve.answers import ApiError
from promptguard.serve.audit import AuditLog
from promptguard.serve.bodies import ClientGone, read_body, unless_gone
from promptguard.serve.buckets import Throttled
from promptguard.serve.chain import AuditError
from promptguard.serve.checks import Checked, Checker, audit_line, certificate_line, free, shown, summary
from promptguard.serve.keys import given_key
from promptguard.serve.metrics import Metrics
from promptguard.serve.pool import Busy, Late, Ticket
from promptguard.serve.state import Holder, State
from promptguard.serve.tracing import span

_log = logging.getLogger("promptguard.serve")
_T = TypeVar("_T")
ANONYMOUS = "anonymous"
_GONE = 499  # nobody reads it; it is for the metrics


@dataclass(slots=True, eq=False)
class Services:
    """What outlives configurations.

    Attributes:
        holder: the current state.
        metrics: numbers.
        audit: the audit log, opened with the application, or None.
        is_ready: whether requests are served.
    """

    holder: Holder
    metrics: Metrics
    audit: AuditLog | None = None
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class Judged(Generic[_T]):
    """A check and what was read on the way.

    Attributes:
        value: what the reading made of the body.
        checked: the check.
    """

    value: _T
    checked: Checked

    @property
    def decision(self) -> Decision:
        """The guard's."""
        return self.checked.decision


@dataclass(slots=True, eq=False)
class Call:
    """One request.

    Attributes:
        request: Starlette's.
        state: the configuration that it began with.
        services: the server's.
        route: name for numbers and the log.
        id: of this request.
        key: whose it is.
        decision: what was decided last.
    """

    request: Request
    state: State
    services: Services
    route: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    key: str = ANONYMOUS
    decision: Decision | None = None
    _per_minute: int | None = None
    _start: float = field(default_factory=time.perf_counter)

    async def authorise(self) -> None:
        """Find whose request it is.

        Raises:
            ApiError: 401, it shows no key of ours.
        """
        self._per_minute = self.state.config.limits.work_per_minute
        keys = self.state.keys
        if keys.is_open:
            return
        forwards = self.state.config.upstream.forward_authorization
        given = given_key(self.request.headers, own_header_only=forwards)
        found = await keys.find_in_turn(given)
        if found is None:
            raise ApiError(401, "no valid key", "invalid_api_key", headers={"www-authenticate": "Bearer"})
        self.key = found.name
        self._per_minute = found.work_per_minute or self._per_minute

    async def body(self) -> bytes:
        """The body, bounded."""
        limits = self.state.config.limits
        return await read_body(self.request, limits.body_bytes, limits.seconds)

    async def while_there(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of work, cancelled when the client leaves."""
        return await unless_gone(self.request.receive, work)

    async def judge(self, read: Callable[[], tuple[ChatRequest, _T]]) -> Judged[_T]:
        """Read and check what the client sent, in the pool.

        Args:
            read: makes texts of the body; it runs in the thread.

        Raises:
            ApiError: it could not be read, or not be checked in time.
            ClientGone: nobody waits any more.
        """
        found = await self.while_there(self._judge(self.state.requests, read, self._charge, "request"))
        self.decision = found.decision
        return found

    async def judge_all(self, texts: Sequence[ChatRequest]) -> list[Decision]:
        """Check what the client sent, a decision for each, at the price and in the time of one request.

        Raises:
            ApiError: it could not be checked in time, or is not paid for.
            ClientGone: nobody waits any more.
        """
        decisions = await self.while_there(self._judge_all(texts))
        self.decision = next((one for one in decisions if not one.allowed), decisions[0])
        return decisions

    async def judge_output(self, texts: ChatRequest) -> Decision:
        """Check what the model answered; its request has paid.

        Raises:
            ApiError: it could not be checked in time.
        """
        found = await self._judge(self.state.outputs, lambda: (texts, None), free, "output")
        return found.decision

    async def _judge(
        self,
        checker: Checker,
        read: Callable[[], tuple[ChatRequest, _T]],
        charge: Callable[[int], None],
        phase: str,
    ) -> Judged[_T]:
        def work(ticket: Ticket) -> Judged[_T]:
            texts, value = read()
            return Judged(value, checker.check(texts, ticket, charge, self._digest))

        with span("check", {"route": self.route, "phase": phase, "request_id": self.id}):
            judged = await self.run(work)
        await self._record(judged.checked, phase)
        return judged

    async def _judge_all(self, texts: Sequence[ChatRequest]) -> list[Decision]:
        checker = self.state.requests
        with span("check", {"route": self.route, "phase": "request", "request_id": self.id}):
            found = await self.run(lambda ticket: checker.check_all(texts, ticket, self._charge, self._digest))
        for checked in found:
            await self._record(checked, "request")
        return [checked.decision for checked in found]

    @property
    def _digest(self) -> Callable[[str], str] | None:
        return self.services.audit.digest if self.services.audit else None

    async def _record(self, checked: Checked, phase: str) -> None:
        metrics = self.services.metrics
        metrics.seconds.labels(phase).observe(time.perf_counter() - self._start)
        metrics.checks.inc(checked.decision.checks)
        metrics.calls.inc(checked.decision.calls)
        await self.note(phase, **audit_line(checked))

    async def run(self, work: Callable[[Ticket], _T]) -> _T:
        """Work in the pool, with its errors as the API has them.

        Raises:
            ApiError: busy, late, throttled, or unreadable.
        """
        try:
            return await self.state.pool.run(work, self.state.config.limits.seconds)
        except (Busy, Throttled) as error:
            waits = {"retry-after": str(error.retry_after)}
            code = "server_busy" if isinstance(error, Busy) else "rate_limit_exceeded"
            raise ApiError(429, str(error), code, headers=waits) from None
        except Late as error:
            raise ApiError(503, str(error), "deadline_exceeded", headers={"retry-after": "1"}) from None
        except InvalidRequest as error:
            raise ApiError(400, str(error), "invalid_request") from None
        except PromptGuardError:
            raise ApiError(503, "the request could not be checked", "check_failed") from None

    def _charge(self, work: int) -> None:
        if self._per_minute is not None:
            self.state.buckets.take(self.key, work, self._per_minute)

    async def note(self, event: str, **about: Any) -> None:
        """A line in the audit log; the answer waits for it.

        Raises:
            ApiError: 503, it cannot be written.
        """
        if self.services.audit is None:
            return
        line = {"time": time.time(), "event": event, "request": self.id, "route": self.route, "key": self.key} | about
        try:
            await self.services.audit.append(line)
        except AuditError:
            raise ApiError(503, "the audit log cannot be written", "audit_failed") from None

    def about(self, decision: Decision) -> dict[str, Any]:
        """What the client may know of a decision that it asked for."""
        return {"request_id": self.id} | shown(decision, self.state.config.expose_scores)

    def summary(self, decision: Decision) -> dict[str, Any]:
        """What it is told with a block."""
        return {"request_id": self.id} | summary(decision)


async def answer(call: Call, handle: Callable[[Call], Awaitable[Response]]) -> Response:
    """The response of a handler, or of what went wrong in it, with our headers. Nothing leaves but typed errors."""
    try:
        response = await _handled(call, handle)
    except ClientGone:
        call.services.metrics.dropped.labels(call.route).inc()
        response = Response(status_code=_GONE)
    response.headers["x-promptguard-request-id"] = call.id
    verdict = "none"
    if call.decision is not None:
        verdict = verdict_word(call.decision)
        response.headers["x-promptguard-verdict"] = verdict
        response.headers["x-promptguard-certificate"] = certificate_line(call.decision)
    call.services.metrics.requests.labels(call.route, verdict, str(response.status_code)).inc()
    return response


async def _handled(call: Call, handle: Callable[[Call], Awaitable[Response]]) -> Response:
    fault: ApiError
    try:
        await call.authorise()
        return await handle(call)
    except ApiError as error:
        fault = error
    except ClientGone:
        raise
    except Exception as error:  # its message may quote a text
        _log.error("request %s: %s", call.id, type(error).__name__)
        fault = ApiError(500, "the server failed", "internal_error")
    if call.decision is None and fault.status != 401:
        try:
            await call.note("refused", status=fault.status, fault=fault.code)
        except ApiError as error:
            fault = error
    return fault.response()


def verdict_word(decision: Decision) -> str:
    """A decision in a word: allow, degraded, observed, error_allowed, block or error_blocked."""
    if decision.reason is Reason.ERROR:
        return "error_allowed" if decision.allowed else "error_blocked"
    if not decision.allowed:
        return "block"
    if decision.reason is not Reason.ALLOWED:
        return "observed"
    return "degraded" if any(part.verdict and part.verdict.degraded for part in decision.parts) else "allow"
