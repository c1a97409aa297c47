"""Rows to numbers: detection beside over-refusal, for each source and overall. What is missing is None, never 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptguard.evaluate.report.rates import Rate, Spread
from promptguard.evaluate.report.rows import About, Row, check_rows, parse_about, parse_rows, reach
from promptguard.evaluate.report.thresholds import PERCENTS, auc, threshold_for

_EVERY = 100  # budgets up to it are all listed; beyond it, those where the curve steps


@dataclass(frozen=True, slots=True)
class Operating:
    """What a threshold gives that keeps a false-positive rate.

    The intervals are for this threshold as if it had been chosen beforehand; that it was chosen on the same safe rows
    is not in them.

    Attributes:
        percent: false positives allowed, in percent of all safe rows of the run.
        threshold: the smallest that keeps it; None if none does, or without safe rows, or without true maxima.
        recall: harmful rows blocked at the threshold, refused ones included.
        over_refusal: safe rows blocked at the threshold, refused ones included.
    """

    percent: int
    threshold: float | None
    recall: Rate | None
    over_refusal: Rate | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "percent": self.percent,
            "threshold": self.threshold,
            "recall": self.recall and self.recall.to_dict(),
            "over_refusal": self.over_refusal and self.over_refusal.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Step:
    """Share of harmful rows that are certified for a budget or more."""

    budget: float
    certified: Rate

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"budget": "unlimited" if math.isinf(self.budget) else int(self.budget), **self.certified.to_dict()}


@dataclass(frozen=True, slots=True)
class Group:
    """One source, or all of them.

    Attributes:
        source: its name; None for all.
        harmful: harmful rows.
        safe: safe rows.
        refused_harmful: harmful rows that could not be checked.
        refused_safe: safe rows that could not be checked.
        recall: harmful rows blocked: flagged, undecided or refused.
        certified: harmful rows with a certificate for the full budget of the run; None if the run states none.
        over_refusal: safe rows blocked: flagged, undecided or refused.
        auc: area under the ROC curve, ties counted one half; None without both labels or without true maxima.
        operating: at 1, 2 and 5 % false positives overall.
        curve: certified recall against the budget; empty without harmful rows, or if certificates are of several kinds.
        checks: scores compared with the threshold, of checked rows.
        ms: milliseconds, of rows that were timed.
    """

    source: str | None
    harmful: int
    safe: int
    refused_harmful: int
    refused_safe: int
    recall: Rate | None
    certified: Rate | None
    over_refusal: Rate | None
    auc: float | None
    operating: tuple[Operating, ...]
    curve: tuple[Step, ...]
    checks: Spread | None
    ms: Spread | None

    @property
    def title(self) -> str:
        """The name in a table."""
        return "all sources" if self.source is None else self.source

    @property
    def refused(self) -> str:
        """Refused rows in a table, harmful + safe."""
        return f"{self.refused_harmful} + {self.refused_safe}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is missing is null."""
        rates = {"recall": self.recall, "certified": self.certified, "over_refusal": self.over_refusal}
        return {
            "source": self.source,
            "harmful": {"n": self.harmful, "refused": self.refused_harmful},
            "safe": {"n": self.safe, "refused": self.refused_safe},
            **{name: rate and rate.to_dict() for name, rate in rates.items()},
            "auc": self.auc,
            "at_false_positives": [point.to_dict() for point in self.operating],
            "certified_by_budget": [step.to_dict() for step in self.curve] or None,
            "checks": self.checks and self.checks.to_dict(),
            "ms": self.ms and self.ms.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class _Scale:
    """What all groups of a run share: thresholds by percent of false positives, and budgets."""

    thresholds: Mapping[int, float | None]
    budgets: Sequence[float]


def groups(rows: Sequence[Row], about: About) -> tuple[Group, ...]:
    """One group over all rows, then one per source in order of appearance.

    Args:
        rows: at least one.
        about: the run they are of.
    """
    safe = [] if about.fast else [row.rank for row in rows if row.label == "safe"]
    scale = _Scale({percent: threshold_for(safe, percent) for percent in PERCENTS}, _budgets(rows, about))
    sources = dict.fromkeys(row.source for row in rows)
    parts = [_group(name, [row for row in rows if row.source == name], about, scale) for name in sources]
    return (_group(None, rows, about, scale), *parts)


def summarise(rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> list[Group]:
    """The groups of a run whose rows are at hand: one per source, then one over all if there are several sources.

    Args:
        rows: at least one row of `rows.jsonl`; the run need not be finished.
        about: what `run.json` holds.

    Raises:
        InvalidArgument: rows or run are not what `promptguard bench` writes, or rows of several runs were mixed.
    """
    run, found = parse_about(dict(about), "run"), parse_rows(rows)
    check_rows(run, found, "run")
    overall, *sources = groups(found, run)
    return sources if len(sources) == 1 else [*sources, overall]


def _group(name: str | None, rows: Sequence[Row], about: About, scale: _Scale) -> Group:
    harmful = [row for row in rows if row.label == "harmful"]
    safe = [row for row in rows if row.label == "safe"]
    return Group(
        source=name,
        harmful=len(harmful),
        safe=len(safe),
        refused_harmful=sum(row.refused for row in harmful),
        refused_safe=sum(row.refused for row in safe),
        recall=Rate.of(row.blocked for row in harmful),
        certified=_full(harmful, about),
        over_refusal=Rate.of(row.blocked for row in safe),
        auc=None if about.fast else auc([row.rank for row in harmful], [row.rank for row in safe]),
        operating=tuple(_operating(harmful, safe, percent, at) for percent, at in scale.thresholds.items()),
        curve=_curve(harmful, scale.budgets),
        checks=Spread.of([row.checks for row in rows if not row.refused]),
        ms=Spread.of([row.ms for row in rows if row.ms is not None]),
    )


def _operating(harmful: Sequence[Row], safe: Sequence[Row], percent: int, threshold: float | None) -> Operating:
    if threshold is None:
        return Operating(percent, None, None, None)
    blocked, refused = (Rate.of(row.rank >= threshold for row in rows) for rows in (harmful, safe))
    return Operating(percent, threshold, blocked, refused)


def _full(harmful: Sequence[Row], about: About) -> Rate | None:
    threat = about.threat
    return None if threat is None else Rate.of(_budget(row) >= reach(threat.budget) for row in harmful)


def _budgets(rows: Sequence[Row], about: About) -> list[float]:
    """From 0 to the run's own, or to the largest that is certified if that is more; none if threats differ."""
    harmful = [row for row in rows if row.label == "harmful"]
    found = [row.certificate.threat for row in harmful if row.certificate]
    if about.threat is None and not (found and all(threat.is_like(found[0]) for threat in found)):
        return []
    reached = {0.0, *map(_budget, harmful)} | ({reach(about.threat.budget)} if about.threat else set())
    finite = {int(budget) for budget in reached if 0 <= budget < math.inf}
    every = sorted(finite | set(range(min(max(finite), _EVERY) + 1)))
    return [*every, math.inf] if math.inf in reached else [*every]


def _curve(harmful: Sequence[Row], budgets: Sequence[float]) -> tuple[Step, ...]:
    certified = [_budget(row) for row in harmful]
    return tuple(Step(b, Rate(sum(c >= b for c in certified), len(certified))) for b in budgets if certified)


def _budget(row: Row) -> float:
    """What a row is certified for; below 0 if not even the text itself is."""
    return -1.0 if row.certified is None else row.certified
