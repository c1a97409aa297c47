"""Greedy deletion: drop the unit whose absence lowers the score most, again and again.

No insertion certificate covers it; certificates of the threats "deletion" and "edit" do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from promptguard.attack.base import AttackResult, Objective, check_sizes
from promptguard.attack.reach import Reach
from promptguard.attack.search import Search
from promptguard.view import canonical


@dataclass(frozen=True, slots=True)
class GreedyDeletion:
    """Drops units one by one.

    Attributes:
        budget: units dropped at most; the threat's budget, if it is smaller, counts. One unit always stays.
    """

    name: ClassVar[str] = "deletion"
    kinds: ClassVar[frozenset[str]] = frozenset({"deletion", "edit"})

    budget: int = 10

    def __post_init__(self) -> None:
        check_sizes(budget=self.budget)

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text; nothing here is random.

        Raises:
            UnsupportedThreat: the threat does not let units be dropped.
            InvalidText: the objective refuses the text itself.
        """
        search = Search(self, objective, reach, seed)
        pieces = reach.pieces
        for _ in range(min(self.budget, reach.budget)):
            shorter = [pieces[:at] + pieces[at + 1 :] for at in range(len(pieces))]
            shorter = [rest for rest in shorter if canonical("".join(rest))]
            margins = search.judge(["".join(rest) for rest in shorter])
            if search.over or math.isinf(min(margins, default=math.inf)):
                break
            pieces = shorter[margins.index(min(margins))]
        return search.result()
