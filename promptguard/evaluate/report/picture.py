"""A drawn figure: its files and its words."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "figures"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure for light and dark.

    Attributes:
        name: of the files.
        title: for people.
        alt: what a reader who does not see it needs to know.
        light: PNG.
        dark: PNG.
        svg: follows the reader's colour scheme.
    """

    name: str
    title: str
    alt: str
    light: bytes
    dark: bytes
    svg: str

    @property
    def files(self) -> dict[str, str]:
        """Paths in the folder of the report, by role."""
        ends = {"light": "-light.png", "dark": "-dark.png", "svg": ".svg"}
        return {role: f"{FOLDER}/{self.name}{end}" for role, end in ends.items()}

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")

    def write(self, folder: Path) -> None:
        """Write the files below the folder of a report."""
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        contents = {"light": self.light, "dark": self.dark, "svg": self.svg.encode("utf-8")}
        for role, path in self.files.items():
            (folder / path).write_bytes(contents[role])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "title": self.title, "alt": self.alt, "files": self.files}
