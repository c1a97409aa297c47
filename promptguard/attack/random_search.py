"""Random search over a block of words, by scores alone.

Andriushchenko et al. 2024, *Jailbreaking Leading Safety-Aligned LLMs with Simple Adaptive Attacks*, search a suffix so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from promptguard.attack.base import ADDING, AttackResult, Objective, check_sizes
from promptguard.attack.reach import Reach
from promptguard.attack.search import Search
from promptguard.attack.vocabulary import vocabulary


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Exchanges random words of a block and keeps what lowers the score.

    Attributes:
        length: words of the block (characters, in units that let text be glued), as far as the budget allows.
        steps: steps of each restart.
        candidates: texts judged in each step.
        restarts: times that the search begins with a new random block, at a new place where the threat allows several.
        words: the words to choose from; default the model's own where it shows its tokens, else common ones.
    """

    name: ClassVar[str] = "random-search"
    kinds: ClassVar[frozenset[str]] = ADDING

    length: int = 20
    steps: int = 20
    candidates: int = 32
    restarts: int = 2
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(length=self.length, steps=self.steps, candidates=self.candidates, restarts=self.restarts)

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text.

        Raises:
            UnsupportedThreat: the threat does not add text.
            InvalidText: the objective refuses the text itself.
        """
        search = Search(self, objective, reach, seed)
        for _ in range(self.restarts):
            if not search.over and reach.budget:
                self._descend(search)
        return search.result()

    def _descend(self, search: Search) -> None:
        rng, reach = search.rng, search.reach
        words = vocabulary(self.words, search.tokens, reach)
        before, after = reach.around(rng.choice(reach.slots(rng, 1)[0]))

        def text(block: list[str]) -> str:
            return f"{before}{reach.joiner.join(block)}{after}"

        best = rng.choices(words, k=min(self.length, reach.budget))
        (lowest,) = search.judge([text(best)])
        for _ in range(self.steps):
            if search.over:
                return
            blocks = []
            for _ in range(self.candidates):
                place = rng.randrange(len(best))
                blocks.append([*best[:place], rng.choice(words), *best[place + 1 :]])
            margins = search.judge([text(block) for block in blocks])
            if min(margins) < lowest:
                lowest = min(margins)
                best = blocks[margins.index(lowest)]
