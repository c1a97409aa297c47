"""`promptguard bench`: prompts in, rows, a report and a summary table out; `promptguard report`: runs side by side."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
    ScreenOption,
    ThresholdOption,
    UnitOption,
    configuration,
    is_terminal,
    out,
)
from promptguard.cli.subjects import subject
from promptguard.errors import InvalidArgument
from promptguard.evaluate.bench import run
from promptguard.evaluate.processes import processes
from promptguard.evaluate.prompts import Prompt, read_prompts
from promptguard.evaluate.report import Group, Rate, Report, rank, write_report

CertifierOption = Annotated[
    str,
    typer.Option(
        "--certifier",
        help="erase (erase-and-check), smooth (deletion smoothing), votes (majority of truncations), default (the "
        "bundled guard), rand-ec, greedy-ec or grad-ec.",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the certifier, such as rate=0.7 of smooth, tau=3 of votes, ratio=0.3 of rand-ec.",
        metavar="NAME=VALUE",
    ),
]


def bench(
    file: Annotated[
        Path, typer.Argument(help="Prompts: jsonl, csv or text, or a known benchmark's file; harmful if not labelled.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for rows and report; a run found there goes on.")],
    safe: Annotated[Path | None, typer.Option("--safe", help="A second file, of safe prompts.")] = None,
    filter_: FilterOption = "minilm",
    certifier: CertifierOption = "erase",
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
    screen: ScreenOption = None,
    settings: SettingOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of certifiers that draw at random.")] = 0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Stop at the first flagged erasure: scores are then no maxima.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Measure a guard: recall, certified recall and over-refusal, per source, with rows, figures and a report.

    `accelerate launch -m promptguard.cli bench ...` shares the prompts among processes and machines.
    """
    with configuration():
        prompts = _prompts(file, safe)
        workers = processes(device)
        options = Options(
            filter_,
            mode,
            max_erase,
            blocks,
            unit,
            threshold,
            label,
            workers.device(device),
            max_checks,
            anytime,
            max_prompt,
            family,
            screen,
        )
        measured = subject(options, certifier, settings or (), seed=seed, fast=fast)
        files = [file] if safe is None else [file, safe]
        # The device is where a row was computed, not what it says; a rank's own card must not tell runs apart.
        about = measured.about | {"command": _command(files)}
        about["settings"] = about["settings"] | {"device": device}
        with _progress() as progress:
            run(replace(measured, about=about), prompts, folder, files=files, workers=workers, progress=progress)
        if workers.rank:
            return
        report = write_report(folder)
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    out.print(_table(report))
    out.print(f"rows, report.html, report.md and report.json: {folder}", highlight=False, soft_wrap=True)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `promptguard bench`.")],
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Where the comparison of several runs goes."),
    ] = None,
    plain: Annotated[
        Path | None,
        typer.Option("--plain", help="A run with --max-erase 0: certified recall at any false-positive rate needs it."),
    ] = None,
) -> None:
    """Write the report of one run again, or rank several: runs on different prompts are never put in one table."""
    with configuration():
        if len(runs) == 1 and folder is None:
            out.print(_table(write_report(runs[0], plain=plain)))
            return
        if folder is None:
            raise InvalidArgument("--out says where the comparison of several runs goes")
        ranking = rank(runs)
        ranking.write(folder)
    out.print(f"ranking.html, ranking.md and ranking.json: {folder}", highlight=False, soft_wrap=True)


def _prompts(file: Path, safe: Path | None) -> list[Prompt]:
    """The prompts of both files; ids of the second are told apart from the first's."""
    prompts = list(read_prompts(file, unlabelled="harmful"))
    if safe is not None:
        others = list(read_prompts(safe, unlabelled="safe"))
        if harmful := sum(prompt.label != "safe" for prompt in others):
            raise InvalidArgument(f"--safe: {safe.name} holds {harmful} prompts that are labelled harmful")
        taken = {prompt.id for prompt in prompts}
        prompts += [replace(p, id=f"{safe.stem}:{p.id}") if p.id in taken else p for p in others]
    if not prompts:
        raise InvalidArgument(f"{file.name} holds no prompts")
    return prompts


def _command(files: Sequence[Path]) -> str:
    """The command that makes this run, without folders: it goes into the run's record."""
    names = {str(path): path.name for path in files}
    words = [names.get(word, word) for word in sys.argv[1:]]
    if "--out" in words[:-1]:
        at = words.index("--out") + 1
        words[at] = Path(words[at]).name
    return shlex.join(["promptguard", *words])


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar with the time left, where a person watches."""
    if not is_terminal():
        yield None
        return
    with tqdm(unit="prompt", delay=2) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _table(report: Report) -> Table:
    about = report.about
    threat = f" against {about.threat.describe()}" if about.threat else ""
    table = Table(
        title=escape(f"{about.filter_name}, {about.method}{threat}"),
        box=SIMPLE_HEAD,
        caption="percent with 95 % Clopper-Pearson intervals; medians of checks and milliseconds",
    )
    table.add_column("source", overflow="fold")
    for name in ("recall", "certified", "over-refusal", "checks", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in report.sources if len(report.sources) == 1 else (*report.sources, report.overall):
        rates = ["-" if rate is None else str(rate).replace(" ", "\n", 1) for rate in _rates(group)]
        costs = ["-" if spread is None else f"{spread.p50:.4g}" for spread in (group.checks, group.ms)]
        table.add_row(f"{escape(group.title)}\n{group.harmful} harmful\n{group.safe} safe", *rates, *costs)
    return table


def _rates(group: Group) -> tuple[Rate | None, ...]:
    return group.recall, group.certified, group.over_refusal
