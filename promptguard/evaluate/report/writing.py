"""Writing the report of a run: read, count, draw, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from promptguard.evaluate.report import pictures
from promptguard.evaluate.report.groups import Group, groups
from promptguard.evaluate.report.page import write_all
from promptguard.evaluate.report.plain import certified_at, certified_curve
from promptguard.evaluate.report.published import Published, compare
from promptguard.evaluate.report.report import Report
from promptguard.evaluate.report.report_page import page
from promptguard.evaluate.report.rows import About, read_run


def write_report(folder: Path, *, published: Sequence[Published] = (), plain: Path | None = None) -> Report:
    """Report a finished run: `report.json`, `report.md`, `report.html` and `figures/` in its folder.

    Without matplotlib there are no figures, and the report says what to install.

    Args:
        folder: of the run.
        published: figures of others, to stand beside measured ones.
        plain: folder of a run of the same filter on the same prompts with `--mode suffix --max-erase 0`; it tells
            certified recall at other thresholds than the run's own (`promptguard.evaluate.report.plain`).

    Raises:
        InvalidArgument: no finished run, a plain run that does not fit, a published figure about an unknown source, or
            a folder that cannot be written.
    """
    run = read_run(folder)
    other = None if plain is None else read_run(plain)
    found = groups(run.rows, run.about)
    compared = compare(published, found)
    curve = certified_curve(run, other) if other else []
    drawn = pictures.of_report(run, found, curve)
    report = Report(
        about=run.about,
        rows=len(run.rows),
        overall=found[0],
        sources=found[1:],
        certified=certified_at(run, other) if other else (),
        published=compared,
        pictures=drawn.pictures,
        notes=(*_notes(run.about, found[0]), *drawn.notes),
    )
    write_all(folder, "report", page(report), report.to_dict())
    return report


def _notes(about: About, overall: Group) -> list[str]:
    notes = []
    if about.fast:
        notes.append(
            "The run was fast: it stopped at the first flagged erasure, so scores are not maxima. There is no ROC "
            "curve, no area under it and no recall at a false-positive rate."
        )
    elif overall.safe and (missed := [str(p.percent) for p in overall.operating if p.threshold is None]):
        notes.append(f"More safe prompts were refused than {', '.join(missed)} %: no threshold keeps that rate.")
    if about.threat is None:
        notes.append("The run states no single threat with a full budget, so there is no certified recall for it.")
    if not overall.safe:
        notes.append("There are no safe prompts: nothing is known of over-refusal, and recall alone proves little.")
    if not overall.harmful:
        notes.append("There are no harmful prompts: nothing is known of recall.")
    return notes
