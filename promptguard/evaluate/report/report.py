"""What a report says of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptguard.evaluate.report.groups import Group
from promptguard.evaluate.report.picture import Picture
from promptguard.evaluate.report.plain import CertifiedAt
from promptguard.evaluate.report.published import Compared
from promptguard.evaluate.report.rows import About

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a run shows. It holds no prompt.

    Attributes:
        about: what was measured.
        rows: how many.
        overall: over all rows.
        sources: each source, in order of appearance.
        certified: certified recall at 1, 2 and 5 % false positives; empty without a plain run.
        published: figures of others beside measured ones.
        pictures: the figures.
        notes: what is missing, and why.
    """

    about: About
    rows: int
    overall: Group
    sources: tuple[Group, ...]
    certified: tuple[CertifiedAt, ...] = ()
    published: tuple[Compared, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is missing is null."""
        return {
            "format": FORMAT,
            "run": self.about.to_dict(),
            "rows": self.rows,
            "overall": self.overall.to_dict(),
            "sources": [group.to_dict() for group in self.sources],
            "certified_at_false_positives": [point.to_dict() for point in self.certified] or None,
            "published": [row.to_dict() for row in self.published],
            "figures": [picture.to_dict() for picture in self.pictures],
            "notes": list(self.notes),
        }
