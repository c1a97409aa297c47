"""A page of sections, tables and figures, written as Markdown and as one self-contained HTML file.

The HTML needs no script and fetches nothing; every name from outside is escaped in both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from promptguard.errors import InvalidArgument
from promptguard.evaluate.report.picture import Picture

MISSING = "–"
# Whatever starts a construct of Markdown or HTML inside a line or a cell.
_FIGURES = re.compile(r"[\d.,:%+\[\] –-]+")
_MARKDOWN = re.compile(r"([\\`*_\[\]|<>~$&]|:(?=//))")


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        caption: what it shows.
        head: names of the columns.
        rows: as many cells each.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with text, tables and figures below it."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A title, words below it, and sections."""

    title: str
    text: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> list[Picture]:
        """All figures."""
        return [picture for section in self.sections for picture in section.pictures]

    def html(self) -> str:
        """One self-contained file."""
        return _environment(autoescape=True).get_template("page.html.j2").render(page=self) + "\n"

    def markdown(self) -> str:
        """Markdown with tables; figures are files beside it."""
        text = _environment(autoescape=False).get_template("page.md.j2").render(page=self)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_all(folder: Path, name: str, page: Page, content: dict[str, Any]) -> None:
    """Write NAME.json, NAME.md, NAME.html and the figures.

    Raises:
        InvalidArgument: the folder cannot be written.
    """
    files = {
        f"{name}.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        f"{name}.md": page.markdown(),
        f"{name}.html": page.html(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in page.pictures:
            picture.write(folder)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        kind = type(error).__name__
    else:
        return
    raise InvalidArgument(f"cannot write to {folder.name}: {kind}")


def number(value: float | None) -> str:
    """A number for a table, of about three digits; a dash for None."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text(value: object) -> str:
    """Anything for a table; a dash for None."""
    return MISSING if value is None else str(value)


def columns(*names: str, rows: Sequence[Sequence[str]], caption: str) -> Table:
    """A table from its columns' names and its rows."""
    return Table(caption, names, tuple(tuple(row) for row in rows))


def _escape(value: str) -> str:
    """A text that Markdown shows as it is, in a cell or a line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(value.split()))


def _whole(value: str) -> str:
    """A cell of figures whose interval is not broken into lines."""
    return re.sub(r"(?<=[,+]) | (?=\+)", "\N{NO-BREAK SPACE}", value)


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("promptguard.evaluate.report"),
        autoescape=autoescape,  # noqa: S701 - the Markdown template escapes by its own filter
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = _escape
    environment.tests["figures"] = _FIGURES.fullmatch
    environment.filters["whole"] = _whole
    return environment
