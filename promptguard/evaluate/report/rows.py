"""A finished run, read and checked: `run.json` (format 2) and `rows.jsonl`. Nothing in it holds a prompt.

Errors name a line and a field, never what stands there: rows may come from strange files.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from promptguard.errors import InvalidArgument
from promptguard.threat import Threat

FORMAT = 2
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Budget = Count | Literal["unlimited"]
_M = TypeVar("_M", bound=BaseModel)


def reach(budget: int | str) -> float:
    """A budget as a number; "unlimited" is infinite."""
    return math.inf if isinstance(budget, str) else budget


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class ThreatRecord(_Record):
    """A threat as JSON has it."""

    kind: str
    budget: Budget
    unit: str
    blocks: Count
    max_prompt: Count | None = None

    def describe(self) -> str:
        """The threat in words."""
        if self.budget == 0:
            return "nothing added"
        # The budget stays a whole number, so that it is printed as one.
        budget = math.inf if isinstance(self.budget, str) else self.budget
        return Threat(self.kind, budget, self.unit, self.blocks, self.max_prompt).describe()

    def short(self) -> str:
        """The threat in a few letters, for figures."""
        blocks = f"{self.blocks} × " if self.blocks > 1 else ""
        return f"{self.kind} {blocks}{self.budget} ({self.unit.partition(':')[0]})"

    def is_like(self, other: ThreatRecord) -> bool:
        """The same threat up to budget and length of prompts, which certificates may differ in."""
        return (self.kind, self.unit, self.blocks) == (other.kind, other.unit, other.blocks)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as `promptguard.types.Threat.to_dict`."""
        return self.model_dump(exclude_none=True)


class CertificateRecord(_Record):
    """What a row keeps of a certificate."""

    label: Literal["harmful", "safe", "abstain"]
    threat: ThreatRecord
    method: str
    confidence: Annotated[float, Field(gt=0, le=1)]


class Row(_Record):
    """One prompt of a run.

    Attributes:
        score: the maximum over the erasures; None if the text was refused, which blocks it.
        checks: scores that were compared with the threshold.
        ms: milliseconds; None if they were not measured.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: str
    source: str
    label: Literal["harmful", "safe"]
    verdict: Literal["harmful", "safe", "abstain"]
    score: Finite | None
    certificate: CertificateRecord | None
    checks: Count
    ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    seed: int | None = None

    @model_validator(mode="after")
    def _refused_rows_abstain(self) -> Self:
        if self.refused and (self.verdict != "abstain" or self.certificate is not None):
            raise ValueError("a row without a score must abstain and have no certificate")
        return self

    @property
    def refused(self) -> bool:
        """The text could not be checked."""
        return self.score is None

    @property
    def blocked(self) -> bool:
        """A guard does not let it pass: flagged, undecided or refused."""
        return self.verdict != "safe"

    @property
    def rank(self) -> float:
        """The score for sweeps over thresholds: a refused text is blocked at any of them, so it is infinite."""
        return math.inf if self.score is None else self.score

    @property
    def certified(self) -> float | None:
        """The budget for which "harmful" is certified; None without such a certificate."""
        if self.certificate is None or self.certificate.label != "harmful":
            return None
        return reach(self.certificate.threat.budget)


class DataFile(_Record):
    """A file of prompts."""

    name: str
    sha256: str


class Data(_Record):
    """What was measured on.

    Attributes:
        digest: sha256 over the prompts; the same prompts from other files have the same.
        files: where they came from.
        prompts: how many there are.
    """

    digest: str
    files: tuple[DataFile, ...] = Field(strict=False)
    prompts: Count


class About(_Record):
    """`run.json`: everything that decides what the rows of a run mean.

    Attributes:
        threat: the most that a certificate of the run covers; None if there are no certificates, or several kinds.
        guard_band: None for certifiers that are composed of others.
    """

    format: Literal[2]
    command: str | None = None
    certifier: str
    settings: dict[str, JsonValue]
    filter: str
    filter_name: str
    threshold: Finite
    guard_band: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    threat: ThreatRecord | None
    method: str
    data: Data
    versions: dict[str, JsonValue]
    machine: dict[str, JsonValue]

    @property
    def fast(self) -> bool:
        """Searches stopped at the first flagged erasure, so scores are not maxima."""
        return self.settings.get("fast") is True

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        threat = self.threat.to_dict() if self.threat else None
        return self.model_dump(mode="json") | {"threat": threat}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        name: name of its folder, without the path.
        about: what was measured.
        rows: one per prompt.
    """

    name: str
    about: About
    rows: tuple[Row, ...]


# Keys in a strange file are not repeated, unless they are ours.
_NAMES = {
    name for model in (About, Data, DataFile, Row, CertificateRecord, ThreatRecord) for name in model.model_fields
}


def read_run(folder: Path) -> Run:
    """Read the folder of a finished run; nothing in it is changed.

    Raises:
        InvalidArgument: no run, one of another format, an unfinished or damaged one, or rows of several runs.
    """
    about = parse_about(_json(_read(folder, "run.json"), f"{folder.name}/run.json"), folder.name)
    lines = _read(folder, "rows.jsonl").split("\n")
    if lines[-1].strip():
        raise InvalidArgument(f"{folder.name}/rows.jsonl ends inside a row: run the bench again, it goes on from there")
    raw = [(f"{folder.name}/rows.jsonl, line {n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
    rows = tuple(_parse(Row, _json(line, where), where) for where, line in raw)
    check_rows(about, rows, folder.name)
    if len(rows) < about.data.prompts:
        raise InvalidArgument(
            f"{folder.name} has {len(rows)} of {about.data.prompts} rows: run the bench again, it goes on from there"
        )
    if len(rows) > about.data.prompts:
        raise InvalidArgument(f"{folder.name} has more rows than prompts: rows of several runs were mixed")
    return Run(folder.name, about, rows)


def parse_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Rows from their JSON objects.

    Raises:
        InvalidArgument: an object is no row.
    """
    return tuple(_parse(Row, row, f"row {number}") for number, row in enumerate(rows, start=1))


def parse_about(raw: Any, name: str) -> About:
    """`run.json` from its JSON object.

    Raises:
        InvalidArgument: it is another format, or none.
    """
    found = raw.get("format", 1) if isinstance(raw, dict) else None
    if isinstance(found, int) and found < FORMAT:
        raise InvalidArgument(f"{name} was written by an older bench (format {found}): measure again in a new folder")
    if isinstance(found, int) and found > FORMAT:
        raise InvalidArgument(f"{name} was written by a newer bench (format {found}): update promptguard")
    return _parse(About, raw, f"{name}/run.json")


def check_rows(about: About, rows: tuple[Row, ...], name: str) -> None:
    """Refuse rows that cannot be of one run.

    Raises:
        InvalidArgument: no rows, an id twice, or a certificate for another threat than the run's.
    """
    if not rows:
        raise InvalidArgument(f"{name} has no rows")
    if max(Counter(row.id for row in rows).values()) > 1:
        raise InvalidArgument(f"{name} has two rows with one id: rows of several runs were mixed")
    certificates = (row.certificate for row in rows if row.certificate)
    threat = about.threat
    if threat and not all(certificate.threat.is_like(threat) for certificate in certificates):
        raise InvalidArgument(f"{name} has certificates for another threat: rows of several runs were mixed")


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        kind = type(error).__name__
    raise InvalidArgument(f"cannot read {folder.name}/{name}: {kind}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=str)  # infinite numbers are no JSON, and no value of a field
    except (ValueError, RecursionError):
        pass
    raise InvalidArgument(f"{where}: not JSON")


def _parse(model: type[_M], raw: Any, where: str) -> _M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_input=False)
    places = (".".join(str(part) for part in fault["loc"] if part in _NAMES) for fault in faults)
    fields = ", ".join(dict.fromkeys(filter(None, places)))
    raise InvalidArgument(f"{where}: not what promptguard bench writes" + (f" ({fields})" if fields else ""))
