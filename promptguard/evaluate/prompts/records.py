"""What a file of prompts is read into, and the rows on the way there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptguard.errors import InvalidArgument

HARMFUL = "harmful"
SAFE = "safe"


@dataclass(frozen=True, slots=True)
class Behavior:
    """What a prompt asks for, in the words of its benchmark.

    Attributes:
        goal: the plain request, without what an attack adds.
        name: short name, or the benchmark's id of the behaviour; "" if there is none.
        category: of harm; "" if there is none.
        index: number within JailbreakBench; None elsewhere.
    """

    goal: str
    name: str = ""
    category: str = ""
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what people say of it.

    Attributes:
        id: unique within its file, and the same whenever the file is read.
        source: where it comes from; results are grouped by it.
        label: "harmful" or "safe".
        text: what is checked.
        behavior: what it asks for, where the format says so.
    """

    id: str
    source: str
    label: str
    text: str
    behavior: Behavior | None = None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a file.

    Attributes:
        format: name of the format that was found.
        prompts: in the order of the file.
        skipped: for each row that holds no prompt (an attack that found none, a turn without text), its behaviour.
    """

    format: str
    prompts: tuple[Prompt, ...]
    skipped: tuple[Behavior | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: named values.

    Attributes:
        file: name of the file, without its folder.
        number: of the line where it starts; in a JSON document, of the entry. From 1.
        values: by column.
        unit: what `number` counts.
    """

    file: str
    number: int
    values: Mapping[str, Any]
    unit: str = "line"

    @property
    def where(self) -> str:
        """For errors."""
        return f"{self.file}, {self.unit} {self.number}"

    def text(self, column: str) -> str:
        """A value that must be a string.

        Raises:
            InvalidArgument: it is missing, or something else.
        """
        value = self.values.get(column)
        if not isinstance(value, str):
            raise InvalidArgument(f"{self.where}: needs an object with a string `{column}`")
        return value

    def text_or_null(self, column: str) -> str | None:
        """A value that must be there, as a string or as null.

        Raises:
            InvalidArgument: it is missing, or something else.
        """
        return None if column in self.values and self.values[column] is None else self.text(column)

    def word(self, column: str) -> str | None:
        """A name or number; None if it is missing, null or empty.

        Raises:
            InvalidArgument: it is something else.
        """
        value = self.values.get(column)
        if value is None or value == "":
            return None
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise InvalidArgument(f"{self.where}: `{column}` must be a string or a number")
        return str(value)

    def number_in(self, column: str) -> int:
        """A whole number, from JSON or written in digits.

        Raises:
            InvalidArgument: it is missing, or something else.
        """
        value = self.values.get(column)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidArgument(f"{self.where}: `{column}` must be a whole number")
        return value

    def label(self, column: str, names: Mapping[str, str]) -> str | None:
        """The label that a value stands for; None if it is missing, null or empty.

        Raises:
            InvalidArgument: it is none of the names.
        """
        value = self.values.get(column)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or value not in names:
            raise InvalidArgument(f"{self.where}: `{column}` must be {' or '.join(names)}")
        return names[value]


@dataclass(frozen=True, slots=True)
class Record:
    """What a format makes of a row; what is None is settled by the rules that all formats share.

    Attributes:
        text: None if the row holds no prompt.
        id: None is the row's number.
        source: None is the file's name.
        label: None if the row has none.
        behavior: None if the format does not say.
    """

    text: str | None
    id: str | None = None
    source: str | None = None
    label: str | None = None
    behavior: Behavior | None = None
