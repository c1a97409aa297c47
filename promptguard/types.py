"""The vocabulary of promptguard: what a verdict says, and the seams between the stages.

A *filter* F scores texts for harm. An *attack* turns a prompt P into a text x that a `Threat` reaches. A *certifier*
answers for x with a `Verdict`; a "harmful" one may carry a `Certificate`: which further attacks cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from typing_extensions import TypeVar

from promptguard.threat import L2, Threat

X_contra = TypeVar("X_contra", default=str, contravariant=True)


class Label(StrEnum):
    """What a certifier says of a text."""

    HARMFUL = "harmful"
    SAFE = "safe"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Certificate:
    """No text that `threat` reaches from the checked text changes the label, with at least `confidence`.

    It is about one procedure: the filter with digest `filter` (weights, label, precision, tokenizer), run by `method`
    with the threshold and settings in `assumes`. It says nothing about other filters or other edits.

    Attributes:
        label: the label that cannot change. Of texts only HARMFUL is certified; of images any class.
        threat: what may be done to the checked text from here on.
        method: the certifier, for instance "erase-and-check".
        confidence: probability that it is true; 1.0 unless sampled: then of the smoothed label, see `assumes`.
        filter: digest of the filter.
        assumes: the conditions under which it holds, in words.
        degraded: True when a limit of checks or time made `threat` smaller than what was asked for.
        may_abstain: True when a time budget may end a check: an attacked text then keeps the label, gets ABSTAIN or is
            refused.
    """

    label: Label | int
    threat: Threat
    method: str
    confidence: float
    filter: str
    assumes: tuple[str, ...] = ()
    degraded: bool = False
    may_abstain: bool = False

    def sentence(self) -> str:
        """The exact meaning in one sentence."""
        sure = f" with probability at least {self.confidence!r}" if self.confidence < 1 else ""
        sure += ", or a run abstains" if self.confidence < 1 or self.may_abstain else ""
        what = self.threat.unit if self.threat.kind == L2 else "text"
        stays = f"stays {self.label}" if isinstance(self.label, Label) else f"stays in class {self.label}"
        if self.threat.budget == 0:
            return f"This very {what} {stays}{sure}; nothing may be added or changed ({self.method})."
        less = " A limit of checks made this less than was asked for." if self.degraded else ""
        return f"With {self.threat.describe()}, this {what} {stays}{sure} ({self.method}).{less}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "label": str(self.label),
            "threat": self.threat.to_dict(),
            "method": self.method,
            "confidence": self.confidence,
            "filter": self.filter,
            "assumes": list(self.assumes),
            "degraded": self.degraded,
            "may_abstain": self.may_abstain,
        }


@dataclass(frozen=True, slots=True)
class Witness:
    """The erasure that shows the harm.

    Attributes:
        spent: what it costs in the unit of the budget; 0 when the text itself is flagged.
        units: half-open ranges of erased units; empty if the maximum was bounded without listing erasures.
        chars: the same ranges as code point offsets into the checked text.
    """

    spent: int
    units: tuple[tuple[int, int], ...]
    chars: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"spent": self.spent, "units": [list(r) for r in self.units], "chars": [list(r) for r in self.chars]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A certifier's answer for one text.

    Attributes:
        label: HARMFUL, SAFE or ABSTAIN; of an image the index of its class, or ABSTAIN.
        score: the largest filter score seen; the maximum over all erasures unless the certifier stopped early. For
            sampled methods the share of noised texts that are flagged.
        threshold: what the score is held against.
        calls: texts that the filter scored.
        checks: erasures or samples covered by these calls (duplicates are scored once).
        threat: the attacks that this procedure undoes; smaller than asked for when `degraded`.
        certificate: what cannot change, or None.
        witness: the cheapest erasure that is flagged beyond the guard band, else the cheapest flagged, or None.
        degraded: True when a limit of checks or time cut the erasures short.
        parts: the verdicts that this one was made of, in order; empty unless a certifier composes others.
    """

    label: Label | int
    score: float
    threshold: float
    calls: int
    checks: int
    threat: Threat | None = None
    certificate: Certificate | None = None
    witness: Witness | None = None
    degraded: bool = False
    parts: tuple[Verdict, ...] = ()

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All that is proved of this text: the own certificate, then those of the harmful parts, each once."""
        own = [self.certificate] if self.certificate else []
        harmful = (part for part in self.parts if part.label is Label.HARMFUL)
        return tuple(dict.fromkeys([*own, *(certificate for part in harmful for certificate in part.certificates)]))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; it contains no part of the checked text."""
        return {
            "label": str(self.label),
            "score": self.score,
            "threshold": self.threshold,
            "calls": self.calls,
            "checks": self.checks,
            "threat": self.threat.to_dict() if self.threat else None,
            "certificate": self.certificate.to_dict() if self.certificate else None,
            "witness": self.witness.to_dict() if self.witness else None,
            "degraded": self.degraded,
            "parts": [part.to_dict() for part in self.parts],
        }


@dataclass(frozen=True, slots=True)
class Erasure:
    """One way to erase units of a text.

    Attributes:
        cost: the smallest budget that allows it.
        runs: half-open ranges of erased units, ascending, not touching each other.
    """

    cost: int
    runs: tuple[tuple[int, int], ...]


class Units(Protocol):
    """A way to cut text into pieces. Law: `"".join(units(text)) == text`, no piece is empty."""

    @property
    def name(self) -> str:
        """What a budget counts: "char", "word", "token:<digest>"."""
        ...

    @property
    def covers(self) -> str:
        """Which string attacks a budget in this unit covers, in words."""
        ...

    def __call__(self, text: str) -> list[str]:
        """Cut the text."""
        ...


class EraseMode(Protocol):
    """The erasures E(x) that undo one kind of attack.

    Law: if the units of x are those of P with units added as `threat` allows, then one of `erasures` leaves P's.
    """

    @property
    def kind(self) -> str:
        """The threat's kind."""
        ...

    @property
    def budget(self) -> float:
        """Units erased at most (in each block, for insertion)."""
        ...

    @property
    def blocks(self) -> int:
        """Blocks erased at most; 1 where there is no such limit."""
        ...

    def with_budget(self, budget: float) -> EraseMode:
        """The same mode with another budget."""
        ...

    def erasures(self, n: int) -> Iterator[Erasure]:
        """All erasures of n units, lazily, cheapest first, no kept set twice."""
        ...

    def count(self, n: int, limit: int | None = None) -> int:
        """How many erasures `erasures(n)` yields, unlisted; for a count above `limit` any number above it will do."""
        ...

    def longest(self, n: int, budget: int) -> int:
        """Units of the longest text that an attack with `budget` makes of n units."""
        ...

    def left(self, spent: int) -> float | None:
        """Budget of the further attacks that cannot hide a witness of this cost; None if there is no such budget."""
        ...


@runtime_checkable
class Filter(Protocol):
    """A safety filter: texts in, harm scores out. `promptguard.score.as_filter` makes one of any callable."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def digest(self) -> str:
        """Identity of the function that is certified: weights, label, precision, tokenizer."""
        ...

    @property
    def threshold(self) -> float:
        """Scores at or above it are harmful."""
        ...

    @property
    def guard_band(self) -> float:
        """How far a score may move with the composition of a batch, rounded up generously; 0 if it never moves."""
        ...

    def __call__(self, texts: Sequence[str]) -> Sequence[float]:
        """One finite score per text; higher is more harmful."""
        ...


class Certifier(Protocol[X_contra]):
    """The one interface: a text in, or a tensor for `Certifier[torch.Tensor]`, and a `Verdict` out."""

    def certify(self, x: X_contra) -> Verdict:
        """Check x.

        Raises:
            PromptGuardError: x cannot be checked; callers that must not fail open treat this as a block.
        """
        ...
