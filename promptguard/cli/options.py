"""What the commands share: their options, the certifier that the options describe, and one way to fail."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from promptguard.certify.erase_and_check import MAX_CHECKS, MAX_WORK, EraseAndCheck
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument, PromptGuardError
from promptguard.evaluate.calibration import Calibration
from promptguard.score import load_filter
from promptguard.types import Filter
from promptguard.units import load_units

BLOCKED = 1
USAGE = 2
DEFAULT_MAX_ERASE = 20

out = Console()
err = Console(stderr=True)

FILTER = typer.Option(
    "--filter",
    help="Bundled name, model folder, hub id, keyword:a,b, causal:PATH, judge:PATH or remote:URL#MODEL. Default: "
    "minilm; for check and certify without any of these options, any of the bundled filters.",
    metavar="NAME|PATH|ID",
)
FilterOption = Annotated[str, FILTER]
MODE = typer.Option("--mode", help="Attack to undo: suffix, insertion, infusion, wrap or wrap-boundary.")
ModeOption = Annotated[str, MODE]
MaxEraseOption = Annotated[
    str | None,
    typer.Option(
        "--max-erase",
        help="Units erased at most (in each block), or 'unlimited'. Default: unlimited where the filter needs one pass "
        "for it, else 20.",
        metavar="N",
    ),
]
MaxPromptOption = Annotated[
    int | None, typer.Option("--max-prompt", help="Units of the longest prompt protected; wrap modes only; default 40.")
]
FamilyOption = Annotated[
    str | None, typer.Option("--family", help="Family of a classifier or judge whose labels or name do not say it.")
]
ScreenOption = Annotated[
    str | None,
    typer.Option(
        "--screen",
        help="bfloat16: bound scores in that precision first and compute only those that matter; another filter, with "
        "a digest of its own. For BERT, DistilBERT and RoBERTa classifiers on the CPU.",
        metavar="DTYPE",
    ),
]
BlocksOption = Annotated[int, typer.Option("--blocks", help="Blocks erased at most; insertion only.")]
UNIT = typer.Option("--unit", help="What is counted: char, word or token.")
UnitOption = Annotated[str, UNIT]
ThresholdOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        help="Scores at or above it are harmful: a number, or a file of `calibrate`. Default: the filter's own.",
        metavar="NUMBER|FILE",
    ),
]
LabelOption = Annotated[
    str | None, typer.Option("--label", help="The classifier's harmful label, by name or index, if it is not known.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the filter runs: cpu, cuda, ...")]
MaxChecksOption = Annotated[int, typer.Option("--max-checks", help="Checks allowed per text; more are refused.")]
AnytimeOption = Annotated[
    bool,
    typer.Option(
        "--anytime",
        help="Over the limit of checks, certify the largest budget that fits; out of time, let pass what was not "
        "flagged so far.",
    ),
]
MaxSecondsOption = Annotated[
    float | None,
    typer.Option(
        "--max-seconds",
        help="Time for the text: what is neither flagged nor wholly checked by then is blocked, unless --anytime. "
        "--max-checks stays beside it.",
    ),
]


@dataclass(frozen=True, slots=True)
class Options:
    """What a certifier is made from."""

    filter: str
    mode: str
    max_erase: str | None
    blocks: int
    unit: str
    threshold: str | None
    label: str | None
    device: str
    max_checks: int = MAX_CHECKS
    anytime: bool = False
    max_prompt: int | None = None
    family: str | None = None
    screen: str | None = None
    max_seconds: float | None = None

    def budget(self) -> float:
        """`--max-erase` as a number; unlimited when it was not given.

        Raises:
            InvalidArgument: neither a whole number nor "unlimited".
        """
        if self.max_erase in {None, "unlimited"}:
            return math.inf
        try:
            return int(str(self.max_erase))
        except ValueError:
            raise InvalidArgument(
                f"--max-erase must be a whole number or 'unlimited', not {self.max_erase!r}"
            ) from None

    def certifier(self, **settings: Any) -> EraseAndCheck:
        """Build it; everything but the filter is checked before the filter is loaded.

        Raises:
            PromptGuardError: an option means nothing, or the filter cannot be loaded.
        """
        mode = load_mode(self.mode, self.budget(), self.blocks, self.max_prompt)
        if self.unit != "token":
            load_units(self.unit)
        threshold = self._threshold()
        filter_ = self._filter(threshold.threshold if isinstance(threshold, Calibration) else threshold)
        units = load_units(self.unit, getattr(filter_, "tokenizer", None))
        if self.max_erase is None and not self.mode.startswith("wrap") and cheapest(filter_, mode, units).limited:
            mode = mode.with_budget(DEFAULT_MAX_ERASE)
        certifier = EraseAndCheck(
            filter_,
            mode,
            units,
            max_checks=self.max_checks,
            anytime=self.anytime,
            max_work=MAX_WORK if self.max_seconds is None else None,
            max_seconds=self.max_seconds,
            **settings,
        )
        if isinstance(threshold, Calibration):
            threshold.check(certifier)
        return certifier

    def _threshold(self) -> Calibration | float | None:
        if self.threshold is None:
            return None
        try:
            number = float(self.threshold)
        except ValueError:
            if not Path(self.threshold).exists():
                raise InvalidArgument(f"--threshold: {self.threshold!r} is neither a number nor a file") from None
            return Calibration.load(Path(self.threshold))
        if not math.isfinite(number):
            raise InvalidArgument("--threshold must be a finite number, or a file of promptguard calibrate")
        return number

    def _filter(self, threshold: float | None) -> Filter:
        label = int(self.label) if self.label is not None and self.label.isdecimal() else self.label
        return load_filter(
            self.filter,
            threshold=threshold,
            label=label,
            family=self.family,
            device=self.device,
            screen=self.screen,
        )


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
