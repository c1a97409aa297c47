"""Reports of garak (Derczynski et al. 2024): its prompts to score again, and its results beside ours.

A garak run leaves `<prefix>.report.jsonl`, with every prompt that was sent and, for each probe and detector, how many
outputs passed. `read_report` takes both; benchmark the prompts and `compare` the rows with what garak counted:

    report = read_report(Path("run.report.jsonl"))
    rows = run(subject, report.prompts.prompts, folder)
    for line in compare(report, rows):
        ...

The two sides count different things. garak judges outputs, several for a prompt if its run asked for several
generations, by what a detector finds in their text. Ours counts prompts that the guard blocks. Against the guard as the
target, with one generation and the detector `shields.Up`, they are equal.

Source: `garak/evaluators/base.py` and `garak/attempt.py`, version 0.17.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptguard.errors import InvalidArgument
from promptguard.evaluate.prompts import PromptSet, load_prompts
from promptguard.evaluate.prompts.containers import rows_of
from promptguard.stats import Interval, clopper_pearson
from promptguard.types import Label

SOURCE = "garak/"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What garak counted for a probe with a detector.

    Attributes:
        probe: for instance "suffix.GCGCached".
        detector: for instance "shields.Up".
        passed: outputs in which the detector found no hit: the attack failed.
        fails: outputs with a hit.
        nones: outputs that were not judged, for instance because the target answered with an error. They are missing
            from garak's own rate.
    """

    probe: str
    detector: str
    passed: int
    fails: int
    nones: int


@dataclass(frozen=True, slots=True)
class Report:
    """A garak report.

    Attributes:
        prompts: each attempt's last user turn, labelled harmful; the source is "garak/" and the probe.
        evaluations: in the order of the report; empty if the run did not get there.
    """

    prompts: PromptSet
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One probe: garak's counts beside the guard's.

    Attributes:
        evaluation: garak's.
        blocked: prompts of the probe that the guard does not let through: flagged, or not checkable.
        prompts: prompts of the probe in the rows; 0 if there are none.
    """

    evaluation: Evaluation
    blocked: int
    prompts: int

    @property
    def success(self) -> float | None:
        """Garak's attack success rate: fails among the judged outputs; None if none was judged."""
        judged = self.evaluation.passed + self.evaluation.fails
        return self.evaluation.fails / judged if judged else None

    @property
    def through(self) -> float | None:
        """The share of prompts that the guard lets through; None without prompts."""
        return 1 - self.blocked / self.prompts if self.prompts else None

    @property
    def interval(self) -> Interval | None:
        """95 % Clopper-Pearson interval of `through`; None without prompts."""
        return clopper_pearson(self.prompts - self.blocked, self.prompts) if self.prompts else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; a missing rate is null."""
        evaluation, interval = self.evaluation, self.interval
        return {
            "probe": evaluation.probe,
            "garak": {
                "detector": evaluation.detector,
                "passed": evaluation.passed,
                "fails": evaluation.fails,
                "nones": evaluation.nones,
                "attack_success": self.success,
            },
            "promptguard": {
                "prompts": self.prompts,
                "blocked": self.blocked,
                "through": self.through,
                "interval": interval and [interval.low, interval.high],
            },
        }


def read_report(path: Path) -> Report:
    """Read a `*.report.jsonl`.

    Raises:
        InvalidArgument: it cannot be read, or is no garak report with prompts; the message names the line.
    """
    prompts = load_prompts(path)
    if prompts.format != "garak report":
        raise InvalidArgument(f"{path.name} is no garak report: its format is {prompts.format}")
    return Report(
        prompts,
        tuple(
            Evaluation(
                row.text("probe"),
                row.text("detector"),
                *(row.number_in(column) for column in ("passed", "fails", "nones")),
            )
            for row in rows_of(path)
            if row.values.get("entry_type") == "eval"
        ),
    )


def compare(report: Report, rows: Iterable[Mapping[str, Any]]) -> tuple[Comparison, ...]:
    """Garak's evaluations, each beside what the guard did with the same probe's prompts.

    Args:
        report: the report.
        rows: of a benchmark run on its prompts; `source` and `verdict` are read.
    """
    verdicts = defaultdict(list)
    for row in rows:
        verdicts[row["source"]].append(row["verdict"])
    return tuple(
        Comparison(evaluation, sum(verdict != Label.SAFE for verdict in found), len(found))
        for evaluation in report.evaluations
        for found in [verdicts[SOURCE + evaluation.probe]]
    )
