"""A text cut into units, and its erased versions as substrings of the original."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

from promptguard.errors import InvalidArgument, discreetly
from promptguard.types import Units

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """A text and the code point offsets at which its n units start, with the end of the text as offset n."""

    text: str
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, text: str, units: Units) -> Self:
        """Cut a text.

        Raises:
            InvalidArgument: the pieces do not join to the text, or one is empty.
            FilterError: the units raised.
        """
        pieces = discreetly(f"units {units.name!r}", lambda: list(units(text)))
        if "".join(pieces) != text or "" in pieces:
            raise InvalidArgument(f"units {units.name!r} broke their law: pieces must join to the text, none empty")
        return cls(text, (0, *accumulate(map(len, pieces))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def cut(self) -> list[str]:
        """The pieces themselves."""
        return [self.text[a:b] for a, b in pairwise(self.offsets)]

    def chars(self, runs: Runs) -> Runs:
        """Unit ranges as code point ranges."""
        return tuple((self.offsets[start], self.offsets[stop]) for start, stop in runs)

    def without(self, runs: Runs) -> str:
        """The text with these units erased."""
        kept, position = [], 0
        for start, stop in self.chars(runs):
            kept.append(self.text[position:start])
            position = stop
        return "".join([*kept, self.text[position:]])
