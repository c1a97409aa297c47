"""The figure of a ranking: certified recall against false positives, and against cost. Needs matplotlib (`plots`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from promptguard.evaluate.report.cohorts import Cohort, Entry
from promptguard.evaluate.report.figure import (
    LEFT_EDGE,
    Palette,
    false_positive_axis,
    legend,
    log_axis,
    percent_axis,
    picture,
    shown,
)
from promptguard.evaluate.report.picture import Picture

_MARKERS = "osD^vPX*"


def drawings(cohorts: Sequence[Cohort]) -> Iterator[Picture]:
    """One figure for each cohort with a certified recall: colours are filters, markers are threats."""
    for number, cohort in enumerate(cohorts, start=1):
        if any(entry.overall.certified for entry in cohort.entries):
            yield _compared(number, cohort)


def _compared(number: int, cohort: Cohort) -> Picture:
    entries = [entry for entry in cohort.entries if entry.overall.certified]
    filters = list(dict.fromkeys(entry.about.filter for entry in entries))
    threats = list(dict.fromkeys(entry.threat for entry in entries))

    def draw(canvas: Canvas, colours: Palette) -> None:
        against_errors, against_cost = canvas.subplots(2, 1)
        for entry in entries:
            colour = colours.series[filters.index(entry.about.filter) % len(colours.series)]
            marker = _MARKERS[threats.index(entry.threat) % len(_MARKERS)]
            _draw_entry(against_errors, against_cost, entry, colour, marker)
        for axes in (against_errors, against_cost):
            percent_axis(axes)
            axes.set_ylabel("certified recall")
        false_positive_axis(against_errors)
        log_axis(against_cost, "milliseconds, median")
        legend(canvas, against_errors, 1)

    words = "; ".join(f"{e.name}: certified {e.overall.certified} %, over-refusal {_words(e)}" for e in entries)
    title = "Certified recall against false positives and cost; lines are other thresholds of the same guard"
    return picture(f"ranking-{number}", title, f"{words}.", draw, 5.6 + 0.2 * len(entries))


def _draw_entry(against_errors: Axes, against_cost: Axes, entry: Entry, colour: str, marker: str) -> None:
    refused, times = entry.overall.over_refusal, entry.overall.ms
    if entry.curve:
        left = [max(fpr, LEFT_EDGE) for fpr, _ in entry.curve]
        against_errors.step(left, [share for _, share in entry.curve], where="post", color=colour, lw=1)
    if refused:
        _point(against_errors, max(refused.share, LEFT_EDGE), entry, colour, marker)
    if times and times.p50 > 0:
        _point(against_cost, times.p50, entry, colour, marker)


def _point(axes: Axes, x: float, entry: Entry, colour: str, marker: str) -> None:
    if (rate := entry.overall.certified) is None:
        return
    error = [[rate.share - rate.interval.low], [rate.interval.high - rate.share]]
    threat = entry.about.threat.short() if entry.about.threat else "several threats"
    name = f"{shown(entry.name)}: {shown(entry.about.filter_name, 20)}, {shown(threat)}"
    axes.errorbar(x, rate.share, error, fmt=marker, color=colour, mfc="none", mew=1.6, ms=8, elinewidth=0.8, label=name)


def _words(entry: Entry) -> str:
    return "unknown" if entry.overall.over_refusal is None else f"{entry.overall.over_refusal} %"
