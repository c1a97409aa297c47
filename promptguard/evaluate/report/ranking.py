"""Ranking of guards: any number of runs in, one table and one figure per cohort out, as JSON, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptguard.errors import InvalidArgument
from promptguard.evaluate.report import pictures
from promptguard.evaluate.report.cohorts import Cohort, Entry, cohorts
from promptguard.evaluate.report.page import Page, Section, Table, columns, number, text, write_all
from promptguard.evaluate.report.picture import Picture
from promptguard.evaluate.report.rows import read_run
from promptguard.evaluate.report.thresholds import PERCENTS

FORMAT = 1
_INTERVALS = "Percent with 95 % Clopper-Pearson intervals."


@dataclass(frozen=True, slots=True)
class Ranking:
    """Guards in cohorts that share their prompts. It holds no prompt."""

    cohorts: tuple[Cohort, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"format": FORMAT, "cohorts": [cohort.to_dict() for cohort in self.cohorts]}

    def write(self, folder: Path) -> None:
        """Write `ranking.json`, `ranking.md`, `ranking.html` and `figures/`.

        Without matplotlib there are no figures, and the page says what to install.

        Raises:
            InvalidArgument: the folder cannot be written.
        """
        drawn = pictures.of_ranking(self.cohorts)
        content = self.to_dict() | {"figures": [picture.to_dict() for picture in drawn.pictures]}
        write_all(folder, "ranking", _page(self, drawn), content | {"notes": list(drawn.notes)})


def rank(folders: Iterable[Path]) -> Ranking:
    """Compare finished runs; those of different prompts are kept apart (`promptguard.evaluate.report.cohorts`).

    Args:
        folders: of runs; plain ones (`--mode suffix --max-erase 0`) tell the certified recall of others.

    Raises:
        InvalidArgument: none, or one that holds no finished run.
    """
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise InvalidArgument("a ranking needs at least one run")
    return Ranking(cohorts(runs))


def _page(ranking: Ranking, drawn: pictures.Drawn) -> Page:
    count = len(ranking.cohorts)
    rule = "Guards are compared only on the same prompts."
    if count > 1:
        rule += f" These runs are of {count} different sets of prompts, so there are {count} tables."
    by_name = {picture.name: picture for picture in drawn.pictures}
    sections = tuple(
        _section(index, cohort, by_name.get(f"ranking-{index}"))
        for index, cohort in enumerate(ranking.cohorts, start=1)
    )
    places = (
        "Places count among guards against the same threat: by certified recall at 2 % false positives where a plain "
        "run tells it, else by certified recall at the guard's own threshold."
    )
    return Page("Ranking of guards", (rule, places, *drawn.notes), sections)


def _section(index: int, cohort: Cohort, picture: Picture | None) -> Section:
    files = ", ".join(file.name for file in cohort.data.files) or "unnamed"
    lines = [f"{cohort.data.prompts} prompts ({files}), digest {cohort.data.digest}."]
    if not cohort.one_machine:
        lines.append("The runs are of different machines: their times cannot be compared.")
    return Section(f"Prompts {index}", tuple(lines), tuple(_tables(cohort)), (picture,) if picture else ())


def _tables(cohort: Cohort) -> list[Table]:
    own = [
        [
            entry.name,
            str(entry.place),
            f"{entry.about.filter_name} ({entry.about.filter[:8]})",
            entry.about.method,
            entry.threat,
            f"{entry.about.threshold:.4g}",
            text(entry.overall.recall),
            text(entry.overall.certified),
            text(entry.overall.over_refusal),
            entry.overall.refused,
            *(number(spread.p50 if spread else None) for spread in (entry.overall.checks, entry.overall.ms)),
        ]
        for entry in cohort.entries
    ]
    head = ("run", "place", "filter", "method", "threat", "threshold", "recall", "certified recall", "over-refusal")
    caption = f"At each guard's own threshold. {_INTERVALS} Refused: harmful + safe. Checks, ms: medians."
    tables = [columns(*head, "refused", "checks", "ms", rows=own, caption=caption)]
    rates = [f"{kind} at {percent} %" for percent in PERCENTS for kind in ("recall", "certified")]
    chosen = [[entry.name, entry.threat, _area(entry), *_at_rates(entry)] for entry in cohort.entries]
    caption = f"At false-positive rates of each guard's own procedure. {_INTERVALS}"
    return [*tables, columns("run", "threat", "area under ROC", *rates, rows=chosen, caption=caption)]


def _area(entry: Entry) -> str:
    return text(None if entry.overall.auc is None else f"{entry.overall.auc:.4f}")


def _at_rates(entry: Entry) -> list[str]:
    pairs = [(point.recall, entry.certified_at(point.percent)) for point in entry.overall.operating]
    return [text(rate) for pair in pairs for rate in pair]
