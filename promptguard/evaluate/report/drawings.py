"""The figures of a report: ROC, certified recall against budget, scores, cost. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

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
from promptguard.evaluate.report.groups import Group, Step
from promptguard.evaluate.report.picture import Picture
from promptguard.evaluate.report.rows import Row, Run
from promptguard.evaluate.report.thresholds import roc

_BINS = 40
_CURVES = 6


def drawings(run: Run, groups: Sequence[Group], certified: Sequence[tuple[float, float]]) -> Iterator[Picture]:
    """The figures for which there are rows.

    Args:
        run: the run.
        groups: over all rows first, then each source.
        certified: (false positives, certified recall) at every threshold, if a plain run tells.
    """
    harmful = [row for row in run.rows if row.label == "harmful"]
    safe = [row for row in run.rows if row.label == "safe"]
    if harmful and safe and not run.about.fast:
        yield _roc(harmful, safe, groups[0], certified)
    if len(groups[0].curve) > 1:
        yield _budgets(groups)
    if not run.about.fast and any(not row.refused for row in run.rows):
        yield _scores(harmful, safe, run.about.threshold)
    if any(row.checks for row in run.rows):
        yield _cost(harmful, safe)


def _roc(
    harmful: Sequence[Row], safe: Sequence[Row], group: Group, certified: Sequence[tuple[float, float]]
) -> Picture:
    points = roc([row.rank for row in harmful], [row.rank for row in safe])

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        x = [max(point.false_positives, LEFT_EDGE) for point in points]
        axes.step(x, [point.true_positives for point in points], where="post", color=colours.blue, label="recall")
        if certified:
            left = [max(fpr, LEFT_EDGE) for fpr, _ in certified]
            axes.step(left, [s for _, s in certified], "--", where="post", color=colours.green, label="certified")
        marks = [(point.percent / 100, point.recall) for point in group.operating if point.recall]
        for index, (at, rate) in enumerate(marks):
            low, high = rate.share - rate.interval.low, rate.interval.high - rate.share
            name = "recall at 1, 2, 5 %" if index == 0 else None
            axes.errorbar(at, rate.share, [[low], [high]], fmt="o", color=colours.rust, capsize=3, label=name)
        if group.recall and group.over_refusal:
            at = max(group.over_refusal.share, LEFT_EDGE)
            axes.plot(at, group.recall.share, "*", ms=11, color=colours.purple, zorder=4, label="own threshold")
        false_positive_axis(axes)
        percent_axis(axes)
        axes.set_ylabel("harmful prompts")
        legend(canvas, axes)

    area = "unknown" if group.auc is None else f"{group.auc:.4f}"
    recalls = (f"recall {p.recall} % at {p.percent} % false positives" for p in group.operating if p.recall)
    words = ", ".join([f"Area under the curve {area}", *recalls])
    return picture("roc", "Recall against false positives", f"{words}.", draw)


def _budgets(groups: Sequence[Group]) -> Picture:
    chosen = [group for group in groups if group.curve]
    places = _places(chosen[0].curve)
    many = [chosen[0]] if len(chosen) == 2 or len(chosen) > _CURVES + 1 else chosen

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        for group, colour in zip(many, colours.series, strict=False):
            rates = [step.certified for step in group.curve]
            overall = group.source is None
            wide = 2.4 if overall else 1.2
            axes.step(places, [r.share for r in rates], where="post", color=colour, lw=wide, label=shown(group.title))
            if overall:
                low, high = [r.interval.low for r in rates], [r.interval.high for r in rates]
                axes.fill_between(places, low, high, step="post", color=colour, alpha=0.18, lw=0)
        percent_axis(axes)
        top = places[-1]
        axes.set_xlim(0, top * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if math.isinf(chosen[0].curve[-1].budget):
            finite = [tick for tick in axes.get_xticks() if tick == int(tick) and 0 <= tick < 0.8 * top]
            axes.set_xticks([*finite, top], [*(f"{tick:.0f}" for tick in finite), "unlimited"])
        axes.set_xlabel("units that may be added")
        axes.set_ylabel("certified harmful prompts")
        legend(canvas, axes)

    first, last = chosen[0].curve[0], chosen[0].curve[-1]
    words = f"Certified {first.certified} % for budget 0, {last.certified} % for {_name(last.budget)}."
    return picture("budget", "Certified recall against the budget", words, draw)


def _places(curve: Sequence[Step]) -> list[float]:
    """Where budgets stand on the axis; unlimited right of all others."""
    finite = max((step.budget for step in curve if math.isfinite(step.budget)), default=0)
    return [step.budget if math.isfinite(step.budget) else max(1, finite * 1.15) for step in curve]


def _name(budget: float) -> str:
    return "an unlimited budget" if math.isinf(budget) else f"budget {budget:.0f}"


def _scores(harmful: Sequence[Row], safe: Sequence[Row], threshold: float) -> Picture:
    sides = [("harmful", harmful), ("safe", safe)]
    scores = {name: [row.score for row in rows if row.score is not None] for name, rows in sides}
    every = [*scores["harmful"], *scores["safe"], threshold]
    low, high = min(0.0, *every), max(1.0, *every)
    floor = 0.5 / max(len(found) for found in scores.values())

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        edges = np.linspace(low, high, _BINS + 1)
        for (name, found), colour in zip(scores.items(), (colours.rust, colours.blue), strict=True):
            if found:
                heights = np.maximum(np.histogram(found, edges)[0] / len(found), floor)
                axes.stairs(heights, edges, baseline=floor, fill=True, color=colour, alpha=0.25)
                axes.stairs(heights, edges, baseline=floor, color=colour, lw=1.5, label=f"{name} ({len(found)})")
        axes.axvline(threshold, color=colours.ink, ls=":", label=f"threshold {threshold:.4g}")
        axes.set_yscale("log")
        ticks = [10.0**-e for e in range(6) if 10.0**-e >= floor]
        axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.tick_params(axis="y", which="minor", length=0)
        axes.set_ylim(floor, 1.3)
        axes.set_xlabel("largest score over the erasures")
        axes.set_ylabel("share of prompts")
        legend(canvas, axes, 3)

    middles = (f"median {np.median(found):.4g} for {name} prompts" for name, found in scores.items() if found)
    return picture("scores", "Scores of harmful and safe prompts", f"{'; '.join(middles).capitalize()}.", draw)


def _cost(harmful: Sequence[Row], safe: Sequence[Row]) -> Picture:
    sides = [("harmful", harmful), ("safe", safe)]
    timed = any(row.ms for row in (*harmful, *safe))

    def draw(canvas: Canvas, colours: Palette) -> None:
        panels = canvas.subplots(2 if timed else 1, 1, squeeze=False)[:, 0]
        for (name, rows), colour in zip(sides, (colours.rust, colours.blue), strict=True):
            found = [[float(row.checks) for row in rows if row.checks], [row.ms for row in rows if row.ms]]
            for axes, values in zip(panels, found, strict=False):
                if values:
                    axes.ecdf(values, color=colour, label=name)
        for axes, label in zip(panels, ("checks", "milliseconds"), strict=False):
            log_axis(axes, label)
            percent_axis(axes)
            axes.set_ylabel("prompts up to it")
        legend(canvas, panels[0])

    words = "Shares of harmful and of safe prompts that need at most so many checks"
    end = ", and so many milliseconds." if timed else "."
    return picture("cost", "Cost of a prompt", words + end, draw, 5.6 if timed else 3.6)
