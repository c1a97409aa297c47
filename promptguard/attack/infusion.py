"""Searches over words slipped in anywhere: greedy, and evolutionary.

Both use scores alone. They search the infusions of Kumar et al. 2024 (section 3.3); in narrower threats the words go
where the threat allows: to the end, around the prompt, or into a few blocks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from promptguard.attack.base import ADDING, AttackResult, Objective, check_sizes
from promptguard.attack.reach import Reach
from promptguard.attack.search import Search
from promptguard.attack.vocabulary import vocabulary

# Pairs of a gap and a word; those of one gap stand in this order.
Additions = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class _Draw:
    """Which words may be added, and for each addition where."""

    rng: random.Random
    slots: list[list[int]]
    words: Sequence[str]

    @classmethod
    def of(cls, search: Search, budget: int, words: tuple[str, ...]) -> _Draw:
        reach = search.reach
        size = min(budget * reach.threat.blocks, reach.room)
        return cls(search.rng, reach.slots(search.rng, size), vocabulary(words, search.tokens, reach))

    def one(self, at: int) -> tuple[int, str]:
        return self.rng.choice(self.slots[at]), self.rng.choice(self.words)

    def all(self) -> Additions:
        return tuple(map(self.one, range(len(self.slots))))


@dataclass(frozen=True, slots=True)
class GreedyInfusion:
    """Adds one word at a time: of a random sample of words and places, the one that lowers the score most.

    Attributes:
        budget: words added at most; the threat's budget, if it is smaller, counts (per block, for insertion).
        candidates: texts judged for each word.
        words: the words to choose from; default the model's own where it shows its tokens, else common ones.
    """

    name: ClassVar[str] = "greedy-infusion"
    kinds: ClassVar[frozenset[str]] = ADDING

    budget: int = 10
    candidates: int = 64
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(budget=self.budget, candidates=self.candidates)

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text.

        Raises:
            UnsupportedThreat: the threat does not add text.
            InvalidText: the objective refuses the text itself.
        """
        search = Search(self, objective, reach, seed)
        draw = _Draw.of(search, self.budget, self.words)
        added: Additions = ()
        for at in range(len(draw.slots)):
            if search.over:
                break
            proposals = [(*added, draw.one(at)) for _ in range(self.candidates)]
            margins = search.judge([reach.with_added(proposal) for proposal in proposals])
            added = proposals[margins.index(min(margins))]
        return search.result()


@dataclass(frozen=True, slots=True)
class EvolutionaryInfusion:
    """Breeds sets of added words: the fitter half survives, children mix two of them and exchange one word.

    Attributes:
        budget: words added; the threat's budget, if it is smaller, counts (per block, for insertion).
        population: texts of a generation.
        generations: generations after the first.
        words: the words to choose from; default the model's own where it shows its tokens, else common ones.
    """

    name: ClassVar[str] = "evolutionary-infusion"
    kinds: ClassVar[frozenset[str]] = ADDING

    budget: int = 10
    population: int = 32
    generations: int = 20
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(budget=self.budget, population=self.population, generations=self.generations)

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text.

        Raises:
            UnsupportedThreat: the threat does not add text.
            InvalidText: the objective refuses the text itself.
        """
        search = Search(self, objective, reach, seed)
        draw = _Draw.of(search, self.budget, self.words)
        if search.over or not draw.slots:
            return search.result()
        living = [draw.all() for _ in range(self.population)]
        for _ in range(self.generations + 1):
            margins = search.judge([reach.with_added(one) for one in living])
            if search.over:
                break
            ranked = sorted(zip(margins, living, strict=True), key=lambda pair: pair[0])
            parents = [one for _, one in ranked[: max(1, self.population // 2)]]
            children = [_child(draw, parents) for _ in range(self.population - len(parents))]
            living = [*parents, *children]
        return search.result()


def _child(draw: _Draw, parents: Sequence[Additions]) -> Additions:
    """Each addition from one of two parents, and one of them new."""
    mother, father = draw.rng.choice(parents), draw.rng.choice(parents)
    genes = [draw.rng.choice(pair) for pair in zip(mother, father, strict=True)]
    at = draw.rng.randrange(len(genes))
    genes[at] = draw.one(at)
    return tuple(genes)
