"""What all attacks share while they run: asking, counting, remembering the best, and staying within the threat."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from promptguard.attack.base import Attack, AttackResult, Objective, Outcome
from promptguard.attack.reach import Reach
from promptguard.capabilities import TokenAccess, TokenGradient
from promptguard.errors import InvalidText, UnsupportedThreat
from promptguard.view import canonical


class Search:
    """One attack on one text.

    Attributes:
        rng: the attack's randomness.
        over: nothing is left to do: a text got through, or the text itself does.
    """

    def __init__(self, attack: Attack, objective: Objective, reach: Reach, seed: int) -> None:
        """Ask about the text itself.

        Raises:
            UnsupportedThreat: the attack cannot search this kind of threat.
            InvalidText: the objective refuses the text itself.
        """
        if reach.threat.kind not in attack.kinds:
            raise UnsupportedThreat(f"attack {attack.name!r} cannot search threat {reach.threat.kind!r}")
        self.reach = reach
        self.rng = random.Random(seed)  # noqa: S311 - it must be repeatable, not secret
        self._attack = attack.name
        self._objective = objective
        self._seed = seed
        self._known: dict[str, Outcome] = {}
        self._attempts: set[str] = set()
        self._gradients = 0
        self._start = self._ask([reach.text])[0]
        if self._start.refused:
            raise InvalidText("the text itself is refused: there is nothing to attack")
        self._best = reach.text
        self.over = self._start.broken

    def judge(self, texts: Sequence[str]) -> list[float]:
        """Margins of attacked texts, in order; infinite for those that the threat does not reach.

        The first text that gets through, and else the smallest margin, is remembered. Nothing is asked twice, and
        nothing once the search is over.
        """
        held = [] if self.over else [text for text in dict.fromkeys(texts) if self.reach.holds(text)]
        self._attempts.update(held)
        margins = {}
        for text, outcome in zip(held, self._ask(held), strict=True):
            margins[text] = outcome.margin
            if not self.over and (outcome.broken or outcome.margin < self._known[self._best].margin):
                self._best, self.over = text, outcome.broken
        return [margins.get(text, math.inf) for text in texts]

    def probe(self, texts: Sequence[str]) -> list[float]:
        """Margins of texts that are no attacks themselves but tell the attacker something; infinite for blank ones."""
        asked = [text for text in texts if canonical(text)]
        margins = dict(zip(asked, (outcome.margin for outcome in self._ask(asked)), strict=True))
        return [margins.get(text, math.inf) for text in texts]

    def white_box(self) -> TokenAccess:
        """The objective's tokens and gradients.

        Raises:
            UnsupportedThreat: there is no white-box access.
        """
        if self._objective.tokens is None:
            raise UnsupportedThreat(f"attack {self._attack!r} needs a filter with token gradients")
        return self._objective.tokens

    @property
    def tokens(self) -> TokenAccess | None:
        """The objective's tokens, if it shows them."""
        return self._objective.tokens

    def gradient(self, text: str, start: int, end: int) -> TokenGradient:
        """A token gradient, counted."""
        self._gradients += 1
        return self.white_box().gradient(text, start, end)

    def _ask(self, texts: Sequence[str]) -> list[Outcome]:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._objective(fresh), strict=True))
        return [self._known[text] for text in texts]

    def result(self) -> AttackResult:
        """What came of it."""
        best = self._known[self._best]
        outcomes = self._known.values()
        return AttackResult(
            attack=self._attack,
            success=best.broken and not self._start.broken,
            vacuous=self._start.broken,
            queries=len(self._known),
            attempts=len(self._attempts - {self.reach.text}),
            calls=sum(outcome.calls for outcome in outcomes),
            gradients=self._gradients,
            refusals=sum(outcome.refused for outcome in outcomes),
            cost=self.reach.cost(self._best) or 0,
            added=self.reach.added(self._best),
            unit=self.reach.threat.unit,
            score_before=self._start.score,
            score_after=best.score,
            seed=self._seed,
            text=self._best,
        )
