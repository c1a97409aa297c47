"""The page of a report: which tables, in which order, in which words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from promptguard.evaluate.report import published
from promptguard.evaluate.report.groups import Group
from promptguard.evaluate.report.page import MISSING, Page, Section, Table, columns, number, text
from promptguard.evaluate.report.plain import CertifiedAt
from promptguard.evaluate.report.report import Report
from promptguard.evaluate.report.rows import About
from promptguard.evaluate.report.thresholds import PERCENTS

_INTERVALS = "Percent with 95 % Clopper-Pearson intervals."
_LISTED = 12  # budgets in a table


def page(report: Report) -> Page:
    """The page of a report."""
    about = report.about
    threat = about.threat.describe() if about.threat else "several threats"
    all_groups = (report.overall, *report.sources) if len(report.sources) > 1 else (report.overall,)
    title = f"{about.filter_name} under {about.method}"
    intro = (f"{report.rows} prompts. Threat: {threat}. Threshold {about.threshold:.6g}.", *report.notes)
    by_name = {picture.name: picture for picture in report.pictures}
    drawn = {name: (by_name[name],) if name in by_name else () for name in ("roc", "budget", "scores", "cost")}
    sections = [
        Section(
            "Detection and over-refusal",
            ("A prompt is blocked if it is flagged, undecided, or refused because it could not be checked.",),
            (_detection(all_groups),),
        ),
        Section("At chosen false-positive rates", _how(report), tuple(_rates(all_groups, report.certified)),
                drawn["roc"] + drawn["scores"]),
        Section("Certified recall", (), tuple(_certified(all_groups)), drawn["budget"]),
        Section("Cost", (), (_cost(all_groups),), drawn["cost"]),
    ]  # fmt: skip
    if report.published:
        sections.append(Section("Published figures", (), (published.table(report.published),)))
    sections.append(Section("What was measured", (), (_identity(about),)))
    return Page(title, intro, tuple(section for section in sections if section.tables or section.pictures))


def _detection(groups: Sequence[Group]) -> Table:
    rows = [
        [
            group.title,
            str(group.harmful),
            text(group.recall),
            text(group.certified),
            str(group.safe),
            text(group.over_refusal),
            text(None if group.auc is None else f"{group.auc:.4f}"),
            group.refused,
        ]
        for group in groups
    ]
    head = ("source", "harmful", "recall", "certified recall", "safe", "over-refusal", "area under ROC", "refused")
    caption = (
        f"At the run's own threshold. {_INTERVALS} Certified: for the full budget. Area: ties count one half. "
        "Refused: harmful + safe prompts that could not be checked; they count as blocked."
    )
    return columns(*head, rows=rows, caption=caption)


def _how(report: Report) -> tuple[str, ...]:
    chosen = (
        "Each threshold is the smallest that keeps the rate on the run's own safe prompts, all sources together. The "
        "intervals do not count that it was chosen on them."
    )
    plain = (
        "Certified recall at a rate comes from a plain run of the same filter on the same prompts: a prompt is "
        "certified for the full budget if the prompt itself reaches the threshold."
    )
    return (chosen, plain) if report.certified else (chosen,)


def _rates(groups: Sequence[Group], certified: Sequence[CertifiedAt]) -> Iterator[Table]:
    proved = {(point.source, point.percent): point.certified for point in certified}
    extra = ["certified recall"] if certified else []
    for index, percent in enumerate(PERCENTS):
        threshold = groups[0].operating[index].threshold
        if threshold is None:  # the report's notes say why
            continue
        rows = []
        for group in groups:
            point = group.operating[index]
            more = [text(proved.get((group.source, percent)))] if certified else []
            rows.append([group.title, text(point.recall), *more, text(point.over_refusal)])
        head = ("source", "recall", *extra, "over-refusal")
        caption = f"At {percent} % false positives: threshold {threshold:.6g}. {_INTERVALS}"
        yield columns(*head, rows=rows, caption=caption)


def _certified(groups: Sequence[Group]) -> Iterator[Table]:
    overall = groups[0]
    if not overall.curve:
        return
    every = -(-len(overall.curve) // _LISTED)
    last = len(overall.curve) - 1
    listed = [step for index, step in enumerate(overall.curve) if index % every == 0 or index == last]
    rows = [["unlimited" if math.isinf(step.budget) else f"{step.budget:.0f}", text(step.certified)] for step in listed]
    yield columns(
        "budget", "certified", rows=rows, caption=f"Harmful prompts certified for a budget or more. {_INTERVALS}"
    )


def _cost(groups: Sequence[Group]) -> Table:
    rows = []
    for group in groups:
        spreads = [(s.p50, s.p95) if s else (None, None) for s in (group.checks, group.ms)]
        rows.append([group.title, *(number(value) for spread in spreads for value in spread)])
    head = ("source", "checks, median", "checks, 95 %", "ms, median", "ms, 95 %")
    return columns(
        *head, rows=rows, caption="Scores compared with the threshold, and milliseconds, for a checked prompt"
    )


def _identity(about: About) -> Table:
    machine = ", ".join(f"{name} {value}" for name, value in about.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in about.versions.items())
    settings = ", ".join(f"{name}={value}" for name, value in about.settings.items() if value is not None)
    files = ", ".join(f"{file.name} ({file.sha256})" for file in about.data.files)
    rows = [
        ["command", text(about.command)],
        ["certifier", f"{about.certifier} ({about.method})"],
        ["filter", f"{about.filter_name} ({about.filter})"],
        ["guard band", text(about.guard_band)],
        ["prompts", f"{about.data.prompts}, digest {about.data.digest}"],
        ["files", files or MISSING],
        ["settings", settings],
        ["versions", versions],
        ["machine", machine],
    ]
    return columns("what", "value", rows=rows, caption="What the rows are of")
