"""Spans of requests in the real OpenTelemetry SDK: names, order, status, and no text of anybody's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from serving import CANARY, SAID, Fake, ask, config, served
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from promptguard.serve import certifier, tracing
from promptguard.serve.app import create_app

CHAT = "/v1/chat/completions"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("promptguard"))
    yield exporter
    provider.shutdown()


def found(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Finished spans by name and phase, in their order; none holds a text."""
    finished = spans.get_finished_spans()
    assert all(CANARY not in span.to_json() for span in finished)
    return {f"{s.name} {(s.attributes or {}).get('promptguard.phase', '')}".strip(): s for s in finished}


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def post(client: TestClient, **more: Any) -> Any:
    """Whatever a client can name holds the canary."""
    body = ask(**{"text": f"a {CANARY} cake", "user": CANARY, **more}) | {"model": CANARY}
    return client.post(f"{CHAT}?q={CANARY}", json=body, headers={"x-about": CANARY, "user-agent": CANARY})


def test_a_request_is_a_check_and_a_call_of_the_upstream(spans: InMemorySpanExporter) -> None:
    with served(fake=Fake(), settings=config(output={"check": True})) as client:
        answer = post(client)
    assert answer.json()["choices"][0]["message"]["content"] == SAID
    seen = found(spans)
    assert list(seen) == ["promptguard.check request", "promptguard.upstream", "promptguard.check output"]
    of_it = {"promptguard.request_id": answer.headers["x-promptguard-request-id"]}
    check, upstream, output = seen.values()
    verdict = {"promptguard.verdict": "allow"}
    assert about(check) == of_it | verdict | {"promptguard.route": CHAT, "promptguard.phase": "request"}
    assert about(upstream) == of_it | {"promptguard.route": "chat/completions"}
    assert about(output) == of_it | verdict | {"promptguard.route": CHAT, "promptguard.phase": "output"}
    ends = [(span.start_time, span.end_time) for span in seen.values()]
    assert all(start is not None and end is not None and start <= end for start, end in ends)
    assert ends == sorted(ends)
    for span in seen.values():
        assert (span.status.status_code, span.status.description, span.events) == (StatusCode.UNSET, None, ())
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "promptguard"


def test_they_belong_to_the_span_around_the_request(spans: InMemorySpanExporter) -> None:
    app = create_app(config(), upstream_transport=httpx2.ASGITransport(app=Fake().app()))

    async def instrumented(scope: Scope, receive: Receive, send: Send) -> None:  # as the owner's instrumentation does
        assert tracing._tracer is not None
        with tracing._tracer.start_as_current_span(scope["type"]):
            await app(scope, receive, send)

    with TestClient(instrumented) as client:
        post(client)
    check, upstream, request = spans.get_finished_spans()[:3]
    assert (check.name, upstream.name, request.name) == ("promptguard.check", "promptguard.upstream", "http")
    assert request.context is not None
    for inner in (check, upstream):
        assert inner.parent is not None
        assert inner.parent.span_id == request.context.span_id


def test_a_block_is_a_verdict_and_no_error(spans: InMemorySpanExporter) -> None:
    fake = Fake()
    with served(fake=fake) as client:
        assert post(client, text=f"a {CANARY} bomb").status_code == 400
    [check] = found(spans).values()
    assert check.name == "promptguard.check"
    assert about(check)["promptguard.verdict"] == "block"
    assert check.status.status_code is StatusCode.UNSET


def test_a_request_that_cannot_be_read_is_no_error_of_the_server(spans: InMemorySpanExporter) -> None:
    with served(fake=Fake()) as client:
        answer = client.post(CHAT, content=CANARY.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    [check] = found(spans).values()
    assert check.status.status_code is StatusCode.UNSET
    assert about(check)["error.type"] == "invalid_request"


def test_a_failing_upstream_is_an_error_with_a_name_and_no_text(spans: InMemorySpanExporter) -> None:
    with served(fake=Fake(lambda _: JSONResponse({"error": CANARY}, 500))) as client:
        assert post(client).status_code == 502
    upstream = found(spans)["promptguard.upstream"]
    assert (upstream.status.status_code, upstream.status.description) == (StatusCode.ERROR, None)
    assert about(upstream)["error.type"] == "upstream_error"
    assert upstream.events == ()


class Quotes:
    """A filter whose errors quote what it was given, once the server has timed it."""

    name, digest, threshold, guard_band = "quotes", "quotes", 0.5, 0.0

    def __call__(self, texts: Any) -> list[float]:
        if any(CANARY in text for text in texts):
            raise RuntimeError(texts[0])
        return [0.0] * len(texts)


def test_a_failing_filter_says_nothing(spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifier, "load_filter", lambda *_args, **_more: Quotes())
    fake = Fake()
    with served(fake=fake) as client:
        answer = post(client)
    assert answer.headers["x-promptguard-verdict"] == "error_blocked"
    assert fake.bodies == []
    assert list(found(spans)) == ["promptguard.check request"]


def test_the_message_of_an_error_is_nowhere_in_a_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match=CANARY), tracing.span("check", {"phase": "request"}):
        raise ValueError(CANARY)
    [span] = found(spans).values()
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    assert about(span)["error.type"] == "ValueError"


async def test_a_check_that_was_given_up_ends_its_span(spans: InMemorySpanExporter) -> None:
    async def check() -> None:
        with tracing.span("check", {}):
            await asyncio.sleep(60)

    task = asyncio.create_task(check())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [span] = found(spans).values()
    assert span.status.status_code is StatusCode.UNSET
    assert trace.get_current_span() is trace.INVALID_SPAN


LATER = """
from serving import Fake, ask, served
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")))
trace.set_tracer_provider(provider)
with served(fake=Fake()) as client:
    client.post("/v1/chat/completions", json=ask())
"""


def test_a_provider_that_is_set_after_the_server_was_imported_is_used() -> None:
    command = [sys.executable, "-c", LATER]
    tests = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tests)
    assert done.stdout.split() == ["promptguard.check", "promptguard.upstream"]
