"""What the page may ask for, validated: unknown keys, other types and sizes beyond reason are refused."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SIZE = 400  # units that an attack adds

_Name = Annotated[str, Field(max_length=200)]
_Text = Annotated[str, Field(max_length=100_000)]


class How(StrEnum):
    """Where an attack puts its text."""

    APPEND = "append"
    INSERT = "insert"
    INFUSE = "infuse"
    WRAP = "wrap"


class Source(StrEnum):
    """What an attack adds."""

    WORDS = "words"
    ROLE_PLAY = "role-play"
    OWN = "own"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Choice(_Strict):
    """How a text is checked.

    Attributes:
        filter: a name of the workbench.
        mode: erase mode.
        budget: units erased at most, or "unlimited".
        unit: what the budget counts.
    """

    filter: _Name
    mode: Literal["suffix", "insertion", "infusion", "wrap"]
    budget: Annotated[int, Field(strict=True, ge=0, le=10_000)] | Literal["unlimited"]
    unit: Literal["char", "word", "token"]

    @property
    def max_erase(self) -> float:
        """The budget as a number."""
        return math.inf if self.budget == "unlimited" else self.budget


class Attack(_Strict):
    """An attack on a text.

    Attributes:
        how: where text is added.
        source: what is added.
        own: the text itself, all of it, when the source is the person's own; not used otherwise.
        size: units added otherwise.
        seed: of the draws: the same request makes the same attack.
    """

    how: How
    source: Source
    own: _Text = ""
    size: Annotated[int, Field(strict=True, ge=0, le=MAX_SIZE)] = 0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**53)] = 0


class TextRequest(_Strict):
    """A text, and how to check it."""

    text: _Text
    choice: Choice


class PrefixRequest(TextRequest):
    """A text, and the code point at which its prefixes begin."""

    start: Annotated[int, Field(strict=True, ge=0)] = 0


class AttackRequest(TextRequest):
    """A text, how to check it, and how to attack it."""

    attack: Attack
