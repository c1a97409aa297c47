"""OpenTelemetry spans around checks and upstream calls, if its API is installed; exporters are the owner's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from promptguard.serve.answers import ApiError

try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    _tracer = trace.get_tracer("promptguard")


@contextmanager
def span(name: str, attributes: Mapping[str, str | int | float | bool]) -> Iterator[Callable[[str, str], None]]:
    """A span of that name. Of an error that leaves it there is the code or the type, as `error.type`, and no message.

    Its status is an error where the server or its upstream failed; a block, or a request that is refused, is none.

    Args:
        name: behind "promptguard.".
        attributes: names behind "promptguard.", values without text of a request.

    Yields:
        What sets a further attribute.
    """
    if _tracer is None:
        yield lambda _name, _value: None
        return
    named = {f"promptguard.{key}": value for key, value in attributes.items()}
    # Left to itself the tracer would publish messages of errors, in an event and in the status.
    with _tracer.start_as_current_span(
        f"promptguard.{name}", attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield lambda name, value: current.set_attribute(f"promptguard.{name}", value)
        except ApiError as error:
            current.set_attribute("error.type", error.code)
            if error.status >= 500:
                current.set_status(trace.StatusCode.ERROR)
            raise
        except Exception as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(trace.StatusCode.ERROR)
            raise
