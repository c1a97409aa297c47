"""What the commands share: their options, the certifier that the options describe, and one way to fail."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from promptguard.certify.erase_and_check import MAX_CHECKS, EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument, PromptGuardError
from promptguard.score import load_filter
from promptguard.types import Filter
from promptguard.units import load_units

BLOCKED = 1
USAGE = 2

out = Console()
err = Console(stderr=True)

FilterOption = Annotated[
    str,
    typer.Option("--filter", help="Bundled name, model folder, hub id, or keyword:word,word.", metavar="NAME|PATH|ID"),
]
ModeOption = Annotated[str, typer.Option("--mode", help="Attack to undo: suffix, insertion or infusion.")]
MaxEraseOption = Annotated[
    str, typer.Option("--max-erase", help="Units erased at most (in each block), or 'unlimited'.", metavar="N")
]
BlocksOption = Annotated[int, typer.Option("--blocks", help="Blocks erased at most; insertion only.")]
UnitOption = Annotated[str, typer.Option("--unit", help="What is counted: char, word or token.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", help="Scores at or above it are harmful; default: the filter's own.")
]
LabelOption = Annotated[
    str | None, typer.Option("--label", help="The classifier's harmful label, by name or index, if it is not known.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the filter runs: cpu, cuda, ...")]
MaxChecksOption = Annotated[int, typer.Option("--max-checks", help="Checks allowed per text; more are refused.")]
AnytimeOption = Annotated[
    bool, typer.Option("--anytime", help="Over the limit of checks, certify the largest budget that fits.")
]


@dataclass(frozen=True, slots=True)
class Options:
    """What a certifier is made from."""

    filter: str
    mode: str
    max_erase: str
    blocks: int
    unit: str
    threshold: float | None
    label: str | None
    device: str
    max_checks: int = MAX_CHECKS
    anytime: bool = False

    def budget(self) -> float:
        """`--max-erase` as a number.

        Raises:
            InvalidArgument: neither a whole number nor "unlimited".
        """
        if self.max_erase == "unlimited":
            return math.inf
        try:
            return int(self.max_erase)
        except ValueError:
            raise InvalidArgument(
                f"--max-erase must be a whole number or 'unlimited', not {self.max_erase!r}"
            ) from None

    def certifier(self, **settings: Any) -> EraseAndCheck:
        """Build it; everything but the filter is checked before the filter is loaded.

        Raises:
            PromptGuardError: an option means nothing, or the filter cannot be loaded.
        """
        mode = load_mode(self.mode, self.budget(), self.blocks)
        if self.unit != "token":
            load_units(self.unit)
        filter_ = self._filter()
        return EraseAndCheck(
            filter_,
            mode,
            load_units(self.unit, getattr(filter_, "tokenizer", None)),
            max_checks=self.max_checks,
            anytime=self.anytime,
            **settings,
        )

    def _filter(self) -> Filter:
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InvalidArgument("--threshold must be a finite number")
        label = int(self.label) if self.label is not None and self.label.isdecimal() else self.label
        return load_filter(self.filter, threshold=self.threshold, label=label, device=self.device)


def fail(message: str) -> NoReturn:
    """One clear line on stderr, exit code 2."""
    err.print(f"[bold red]error:[/] {message}", highlight=False, markup=True, soft_wrap=True)
    raise typer.Exit(USAGE)


@contextmanager
def configuration() -> Iterator[None]:
    """Turn a typed error into one line and exit code 2."""
    try:
        yield
    except PromptGuardError as error:
        fail(str(error).replace("[", r"\["))


def is_terminal() -> bool:
    """True when a person watches: progress bars are drawn only then."""
    return sys.stderr.isatty()
