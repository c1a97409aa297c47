"""OpenTelemetry spans around checks and upstream calls, if its API is installed; exporters are the owner's choice."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    _tracer = trace.get_tracer("promptguard")


def span(name: str, attributes: Mapping[str, str | int | float | bool]) -> AbstractContextManager[object]:
    """A span of that name; errors that leave it are not recorded, since their messages are not ours to publish.

    Args:
        name: behind "promptguard.".
        attributes: names behind "promptguard.", values without text of a request.
    """
    if _tracer is None:
        return nullcontext()
    named = {f"promptguard.{key}": value for key, value in attributes.items()}
    return _tracer.start_as_current_span(f"promptguard.{name}", attributes=named, record_exception=False)
