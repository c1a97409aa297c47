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
from promptguard.guard.chat_answer import read_answer
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
    """Checks and what was read on the way.

    Attributes:
        value: what the reading made of the body.
        decisions: the guard's, about each of the requests that were read; at least one.
    """

    value: _T
    decisions: Sequence[Decision]

    @property
    def decision(self) -> Decision:
        """The one that counts for all: a block, else one that would be a block under a stricter policy."""
        return min(self.decisions, key=lambda one: (one.allowed, one.reason is Reason.ALLOWED))


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
    _size: int = 0
    _is_charged: bool = False
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
        body = await read_body(self.request, limits.body_bytes, limits.seconds)
        self._size = len(body)
        return body

    async def while_there(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of work, cancelled when the client leaves."""
        return await unless_gone(self.request.receive, work)

    async def judge(self, read: Callable[[], tuple[Sequence[ChatRequest], _T]]) -> Judged[_T]:
        """Read and check what the client sent, in the pool, at the price and in the time of one request.

        Args:
            read: makes texts of the body, each with a decision of its own; it runs in the thread.

        Raises:
            ApiError: it could not be read, is not paid for, or could not be checked in time.
            ClientGone: nobody waits any more.
        """
        found = await self.while_there(self._judge(self.state.requests, read, self._charge, "request"))
        self.decision = found.decision
        return found

    async def judge_output(self, values: Sequence[Any]) -> Decision | None:
        """Read and check what the model answered; its request has paid. None if it says nothing.

        Args:
            values: of its JSON, or of the events of its stream; they must not change meanwhile.

        Raises:
            ApiError: it could not be checked in time.
        """

        def read() -> tuple[Sequence[ChatRequest], None]:
            messages = read_answer(values)
            return [ChatRequest(messages, ())] if messages else [], None

        found = await self._judge(self.state.outputs, read, free, "output")
        return found.decision if found.decisions else None

    async def _judge(
        self,
        checker: Checker,
        read: Callable[[], tuple[Sequence[ChatRequest], _T]],
        charge: Callable[[int], None],
        phase: str,
    ) -> Judged[_T]:
        def work(ticket: Ticket) -> tuple[_T, list[Checked]]:
            texts, value = read()
            return value, checker.check_all(texts, ticket, charge, self._digest)

        with span("check", {"route": self.route, "phase": phase, "request_id": self.id}) as say:
            value, found = await self._run(work)
            judged = Judged(value, [checked.decision for checked in found])
            if judged.decisions:
                say("verdict", verdict_word(judged.decision))
        for checked in found:
            await self._record(checked, phase)
        return judged

    @property
    def _digest(self) -> Callable[[str], str] | None:
        return self.services.audit.digest if self.services.audit else None

    async def _record(self, checked: Checked, phase: str) -> None:
        metrics = self.services.metrics
        metrics.seconds.labels(phase).observe(time.perf_counter() - self._start)
        metrics.checks.inc(checked.decision.checks)
        metrics.calls.inc(checked.decision.calls)
        await self.note(phase, **audit_line(checked))

    async def _run(self, work: Callable[[Ticket], _T]) -> _T:
        """Work in the pool, with its errors as the API has them.

        Raises:
            ApiError: busy, late, throttled, or unreadable.
        """

        def paid(ticket: Ticket) -> _T:
            try:
                return work(ticket)
            finally:
                if not self._is_charged:  # it cannot be read, or nobody waits any more: reading it has cost something
                    self._charge(0)

        try:
            return await self.state.pool.run(paid, self.state.config.limits.seconds)
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
        """Charge the characters that a filter reads, at least the bytes that were read to find them.

        Raises:
            Throttled: there is not enough left.
        """
        work, self._is_charged = max(work, self._size), True
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
