"""The default guard: any of the bundled filters, each in the mode that it is good at.

`filters/default.json` names the members and their thresholds. They were chosen by recall on held-out training data at a
joint false-positive rate (`filters/choose.py`); what they reach is in `filters/default.md`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptguard.certify.any_of import AnyOf
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import WeightsError
from promptguard.score import load_filter
from promptguard.score.manifest import ARITHMETIC, read_entry
from promptguard.score.paths import filters_dir
from promptguard.units import load_units


class Member(BaseModel):
    """One bundled filter of the default guard, and how it is run.

    Attributes:
        filter: its name.
        mode: erase mode.
        max_erase: units erased at most, or "unlimited".
        unit: what is counted.
        max_prompt: units of the longest prompt protected; wrap modes only.
        threshold: scores at or above it are harmful.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    filter: str
    mode: str
    max_erase: Annotated[int, Field(ge=0)] | Literal["unlimited"]
    unit: Literal["char", "word"]
    max_prompt: Annotated[int, Field(ge=1)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)]

    def certifier(self, device: str = "cpu") -> EraseAndCheck:
        """Load the filter and put erase-and-check around it.

        Args:
            device: where it runs, if it is a model; arithmetic on words stays on the CPU.

        Raises:
            WeightsError: a file is missing or damaged.
            InvalidArgument: there is no such device.
        """
        budget = math.inf if self.max_erase == "unlimited" else self.max_erase
        mode = load_mode(self.mode, budget, max_prompt=self.max_prompt)
        is_arithmetic = read_entry(filters_dir() / self.filter).kind in ARITHMETIC
        filter_ = load_filter(self.filter, threshold=self.threshold, device="cpu" if is_arithmetic else device)
        return EraseAndCheck(filter_, mode, load_units(self.unit))


class _Default(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    members: Annotated[list[Member], Field(min_length=1)]


def default_members() -> list[Member]:
    """What the default guard is made of.

    Raises:
        WeightsError: `default.json` is missing or damaged.
    """
    try:
        return _Default.model_validate_json((filters_dir() / "default.json").read_bytes()).members
    except (OSError, ValidationError):
        raise WeightsError("the default guard's default.json is missing or damaged: reinstall promptguard") from None


def default_certifier() -> AnyOf:
    """Any of the bundled filters, cheap ones first; each certificate is kept.

    Raises:
        WeightsError: a file is missing or damaged.
        MissingDependency: the base model of a member is not installed.
    """
    return AnyOf([member.certifier() for member in default_members()])
