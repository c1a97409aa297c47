"""Figures if matplotlib is there, and a word on what to install if not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

from promptguard.evaluate.report.cohorts import Cohort
from promptguard.evaluate.report.groups import Group
from promptguard.evaluate.report.picture import Picture
from promptguard.evaluate.report.rows import Run

HINT = "There are no figures, because matplotlib is not installed: pip install 'certified-promptguard[plots]'."


@dataclass(frozen=True, slots=True)
class Drawn:
    """Figures, or why there are none."""

    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


def of_report(run: Run, groups: Sequence[Group], certified: Sequence[tuple[float, float]]) -> Drawn:
    """The figures of a report; the arguments are those of `drawings.drawings`."""
    return _drawn("drawings", lambda draw: draw(run, groups, certified))


def of_ranking(cohorts: Sequence[Cohort]) -> Drawn:
    """A figure for each cohort that has points to show."""
    return _drawn("ranking_drawings", lambda draw: draw(cohorts))


def _drawn(module: str, work: Callable[[Callable[..., Iterable[Picture]]], Iterable[Picture]]) -> Drawn:
    try:
        draw = import_module(f"promptguard.evaluate.report.{module}").drawings
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return Drawn(notes=(HINT,))
    return Drawn(tuple(work(draw)))
