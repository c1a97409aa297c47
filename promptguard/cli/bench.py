"""`promptguard bench`: a file of labelled prompts in, rows and a summary table out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from promptguard.certify.erase_and_check import MAX_CHECKS
from promptguard.cli.options import (
    AnytimeOption,
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
    ThresholdOption,
    UnitOption,
    configuration,
    is_terminal,
    out,
)
from promptguard.errors import InvalidArgument
from promptguard.evaluate.bench import manifest, run
from promptguard.evaluate.prompts import read_prompts
from promptguard.evaluate.summary import Summary, summarise
from promptguard.types import Threat


def _table(summaries: list[Summary], threat: Threat) -> Table:
    table = Table(
        title=f"Erase-and-check against {threat.describe()}",
        box=SIMPLE_HEAD,
        caption="percent with 95 % Clopper-Pearson intervals; medians of checks and milliseconds",
    )
    table.add_column("source", overflow="fold")
    for name in ("recall", "certified", "over-refusal", "checks", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in summaries:
        rates = [
            "-" if rate is None else str(rate).replace(" ", "\n", 1) for rate in (s.recall, s.certified, s.over_refusal)
        ]
        harmful, safe = (rate.n if rate else 0 for rate in (s.recall, s.over_refusal))
        time = "-" if s.milliseconds is None else f"{s.milliseconds:.0f}"
        table.add_row(f"{escape(s.source)}\n{harmful} harmful\n{safe} safe", *rates, f"{s.checks:g}", time)
    return table


def bench(
    file: Annotated[Path, typer.Argument(help="Labelled prompts: JSON lines with text, label, id, source.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for rows.jsonl and run.json; a run found there goes on.")
    ],
    filter_: FilterOption = "minilm",
    mode: ModeOption = "suffix",
    max_erase: MaxEraseOption = None,
    blocks: BlocksOption = 1,
    unit: UnitOption = "word",
    threshold: ThresholdOption = None,
    label: LabelOption = None,
    device: DeviceOption = "cpu",
    max_checks: MaxChecksOption = MAX_CHECKS,
    anytime: AnytimeOption = False,
    max_prompt: MaxPromptOption = None,
    family: FamilyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Measure a filter under erase-and-check: recall, certified recall and over-refusal, per source."""
    options = Options(
        filter_, mode, max_erase, blocks, unit, threshold, label, device, max_checks, anytime, max_prompt, family
    )
    with configuration():
        prompts = list(read_prompts(file))
        if not prompts:
            raise InvalidArgument(f"{file.name} holds no prompts")
        # The score of a row is the maximum over all erasures, so nothing stops early.
        certifier = options.certifier(early_stop=False)
        settings = dataclasses.asdict(options) | {"threshold": certifier.filter.threshold}
        about = manifest(settings, file, certifier.filter.digest)
        rows = list(
            tqdm(
                run(certifier, prompts, folder, about),
                total=len(prompts),
                unit="prompt",
                delay=2,
                disable=not is_terminal(),
            )
        )
    threat = certifier.threat()
    summaries = summarise(rows, threat.to_dict()["budget"])
    if as_json:
        typer.echo(json.dumps([summary.to_dict() for summary in summaries]))
    else:
        out.print(_table(summaries, threat))
        out.print(f"rows: {folder / 'rows.jsonl'}", highlight=False)
