"""Guards side by side: one entry per run, in cohorts that share their prompts.

Cohort rule: runs whose data digests differ are never put in one table or figure, whatever their files are called.
Inside a cohort the threats differ too, and a certificate is worth what its threat is: entries keep their threat beside
them, and places are counted among entries of one threat only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promptguard.evaluate.report.groups import Group, groups
from promptguard.evaluate.report.plain import CertifiedAt, certified_at, certified_curve, obstacle
from promptguard.evaluate.report.rates import Rate
from promptguard.evaluate.report.rows import About, Data, Run

_RANKED_AT = 2  # % false positives


@dataclass(frozen=True, slots=True)
class Entry:
    """A guard, as one run measured it.

    Attributes:
        name: of the run's folder.
        about: what was measured.
        overall: over all rows.
        certified: certified recall at 1, 2 and 5 % false positives; empty unless a plain run tells.
        curve: (false positives, certified recall) at every threshold; empty unless a plain run tells.
        place: from 1, among the entries of the cohort with the same threat.
    """

    name: str
    about: About
    overall: Group
    certified: tuple[CertifiedAt, ...]
    curve: tuple[tuple[float, float], ...]
    place: int = 0

    @property
    def threat(self) -> str:
        """The threat in words."""
        return self.about.threat.describe() if self.about.threat else "several threats"

    def certified_at(self, percent: int) -> Rate | None:
        """Certified recall at a false-positive rate, if it is known."""
        return next((point.certified for point in self.certified if point.percent == percent), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "place": self.place,
            "filter": self.about.filter,
            "filter_name": self.about.filter_name,
            "certifier": self.about.certifier,
            "method": self.about.method,
            "threat": self.about.threat and self.about.threat.to_dict(),
            "threshold": self.about.threshold,
            "overall": self.overall.to_dict(),
            "certified_at_false_positives": [point.to_dict() for point in self.certified] or None,
            "versions": self.about.versions,
            "machine": self.about.machine,
        }


@dataclass(frozen=True, slots=True)
class Cohort:
    """Entries that were measured on the same prompts.

    Attributes:
        data: these prompts.
        entries: grouped by threat; the best first within one.
    """

    data: Data
    entries: tuple[Entry, ...]

    @property
    def one_machine(self) -> bool:
        """All times are of one kind of machine and can be compared."""
        return all(entry.about.machine == self.entries[0].about.machine for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"data": self.data.model_dump(mode="json"), "entries": [entry.to_dict() for entry in self.entries]}


def cohorts(runs: Sequence[Run]) -> tuple[Cohort, ...]:
    """Group runs by their prompts, in order of appearance, and order each cohort.

    A plain run (`promptguard.evaluate.report.plain`) in the cohort tells the certified recall of the other runs of its
    filter at 1, 2 and 5 % false positives. Among entries of one threat, more of it at 2 % comes first; entries for
    which it is not known follow, by certified recall at their own threshold, then by fewer false positives.
    """
    digests = dict.fromkeys(run.about.data.digest for run in runs)
    return tuple(_cohort([run for run in runs if run.about.data.digest == digest]) for digest in digests)


def _cohort(runs: Sequence[Run]) -> Cohort:
    entries = [_entry(run, runs) for run in runs]
    threats = dict.fromkeys(map(_against, entries))
    ordered = []
    for threat in threats:
        alike = sorted((entry for entry in entries if _against(entry) == threat), key=_merit)
        ordered += [_placed(entry, place) for place, entry in enumerate(alike, start=1)]
    return Cohort(runs[0].about.data, tuple(ordered))


def _entry(run: Run, runs: Sequence[Run]) -> Entry:
    overall = groups(run.rows, run.about)[0]
    plain = next((other for other in runs if obstacle(run.about, other.about) is None), None)
    if plain is None:
        return Entry(run.name, run.about, overall, (), ())
    points = tuple(point for point in certified_at(run, plain) if point.source is None)
    return Entry(run.name, run.about, overall, points, tuple(certified_curve(run, plain)))


def _against(entry: Entry) -> tuple[str, str]:
    """The threat in words and, since tokens of two tokenizers are not the same, its unit."""
    threat = entry.about.threat
    return entry.threat, threat.unit if threat and threat.budget else ""


def _merit(entry: Entry) -> tuple[float, float, float]:
    rates = (entry.certified_at(_RANKED_AT), entry.overall.certified, entry.overall.over_refusal)
    chosen, own, refused = (None if rate is None else rate.share for rate in rates)
    return (
        1.0 if chosen is None else -chosen,
        1.0 if own is None else -own,
        1.0 if refused is None else refused,
    )


def _placed(entry: Entry, place: int) -> Entry:
    return Entry(entry.name, entry.about, entry.overall, entry.certified, entry.curve, place)
