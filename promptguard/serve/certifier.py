"""From the configuration to the certifiers that the server asks, and what a text costs before they are asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from promptguard.certify.any_of import AnyOf
from promptguard.certify.erase_and_check import MAX_CHARS, MAX_CHECKS, MAX_WORK, Cost, EraseAndCheck
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import InvalidText
from promptguard.evaluate.calibration import Calibration
from promptguard.guard.default import default_members
from promptguard.score import load_filter
from promptguard.score.shared import SharedFilter, shared
from promptguard.serve.pool import go_on
from promptguard.types import Certifier, Filter
from promptguard.units import load_units

Count = Annotated[int, Field(ge=1)]
DEFAULT = "default"
_DEFAULT_MAX_ERASE = 20
_SHARE = 0.9  # of the time for a request that one text may take; the rest is for reading it and for the answer


class Section(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Certifying(Section):
    """What judges texts; the same words as the command line's.

    Attributes:
        filter: as `--filter`; "default" is the default guard, which has its own modes.
        screen: "bfloat16", or nothing.
        threshold: a number, or a file of `promptguard calibrate`; default the filter's own.
        mode: erase mode.
        max_erase: units erased at most, or "unlimited"; default unlimited where one pass does it, else 20.
        blocks: insertion only.
        unit: "char", "word" or "token".
        max_prompt: wrap modes only.
        label: harmful label of a classifier.
        family: family of a classifier or judge.
        device: where the filter runs.
        max_checks: erasures per text; more are over the budget.
        anytime: over the budget, certify the largest one that fits.
        max_chars: longest text, in code points.
        max_work: code points over all erasures of a text.
    """

    filter: str = DEFAULT
    screen: Literal["bfloat16"] | None = None
    threshold: float | Path | None = None
    mode: str = "suffix"
    max_erase: Annotated[int, Field(ge=0)] | Literal["unlimited"] | None = None
    blocks: Count = 1
    unit: Literal["char", "word", "token"] = "word"
    max_prompt: Count | None = None
    label: str | int | None = None
    family: str | None = None
    device: str = "cpu"
    max_checks: Count = MAX_CHECKS
    anytime: bool = False
    max_chars: Count = MAX_CHARS
    max_work: Count = MAX_WORK

    @model_validator(mode="after")
    def _default_stands_alone(self) -> Self:
        if self.filter == DEFAULT and (said := sorted(self.model_fields_set - {"filter", "device"})):
            raise ValueError(f"{said[0]} needs a filter: the default guard has its own settings")
        return self


class Batching(Section):
    """Texts of requests that are checked at once share calls of the filter.

    Attributes:
        max_wait_ms: how long a text waits for others.
        max_texts: texts per call.
    """

    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 2.0
    max_texts: Count = 64


def build(section: Certifying, batching: Batching, seconds: float) -> AnyOf | EraseAndCheck:
    """Load the filters and put the certifier around them.

    What it begins for a ticket of the pool ends soon after nobody waits any more, and has a time budget besides.

    Args:
        section: what judges.
        batching: of calls of the filters, which are timed here.
        seconds: for a request.

    Raises:
        PromptGuardError: a setting means nothing, a file is missing, or a calibration does not fit.
    """
    if section.filter == DEFAULT:
        members = [member.certifier(section.device) for member in default_members()]
        return AnyOf(
            EraseAndCheck(_shared(m.filter, batching), m.mode, m.units, progress=go_on, max_seconds=_SHARE * seconds)
            for m in members
        )
    budget = math.inf if section.max_erase in (None, "unlimited") else int(section.max_erase)
    mode = load_mode(section.mode, budget, section.blocks, section.max_prompt)
    calibration = Calibration.load(section.threshold) if isinstance(section.threshold, Path) else None
    threshold = calibration.threshold if calibration else section.threshold
    filter_ = load_filter(
        section.filter,
        threshold=threshold if isinstance(threshold, float) else None,
        label=section.label,
        family=section.family,
        device=section.device,
        screen=section.screen,
    )
    units = load_units(section.unit, getattr(filter_, "tokenizer", None))
    if section.max_erase is None and not section.mode.startswith("wrap") and cheapest(filter_, mode, units).limited:
        mode = mode.with_budget(_DEFAULT_MAX_ERASE)
    made = EraseAndCheck(
        _shared(filter_, batching),
        mode,
        units,
        max_checks=section.max_checks,
        anytime=section.anytime,
        max_chars=section.max_chars,
        max_work=section.max_work,
        progress=go_on,
        max_seconds=_SHARE * seconds,
    )
    if calibration:
        calibration.check(made)
    return made


def price(certifier: Certifier, text: str) -> Cost:
    """What a text costs, no inference; a text that a member refuses costs that member nothing.

    Where a few passes cover all erasures, it is one check: there may be 2 ** words of them.
    """
    match certifier:
        case AnyOf():
            costs = [price(member, text) for member in certifier.members]
            return Cost(sum(cost.checks for cost in costs), sum(cost.characters for cost in costs))
        case EraseAndCheck():
            try:
                cost = certifier.cost(text)
            except InvalidText:
                return Cost(0, 0)
            return cost if certifier.lists_erasures else Cost(1, cost.characters)
    return Cost(1, len(text))


def filters(certifier: Certifier) -> dict[str, Filter]:
    """The filters behind a certifier, by name."""
    if isinstance(certifier, AnyOf):
        return {name: filter_ for member in certifier.members for name, filter_ in filters(member).items()}
    return {certifier.filter.name: certifier.filter} if isinstance(certifier, EraseAndCheck) else {}


def close(certifier: Certifier) -> None:
    """End the threads of the filters behind a certifier; it can check nothing any more."""
    match certifier:
        case AnyOf():
            for member in certifier.members:
                close(member)
        case EraseAndCheck(filter=SharedFilter() as filter_):
            filter_.close()


def _shared(filter_: Filter, batching: Batching) -> Filter:
    return shared(filter_, max_wait=batching.max_wait_ms / 1000, max_texts=batching.max_texts)
