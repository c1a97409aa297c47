"""What the cards share: rates with exact intervals, tables, sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from promptguard.stats import clopper_pearson

Row = dict[str, Any]


def rate(hits: Sequence[bool]) -> str:
    """A share with its exact 95 % interval."""
    if not hits:
        return "null"
    span = clopper_pearson(sum(hits), len(hits))
    return f"{np.mean(hits):.3f} [{span.low:.3f}, {span.high:.3f}]"


def table(head: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def sources(rows: list[Row], label: str) -> list[str]:
    """Sources with rows of this label."""
    return sorted({row["source"] for row in rows if row["label"] == label})
