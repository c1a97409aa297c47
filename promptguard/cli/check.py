"""`promptguard check` and `promptguard certify`: one text, one decision."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from tqdm import tqdm

from promptguard.certify.erase_and_check import MAX_CHECKS
from promptguard.certify.pace import OutOfTime
from promptguard.cli.options import (
    BLOCKED,
    FILTER,
    MODE,
    UNIT,
    AnytimeOption,
    BlocksOption,
    DeviceOption,
    FamilyOption,
    LabelOption,
    MaxChecksOption,
    MaxEraseOption,
    MaxPromptOption,
    MaxSecondsOption,
    Options,
    ScreenOption,
    ThresholdOption,
    configuration,
    is_terminal,
    out,
)
from promptguard.errors import InvalidArgument
from promptguard.guard import Decision, Guard, Reason
from promptguard.guard.default import default_certifier
from promptguard.types import Label, Verdict

TextArgument = Annotated[str | None, typer.Argument(help="The text; '-' or nothing reads standard input.")]
FileOption = Annotated[Path | None, typer.Option("--file", help="Read the text from a file (UTF-8).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _read(text: str | None, file: Path | None) -> str:
    """The text to check.

    Raises:
        InvalidArgument: two sources, a file that cannot be read, or bytes that are not UTF-8.
    """
    if text is not None and file is not None:
        raise InvalidArgument("give a text or --file, not both")
    if text is not None and text != "-":
        return text
    try:
        data = file.read_bytes() if file else sys.stdin.buffer.read()
    except OSError as error:
        raise InvalidArgument(f"cannot read --file: {type(error).__name__}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument("the text is not UTF-8") from None


def _decide(options: Options | None, text: str | None, file: Path | None) -> Decision:
    """Ask a guard of these options, or the default one."""
    with configuration():
        content = _read(text, file)
        bar = tqdm(total=0, unit="check", leave=False, delay=2, disable=not is_terminal())

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        guard = Guard(options.certifier(progress=show) if options else default_certifier())
    with bar:
        return guard.check(content)


def _verdict(decision: Decision) -> Verdict | None:
    return decision.parts[0].verdict if decision.parts else None


def _table(decision: Decision) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("decision", "[green]allowed[/]" if decision.allowed else "[bold red]blocked[/]")
    table.add_row("reason", str(decision.reason) + (f" ({decision.error})" if decision.error else ""))
    verdict = _verdict(decision)
    if verdict:
        table.add_row("score", f"{verdict.score:.4f} (threshold {verdict.threshold:.4f})")
        table.add_row("checks", f"{verdict.checks} ({verdict.calls} scored)")
        table.add_row("undoes", "; ".join(_threats(verdict)) or "nothing")
        if verdict.witness and verdict.witness.spent:
            table.add_row("erased", f"{verdict.witness.spent} units, at {_spans(verdict)}")
    table.add_row("time", f"{decision.milliseconds:.1f} ms")
    return table


def _threats(verdict: Verdict) -> list[str]:
    """What the procedure behind a verdict undoes, each once."""
    if verdict.parts:
        return list(dict.fromkeys(threat for part in verdict.parts for threat in _threats(part)))
    return [verdict.threat.describe()] if verdict.threat else []


def _spans(verdict: Verdict) -> str:
    chars = verdict.witness.chars if verdict.witness else ()
    return ", ".join(f"{start}-{stop}" for start, stop in chars)


def _meaning(decision: Decision) -> str:
    """A sentence for each certificate, or why there is none."""
    if decision.certificates:
        return " ".join(certificate.sentence() for certificate in decision.certificates)
    verdict = _verdict(decision)
    if verdict is None or verdict.label is Label.ABSTAIN:
        return _unfinished(decision)
    if decision.allowed and (threats := _threats(verdict)):
        return (
            f"No certificate: 'safe' is never certified. No erasure that undoes {' or '.join(threats)} "
            "was flagged by this filter."
        )
    return "No certificate: the text is flagged, but nothing is proved about further changes to it."


def _unfinished(decision: Decision) -> str:
    """Why a text was not checked to the end."""
    if decision.error == OutOfTime.__name__:
        return "No certificate: the time is not enough for the text itself. Raise --max-seconds."
    if decision.reason is Reason.OVER_BUDGET:
        return "No certificate: too many checks are needed. Lower --max-erase, raise --max-checks, or say --anytime."
    if decision.reason is Reason.ABSTAIN:
        return (
            "No certificate: nothing was flagged, but the time was up before every erasure was checked. Raise "
            "--max-seconds, lower --max-erase, or say --anytime to let such texts pass."
        )
    return "No certificate: the text could not be checked, and what cannot be checked is blocked."


def _show_decision(decision: Decision, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(decision.to_dict()))
    else:
        out.print(_table(decision))


def _show_certificate(decision: Decision, as_json: bool) -> None:
    if as_json:
        keys = ("allowed", "reason", "error", "certificate", "certificates")
        decided = decision.to_dict()
        typer.echo(json.dumps({key: decided[key] for key in keys} | {"meaning": _meaning(decision)}))
        return
    out.print(_table(decision))
    out.print()
    if not decision.certificates:
        out.print(_meaning(decision), highlight=False)
    for certificate in decision.certificates:
        out.print(certificate.sentence(), highlight=False)
        out.print(f"Filter {certificate.filter}.", style="dim", highlight=False, soft_wrap=True)
        for assumption in certificate.assumes:
            out.print(f"- {assumption}", style="dim", highlight=False, markup=False)


def _command(show: Callable[[Decision, bool], None], doc: str) -> Callable[..., None]:
    """A command that decides about one text and shows what `show` makes of the decision."""

    def command(
        text: TextArgument = None,
        file: FileOption = None,
        filter_: Annotated[str | None, FILTER] = None,
        mode: Annotated[str | None, MODE] = None,
        max_erase: MaxEraseOption = None,
        blocks: BlocksOption = 1,
        unit: Annotated[str | None, UNIT] = None,
        threshold: ThresholdOption = None,
        label: LabelOption = None,
        device: DeviceOption = "cpu",
        max_checks: MaxChecksOption = MAX_CHECKS,
        anytime: AnytimeOption = False,
        max_prompt: MaxPromptOption = None,
        family: FamilyOption = None,
        screen: ScreenOption = None,
        max_seconds: MaxSecondsOption = None,
        as_json: JsonOption = False,
    ) -> None:
        said = (filter_, mode, max_erase, unit, threshold, label, max_prompt, family, screen, max_seconds)
        options = Options(
            filter_ or "minilm",
            mode or "suffix",
            max_erase,
            blocks,
            unit or "word",
            threshold,
            label,
            device,
            max_checks,
            anytime,
            max_prompt,
            family,
            screen,
            max_seconds,
        )
        is_default = all(option is None for option in said) and blocks == 1 and device == "cpu" and not anytime
        decision = _decide(None if is_default else options, text, file)
        show(decision, as_json)
        if not decision.allowed:
            raise typer.Exit(BLOCKED)

    command.__doc__ = doc
    return command


check = _command(
    _show_decision, "Allow or block a text. Exit code 0: allowed, 1: blocked, 2: usage or configuration error."
)
certify = _command(_show_certificate, "Print the certificate of a text and its exact meaning. Exit codes as for check.")
