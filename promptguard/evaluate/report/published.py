"""Published figures beside measured ones. Which they are is the caller's to say; every table marks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from promptguard.errors import InvalidArgument
from promptguard.evaluate.report.groups import Group
from promptguard.evaluate.report.page import MISSING, Table, columns, number
from promptguard.evaluate.report.rates import Rate, Spread


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that others have published.

    Attributes:
        metric: one of `METRICS`, to stand beside what was measured, or any other name.
        value: shares as fractions of 1, times in milliseconds.
        where: paper, table, conditions.
        source: the source of prompts that it is about; None for all.
    """

    metric: str
    value: float
    where: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """A published figure, and the same figure measured if the report has it."""

    published: Published
    measured: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        kept = self.published
        return {
            "metric": kept.metric,
            "source": kept.source,
            "measured": self.measured,
            "published": {"value": kept.value, "where": kept.where},
        }


@dataclass(frozen=True, slots=True)
class Metric:
    """What can be measured and published.

    Attributes:
        title: for people.
        of: reads it off a group.
        show: writes it.
    """

    title: str
    of: Callable[[Group], float | None]
    show: Callable[[float], str]


def _share(rate: Rate | None) -> float | None:
    return None if rate is None else rate.share


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p50


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


METRICS: dict[str, Metric] = {
    "recall": Metric("recall", lambda group: _share(group.recall), _percent),
    "certified": Metric("certified recall", lambda group: _share(group.certified), _percent),
    "over_refusal": Metric("over-refusal", lambda group: _share(group.over_refusal), _percent),
    "auc": Metric("area under the ROC curve", lambda group: group.auc, "{:.4f}".format),
    "recall@1%": Metric("recall at 1 % false positives", lambda group: _share(group.operating[0].recall), _percent),
    "recall@2%": Metric("recall at 2 % false positives", lambda group: _share(group.operating[1].recall), _percent),
    "recall@5%": Metric("recall at 5 % false positives", lambda group: _share(group.operating[2].recall), _percent),
    "checks": Metric("checks (median)", lambda group: _median(group.checks), number),
    "ms": Metric("milliseconds (median)", lambda group: _median(group.ms), number),
}


def compare(published: Sequence[Published], groups: Sequence[Group]) -> tuple[Compared, ...]:
    """Find the measured counterpart of each published figure.

    Raises:
        InvalidArgument: a figure is about a source that the run does not have.
    """
    by_source = {group.source: group for group in groups}
    if not all(row.source in by_source for row in published):
        raise InvalidArgument("a published figure names a source that the run does not have")
    return tuple(Compared(row, _measured(row.metric, by_source[row.source])) for row in published)


def _measured(metric: str, group: Group) -> float | None:
    return METRICS[metric].of(group) if metric in METRICS else None


def table(compared: Sequence[Compared]) -> Table:
    """Measured and published side by side."""
    rows = []
    for row in compared:
        metric = METRICS.get(row.published.metric) or Metric(row.published.metric, lambda _: None, number)
        source = "all sources" if row.published.source is None else row.published.source
        measured = MISSING if row.measured is None else metric.show(row.measured)
        value = f"{metric.show(row.published.value)} (published)"
        rows.append([metric.title, source, measured, value, row.published.where])
    head = ("figure", "source", "measured here", "published", "where")
    return columns(*head, rows=rows, caption="Measured here, and as published by others: not measured again here")
