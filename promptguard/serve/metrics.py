"""What Prometheus reads: counts and times with few labels, none of which comes from a request.

With several workers, `PROMETHEUS_MULTIPROC_DIR` names the folder in which they share their numbers (the command sets
it), and any of them answers for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The numbers of one application.

    Args:
        inside: checks that run or wait now.
    """

    def __init__(self, inside: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "promptguard_requests", "Answered requests.", ["route", "verdict", "status"], registry=registry
        )
        self.seconds = Histogram(
            "promptguard_check_seconds",
            "Time from arrival to verdict, waiting included.",
            ["phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.checks = Counter("promptguard_checks", "Scores that verdicts rest on.", registry=registry)
        self.calls = Counter("promptguard_filter_texts", "Texts that filters scored.", registry=registry)
        self.upstream = Histogram(
            "promptguard_upstream_seconds", "Time until the upstream's answer.", ["route"], registry=registry
        )
        self.dropped = Counter("promptguard_dropped", "Requests whose client left.", ["route"], registry=registry)
        self._inside = Gauge(
            "promptguard_checks_inside", "Checks that run or wait.", registry=registry, multiprocess_mode="livesum"
        )
        self._count = inside

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        self._inside.set(self._count())
        registry = self._registry
        if os.environ.get(SHARED_FOLDER):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
