"""Real adversarial suffixes, found by others on other models, put into a prompt: appended, inserted or infused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

from promptguard.attack.base import ADDING, AttackResult, Objective, check_sizes
from promptguard.attack.reach import Reach
from promptguard.attack.search import Search
from promptguard.errors import InvalidArgument
from promptguard.view import canonical

_SHORTER = 3  # spaces may cost units too


@dataclass(frozen=True, slots=True)
class RealSuffix:
    """An adversarial suffix from the wild.

    Attributes:
        suffix: its text.
        goal: the prompt that it was made for, "" if that is not known.
        attack: the method that made it, "" if that is not known.
    """

    suffix: str = field(repr=False)
    goal: str = field(default="", repr=False)
    attack: str = ""


def read_suffixes(path: str | Path) -> list[RealSuffix]:
    """The suffixes of a file: JSON lines with `suffix` and perhaps `goal` and `attack`. Blank suffixes are left out.

    Raises:
        InvalidArgument: the file cannot be read, or a line holds something else; the message names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InvalidArgument("the file of suffixes cannot be read as UTF-8 text") from None
    rows = (_row(line, number) for number, line in enumerate(lines, 1) if line.strip())
    return [row for row in rows if canonical(row.suffix)]


def _row(line: str, number: int) -> RealSuffix:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("suffix"), str):
        raise InvalidArgument(f"line {number} is no JSON object with a suffix")
    return RealSuffix(row["suffix"], str(row.get("goal") or ""), str(row.get("attack") or ""))


@dataclass(frozen=True, slots=True)
class Replay:
    """Tries given texts, one after the other: as one block, and spread unit by unit over the gaps of the threat.

    A text over the budget is cut after the last unit that fits.

    Attributes:
        suffixes: the texts to add, at least one.
        batch: texts judged at once.
    """

    name: ClassVar[str] = "replay"
    kinds: ClassVar[frozenset[str]] = ADDING

    suffixes: tuple[str, ...] = field(repr=False)
    batch: int = 32

    def __post_init__(self) -> None:
        check_sizes(batch=self.batch)
        if not self.suffixes or not all(map(canonical, self.suffixes)):
            raise InvalidArgument("replay needs at least one suffix, and none that is blank")

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text.

        Raises:
            UnsupportedThreat: the threat does not add text.
            InvalidText: the objective refuses the text itself.
        """
        search = Search(self, objective, reach, seed)
        if reach.budget:
            texts = self._texts(search)
            while not search.over and (some := list(islice(texts, self.batch))):
                search.judge(some)
        return search.result()

    def _texts(self, search: Search) -> Iterator[str]:
        reach, rng = search.reach, search.rng
        for suffix in self.suffixes:
            units = reach.cut(suffix.strip())
            before, after = reach.around(rng.choice(reach.slots(rng, 1)[0]), apart=True)
            size = min(len(units), reach.budget)
            blocks = (f"{before}{''.join(units[:short])}{after}" for short in range(size, max(0, size - _SHORTER), -1))
            yield next(filter(reach.holds, blocks), reach.text)
            spread = units[: reach.room]
            gaps = sorted(rng.choice(slot) for slot in reach.slots(rng, len(spread)))
            yield reach.with_added(zip(gaps, (unit if reach.glues else unit.strip() for unit in spread), strict=True))
