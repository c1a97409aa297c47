"""A table of a benchmark, as its rows give it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a task.

    Attributes:
        title: what it shows.
        columns: heads; the first names the row.
        rows: cells; published rows say so in their name.
        note: what a reader must know, below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        return "\n\n".join(part for part in (f"**{self.title}**", body, self.note) if part)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
