"""Figures as PNG and SVG, legible in light and dark. Needs matplotlib (the extra `plots`).

A drawing is a function of a palette. It is drawn for both palettes as PNG; the SVG is the light one with its colours
turned into CSS variables, so that it follows the reader's colour scheme by itself.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from promptguard.evaluate.report.picture import Picture

WIDTH = 5.2  # inches: text of 10 points stays readable when a phone shrinks the figure
LEFT_EDGE = 1e-3
_DPI = 160
_TICKS = 8  # labels that fit on an axis


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by role; no two of a palette are alike, since the SVG names them."""

    paper: str
    ink: str
    soft: str
    blue: str
    rust: str
    green: str
    purple: str
    ochre: str
    rose: str
    teal: str

    @property
    def series(self) -> tuple[str, ...]:
        """Colours for curves, in order."""
        return (self.blue, self.rust, self.green, self.purple, self.ochre, self.rose, self.teal)


LIGHT = Palette(
    "#fcfcfd", "#1c2128", "#d3d7de", "#0b5fa5", "#b4430a", "#0f7a5c", "#7a3fb0", "#856800", "#a61b5b", "#00707f"
)
DARK = Palette(
    "#161a20", "#e6e9ee", "#39414d", "#6cb4ff", "#ff9a62", "#4fd0a5", "#c59bff", "#e0c04a", "#ff83b6", "#4fd3e6"
)
Draw = Callable[[Canvas, Palette], None]


def picture(name: str, title: str, alt: str, draw: Draw, height: float = 3.9) -> Picture:
    """Draw for both palettes.

    Args:
        name: of the files.
        title: for people.
        alt: what a reader who does not see it needs to know.
        draw: draws on an empty figure.
        height: in inches.
    """
    light, dark = (_render(draw, palette, height, "png") for palette in (LIGHT, DARK))
    vector = _adaptive(_render(draw, LIGHT, height, "svg").decode("utf-8"))
    return Picture(name, title, alt, light, dark, vector)


def _render(draw: Draw, palette: Palette, height: float, form: str) -> bytes:
    with rc_context(_style(palette)):
        canvas = Canvas(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        # Backends are bound here and not globally: a caller's own figures are left alone.
        FigureCanvasSVG(canvas) if form == "svg" else FigureCanvasAgg(canvas)
        draw(canvas, palette)
        out = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type") if form == "svg" else ("Software",))
        canvas.savefig(out, format=form, dpi=_DPI, metadata=nothing)
    return out.getvalue()


def _style(palette: Palette) -> Any:  # matplotlib types the keys as a list of all their names
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor", "savefig.edgecolor")
    return {
        **dict.fromkeys(ink, palette.ink),
        **dict.fromkeys(paper, palette.paper),
        "font.family": ["DejaVu Sans"],  # it comes with matplotlib, so figures are the same everywhere
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "grid.color": palette.soft,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "text.parse_math": False,  # names of sources are not formulas
        "svg.fonttype": "path",
        "svg.hashsalt": "promptguard",
    }


def _adaptive(svg: str) -> str:
    """The SVG of the light palette with its colours as variables; without the document type, which names a host."""
    body = svg[svg.index("<svg") :]
    for field in fields(Palette):
        body = body.replace(getattr(LIGHT, field.name), f"var(--{field.name})")
    light, dark = (
        ";".join(f"--{field.name}:{getattr(palette, field.name)}" for field in fields(Palette))
        for palette in (LIGHT, DARK)
    )
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    end = body.index(">") + 1
    return body[:end] + style + body[end:]


def percent_axis(axes: Axes) -> None:
    """Shares on the y axis."""
    axes.set_ylim(-0.04, 1.02)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))


def false_positive_axis(axes: Axes) -> None:
    """False positives on a log scale from 0.1 to 100 %; what is below stands at the left edge."""
    axes.set_xscale("log")
    axes.set_xlim(LEFT_EDGE * 0.93, 1.05)
    axes.set_xticks([LEFT_EDGE, 0.01, 0.02, 0.05, 0.1, 1], ["≤ 0.1 %", "1 %", "2 %", "5 %", "10 %", "100 %"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlabel("false positives")


def log_axis(axes: Axes, label: str) -> None:
    """An x axis on a log scale with plain numbers at both ends; to be called when all is drawn."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    grid = [base * 10.0**decade for decade in decades for base in (1, 2, 5)]
    left, right = max(x for x in grid if x <= low), min(x for x in grid if x >= high)
    inside = [x for x in grid if left <= x <= right]
    ticks = inside if len(inside) <= _TICKS else [x for x in inside if x in grid[::3]]
    axes.set_xlim(left, right)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def legend(canvas: Canvas, axes: Axes, columns: int = 2) -> None:
    """Names below the axes, where they hide nothing."""
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def shown(name: str, length: int = 30) -> str:
    """A name as the figure's font can show it, not too long; a leading underscore would hide it."""
    plain = "".join(c if c.isprintable() and ord(c) < 0x530 else "?" for c in name)
    short = plain if len(plain) <= length else plain[: length - 1] + "…"
    return f" {short}" if short.startswith("_") else short
