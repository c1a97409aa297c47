"""`promptguard calibrate`: safe texts in, a threshold with a promised false-positive rate out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from promptguard.certify.erase_and_check import MAX_CHECKS
from promptguard.cli.options import (
    BlocksOption,
    DeviceOption,
    FamilyOption,
    FilterOption,
    LabelOption,
    MaxChecksOption,
    MaxEraseOption,
    MaxPromptOption,
    ModeOption,
    Options,
    ScreenOption,
    UnitOption,
    configuration,
    is_terminal,
    out,
)
from promptguard.errors import InvalidArgument
from promptguard.evaluate.calibrate import SafeTexts, read_safe_texts
from promptguard.evaluate.calibrate import calibrate as calibrated
from promptguard.evaluate.calibration import Calibration
from promptguard.threat import Threat


def _refuse_to_overwrite(path: Path) -> None:
    """Before the work: a file that is no calibration is not ours to replace.

    Raises:
        InvalidArgument: it is none, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise InvalidArgument(f"--out: there is no folder {path.parent}")
    if path.exists():
        try:
            Calibration.load(path)
        except InvalidArgument:
            raise InvalidArgument(f"--out: {path} exists and is no threshold file; choose another name") from None


def _report(made: Calibration, sample: SafeTexts, threat: Threat, path: Path) -> None:
    left_out = f" ({sample.harmful} labelled harmful were left out)" if sample.harmful else ""
    refused = f", {made.refused} of them because they cannot be checked" if made.refused else ""
    lines = (
        f"threshold {made.threshold!r}, for the largest score over the erasures that undo {threat.describe()}",
        f"With confidence {made.confidence:g}, at most {100 * made.max_fpr:g} % of safe texts like these are blocked.",
        f"Blocked in the sample: {made.exceeding} of {made.texts}{left_out}{refused}; at most {made.allowed} may be.",
        f"file: {path}",
    )
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def calibrate(
    file: Annotated[Path, typer.Argument(help="Safe texts: JSON lines with text, or plain lines in a .txt file.")],
    filter_: FilterOption = "minilm",
    mode: ModeOption = "suffix",
    max_erase: MaxEraseOption = None,
    blocks: BlocksOption = 1,
    unit: UnitOption = "word",
    max_fpr: Annotated[float, typer.Option("--max-fpr", help="False-positive rate to promise.")] = 0.01,
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence of the promise.")] = 0.95,
    path: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("threshold.json"),
    label: LabelOption = None,
    device: DeviceOption = "cpu",
    max_checks: MaxChecksOption = MAX_CHECKS,
    max_prompt: MaxPromptOption = None,
    family: FamilyOption = None,
    screen: ScreenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's content.")] = False,
) -> None:
    """Set a threshold whose false-positive rate under erase-and-check is promised; `--threshold FILE` loads it."""
    options = Options(
        filter_, mode, max_erase, blocks, unit, None, label, device, max_checks, False, max_prompt, family, screen
    )
    with configuration():
        sample = read_safe_texts(file)
        _refuse_to_overwrite(path)
        made_of = options.certifier()
        bar = tqdm(total=len(sample.texts), unit="text", leave=False, delay=2, disable=not is_terminal())

        def show(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        with bar:
            made = calibrated(
                made_of.filter,
                made_of.mode,
                made_of.units,
                sample.texts,
                max_fpr=max_fpr,
                confidence=confidence,
                data=sample.digest,
                max_checks=max_checks,
                progress=show,
            )
        made.save(path)
    if as_json:
        typer.echo(json.dumps(made.model_dump()))
    else:
        _report(made, sample, made_of.threat(), path)
