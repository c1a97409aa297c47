"""The record of a calibration: a threshold, what it promises, and what it was made for.

`promptguard.evaluate.calibrate` makes one; commands and services load it and refuse a certifier that it does not fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.errors import InvalidArgument
from promptguard.stats import upper_bound
from promptguard.types import EraseMode
from promptguard.view import VIEW

Finite = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Mode = dict[str, bool | int | str]
_UNLIMITED = "unlimited"
_SHA256 = 64  # hex digits; other digests are names
# Less of these means a subset of the erasures, whose maximum is no larger. All else of a mode must be the same.
_LIMITS = ("budget", "blocks")


def describe(mode: EraseMode) -> Mode:
    """What of a mode decides which erasures it makes, as JSON has it.

    Kind, budget and blocks, and every other field of a mode that is a dataclass if it is a number or a word.
    """
    budget = _UNLIMITED if math.isinf(mode.budget) else int(mode.budget)
    main: Mode = {"kind": mode.kind, "budget": budget, "blocks": mode.blocks}
    names: list[str] = [field.name for field in fields(mode)] if is_dataclass(mode) else []
    own = {name: getattr(mode, name) for name in names if name not in main}
    return main | {name: value for name, value in own.items() if isinstance(value, int | str)}


class Calibration(BaseModel):
    """A threshold, what it promises, and what it was made for. It holds no text.

    Attributes:
        format: version of this format.
        threshold: certified scores at or above it are harmful.
        bound: upper limit of the false-positive rate, with `confidence`; decided before any score was seen.
        confidence: probability that a sample like this one gives a threshold that keeps the bound.
        max_fpr: the rate that was asked for.
        texts: safe texts in the sample, n.
        allowed: how many of them may score at or above the threshold, k.
        exceeding: how many do, the refused ones included; fewer than k where scores are tied.
        refused: how many could not be checked.
        observed: exceeding / texts.
        filter: digest of the filter.
        filter_name: for people.
        guard_band: of the filter; the threshold is that far above the sample's scores.
        mode: the erasures, as `describe` has them.
        unit: what is erased.
        view: rules of the canonical view.
        data: sha256 of the sample's file.
        package: version of promptguard that made it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    threshold: Finite
    bound: Rate
    confidence: Rate
    max_fpr: Rate
    texts: Annotated[int, Field(ge=1)]
    allowed: Count
    exceeding: Count
    refused: Count
    observed: Annotated[float, Field(ge=0, le=1)]
    filter: str
    filter_name: str
    guard_band: Annotated[Finite, Field(ge=0)]
    mode: Mode
    unit: str
    view: str
    data: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    package: str

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.refused <= self.exceeding <= self.allowed < self.texts:
            raise ValueError("the counts do not add up")
        expected = upper_bound(self.allowed, self.texts, self.confidence)
        if not math.isclose(self.bound, expected, rel_tol=1e-6) or self.bound > self.max_fpr:
            raise ValueError("bound is not what texts, allowed and confidence give")
        if not isinstance(self.mode.get("kind"), str) or any(_limit(self.mode.get(key)) is None for key in _LIMITS):
            raise ValueError("mode needs a kind, and a budget and blocks that are whole numbers or 'unlimited'")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            InvalidArgument: it cannot be read, or is none.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InvalidArgument(f"cannot read {path}: {type(error).__name__}") from None
        except ValidationError as error:
            faults = "; ".join(f"{_where(e['loc'])}{e['msg']}" for e in error.errors(include_input=False)[:3])
        except (ValueError, RecursionError):
            faults = "not JSON"
        raise InvalidArgument(f"{path} is no threshold file of promptguard calibrate: {faults}")

    def save(self, path: Path) -> None:
        """Write JSON.

        Raises:
            InvalidArgument: the file cannot be written.
        """
        try:
            path.write_text(json.dumps(self.model_dump(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidArgument(f"cannot write {path}: {type(error).__name__}") from None

    def check(self, certifier: EraseAndCheck) -> None:
        """Refuse a certifier for which nothing is promised.

        It must have the filter, unit, view and mode of the calibration, and no lower threshold. A smaller erase
        budget, or fewer blocks, will do: they leave out erasures, so certified scores and false positives can only
        fall. A larger one is refused. In the wrap modes a smaller budget refuses more texts as too long, so there it
        must be the same.

        A certifier with `max_seconds` is served, and less is promised for it: the bound is then one on texts that are
        flagged, not on those that are blocked because time ran out.

        Raises:
            InvalidArgument: something differs; the message names all that does.
        """
        if differences := "; ".join(self._differences(certifier)):
            raise InvalidArgument(f"the threshold was calibrated for something else: {differences}")

    def _differences(self, certifier: EraseAndCheck) -> Iterator[str]:
        filter_, mode = certifier.filter, describe(certifier.mode)
        is_wrap = str(mode.get("kind")).startswith("wrap")
        if filter_.digest != self.filter:
            yield f"filter {self.filter_name} ({_short(self.filter)}), not {filter_.name} ({_short(filter_.digest)})"
        if certifier.units.name != self.unit:
            yield f"unit {self.unit}, not {certifier.units.name}"
        for key in dict.fromkeys([*self.mode, *mode]):
            here, there = mode.get(key), self.mode.get(key)
            if here == there or (key in _LIMITS and not is_wrap and _is_within(here, there)):
                continue
            most = "at most " if key in _LIMITS and not is_wrap else ""
            yield f"{'mode' if key == 'kind' else key} {most}{there}, not {here}"
        if self.view != VIEW:
            yield f"{self.view}, not {VIEW}"
        if filter_.guard_band > self.guard_band:
            yield f"guard band {self.guard_band!r}, not {filter_.guard_band!r}"
        if filter_.threshold < self.threshold:
            yield f"threshold {self.threshold!r}, not {filter_.threshold!r}"


def _short(digest: str) -> str:
    return digest[:12] if len(digest) == _SHA256 else digest


def _limit(value: object) -> float | None:
    """A budget or a number of blocks; None if it is neither."""
    if value == _UNLIMITED:
        return math.inf
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_within(here: object, there: object) -> bool:
    small, large = _limit(here), _limit(there)
    return small is not None and large is not None and small <= large


def _where(location: tuple[int | str, ...]) -> str:
    """The field of a fault, if it is one of ours: names in a strange file are not repeated."""
    return f"{location[0]}: " if location and location[0] in Calibration.model_fields else ""
