"""Rows to a summary: recall and over-refusal side by side, per source, each with its exact interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from promptguard.stats import Interval, clopper_pearson

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of rows with its 95 % Clopper-Pearson interval."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        """Hits over n."""
        return self.hits / self.n

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        return clopper_pearson(self.hits, self.n)

    def to_dict(self) -> dict[str, float]:
        """JSON form."""
        interval = self.interval
        return {"hits": self.hits, "n": self.n, "share": self.share, "low": interval.low, "high": interval.high}

    def __str__(self) -> str:
        """Percent, with the interval."""
        interval = self.interval
        return f"{100 * self.share:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Summary:
    """One source, or all of them.

    Attributes:
        source: its name.
        recall: harmful prompts flagged harmful; None without harmful prompts.
        certified: harmful prompts whose certificate has the full budget of the run.
        over_refusal: safe prompts that are not allowed: flagged, or refused because they could not be checked.
        checks: median erasures per prompt.
        milliseconds: median per checked prompt.
    """

    source: str
    recall: Rate | None
    certified: Rate | None
    over_refusal: Rate | None
    checks: float
    milliseconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is missing is null."""
        rates = {"recall": self.recall, "certified": self.certified, "over_refusal": self.over_refusal}
        return {
            "source": self.source,
            **{name: rate and rate.to_dict() for name, rate in rates.items()},
            "checks": self.checks,
            "ms": self.milliseconds,
        }


def _rate(hits: Iterable[bool]) -> Rate | None:
    flags = list(hits)
    return Rate(sum(flags), len(flags)) if flags else None


def _summary(source: str, rows: Sequence[Row], budget: int | str) -> Summary:
    harmful = [row for row in rows if row["label"] == "harmful"]
    times = [row["ms"] for row in rows if row["ms"] is not None]
    return Summary(
        source=source,
        recall=_rate(row["verdict"] == "harmful" for row in harmful),
        certified=_rate(
            row["certificate"] is not None and row["certificate"]["threat"]["budget"] == budget for row in harmful
        ),
        over_refusal=_rate(row["verdict"] != "safe" for row in rows if row["label"] == "safe"),
        checks=median(row["checks"] for row in rows),
        milliseconds=median(times) if times else None,
    )


def summarise(rows: Sequence[Row], budget: int | str) -> list[Summary]:
    """One summary per source, in order of appearance, then one over all rows if there are several sources.

    Args:
        rows: at least one row of `promptguard.evaluate.bench`.
        budget: the erase budget of the run, as in a row's threat (an integer or "unlimited").
    """
    sources = dict.fromkeys(row["source"] for row in rows)
    parts = [_summary(source, [row for row in rows if row["source"] == source], budget) for source in sources]
    return parts if len(parts) == 1 else [*parts, _summary("all", rows, budget)]
