"""The vocabulary of attacks: what is minimised, who searches, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from promptguard.errors import InvalidArgument

if TYPE_CHECKING:
    from promptguard.attack.reach import Reach
    from promptguard.capabilities import TokenAccess

# Threats that allow text to be added.
ADDING = frozenset({"suffix", "insertion", "infusion", "wrap", "wrap-boundary", "edit"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the attacked procedure says of one text.

    Attributes:
        score: its score of harm; infinite when it refuses the text.
        margin: what an attack minimises: the score's distance above the threshold, or what guides better.
        broken: True when the text gets through.
        calls: texts that the filter scored for it.
        refused: True when the procedure would not judge the text: the attacker has gained nothing.
    """

    score: float
    margin: float
    broken: bool
    calls: int = 1
    refused: bool = False

    @classmethod
    def refusal(cls, *, broken: bool = False) -> Outcome:
        """The outcome of a text that is not judged."""
        return cls(math.inf, math.inf, broken, calls=0, refused=True)


class Objective(Protocol):
    """The procedure under attack."""

    @property
    def tokens(self) -> TokenAccess | None:
        """White-box access to the model whose gradient guides the search; None when there is none."""
        ...

    def __call__(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome per text; a refusal is an outcome, not an error."""
        ...


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What one attack on one text came to.

    Attributes:
        attack: name of the attack.
        success: a text that the threat reaches got through.
        vacuous: the text itself gets through: there was nothing to attack, and nothing was searched.
        queries: texts that the attacked procedure was asked about, the text itself included; each is asked once.
        attempts: those of the queries that the threat reaches from the text, without the text itself.
        calls: texts that the filter scored for these queries; the same number for a bare filter.
        gradients: forward and backward passes for token gradients.
        refusals: queries that were refused.
        cost: the smallest budget of the threat's kind that reaches the best text: in each block, for insertion.
        added: units that the best text has more than the prompt.
        unit: what `cost` and `added` count.
        score_before: score of the text itself.
        score_after: score of the best text; infinite when it gets through by being refused.
        seed: of the search's randomness.
        text: the best text found: the one that gets through, else the one with the smallest margin. It is in no repr
            and no JSON.
    """

    attack: str
    success: bool
    vacuous: bool
    queries: int
    attempts: int
    calls: int
    gradients: int
    refusals: int
    cost: int
    added: int
    unit: str
    score_before: float
    score_after: float
    seed: int
    text: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without any text; a score that is not finite, as a refusal has, is written null."""
        return {
            "attack": self.attack,
            "success": self.success,
            "vacuous": self.vacuous,
            "queries": self.queries,
            "attempts": self.attempts,
            "calls": self.calls,
            "gradients": self.gradients,
            "refusals": self.refusals,
            "cost": self.cost,
            "added": self.added,
            "unit": self.unit,
            "score_before": self.score_before,
            "score_after": self.score_after if math.isfinite(self.score_after) else None,
            "seed": self.seed,
        }


class Attack(Protocol):
    """A search for a text that gets through."""

    @property
    def name(self) -> str:
        """Its key in `ATTACKS`."""
        ...

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of threat that it can search."""
        ...

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Search the texts that a threat reaches; stop at the first that gets through.

        Args:
            objective: what is attacked.
            reach: the text under attack and what may be done to it.
            seed: of all randomness; the same seed gives the same result on the same machine.

        Raises:
            UnsupportedThreat: the threat's kind is none of `kinds`, or the objective lacks what the attack needs.
        """
        ...


def check_sizes(**sizes: int) -> None:
    """Refuse settings that are no whole numbers >= 1.

    Raises:
        InvalidArgument: names the first such setting.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidArgument(f"{name} must be a whole number, at least 1, not {size!r}")
