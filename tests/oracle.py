"""The soundness oracle: filters that are hard to defend, and the violations of a certifier's promise.

Two promises are tested for every prompt, by brute force over every attack on a small alphabet:

* the theorem: what the filter flags beyond doubt stays flagged under every attack that the mode undoes;
* the certificate: what `certify` certified stays "harmful" under every attack that the certificate names.

A refusal is no "harmful" verdict: `BudgetExceeded` or `InvalidText` for an attacked text is a violation, because an
owner may allow what was not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from attacks import Pieces, attacks

from promptguard.errors import BudgetExceeded, InvalidText
from promptguard.threat import Threat
from promptguard.types import Certifier, Filter, Label, Verdict
from promptguard.view import canonical


@dataclass(frozen=True)
class TestFilter:
    """A filter from a function of one text; a batch of many lowers each score by `wobble`."""

    __test__ = False

    score: Callable[[str], float]
    threshold: float = 0.5
    guard_band: float = 0.0
    wobble: float = 0.0
    name: str = "test"
    digest: str = "test"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        low = self.wobble if len(texts) > 1 else 0.0
        return [self.score(text) - low for text in texts]


def exact(text: str) -> TestFilter:
    """Flags one text only: the hardest filter, since nothing but exact recovery is flagged."""
    view = canonical(text)
    return TestFilter(lambda candidate: float(candidate == view))


def keyword(present: str, trigger: str) -> TestFilter:
    """Flags texts that hold a keyword and lack a trigger: one added unit fools it."""
    return TestFilter(lambda text: float(present in text and trigger not in text))


def arbitrary(seed: int) -> TestFilter:
    """A function of the text without any structure: flags about half of all texts."""

    def score(text: str) -> float:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()[0] / 256

    return TestFilter(score)


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    promise: str
    prompt: str
    attacked: str
    outcome: str


@dataclass(frozen=True)
class Trial:
    """A certifier, what it undoes, and the attacks to try.

    Attributes:
        certifier: under test.
        filter: its filter.
        threat: what its mode undoes; None when a limit of checks makes that less than the mode's budget.
        alphabet: pieces that an attack may add.
        is_attack: whether a sequence of pieces is an attack at all (glued words may not be one).
        cap: unlimited budgets are tried up to this many units.
    """

    certifier: Certifier
    filter: Filter
    threat: Threat | None
    alphabet: Sequence[str]
    is_attack: Callable[[Pieces], bool] = lambda pieces: True
    cap: int = 3

    def outcome(self, text: str) -> Verdict | str:
        """The verdict, or the name of the refusal."""
        try:
            return self.certifier.certify(text)
        except (BudgetExceeded, InvalidText) as error:
            return type(error).__name__

    def _escapes(self, threat: Threat, prompt: Pieces) -> Iterator[tuple[str, str]]:
        for pieces in sorted(attacks(threat, prompt, self.alphabet, self.cap)):
            if self.is_attack(pieces):
                outcome = self.outcome("".join(pieces))
                label = outcome if isinstance(outcome, str) else outcome.label
                if label != Label.HARMFUL:
                    yield "".join(pieces), str(label)

    def violations(self, prompt: Pieces) -> Iterator[Violation]:
        """Every broken promise for one prompt."""
        text = "".join(prompt)
        if not canonical(text) or not self.is_attack(prompt):
            return
        alone = self.filter([canonical(text)])[0]
        if self.threat and alone >= self.filter.threshold + self.filter.guard_band:
            for attacked, outcome in self._escapes(self.threat, prompt):
                yield Violation("theorem", text, attacked, outcome)
        verdict = self.outcome(text)
        if isinstance(verdict, str) or verdict.certificate is None:
            return
        if verdict.label != Label.HARMFUL or verdict.certificate.label != Label.HARMFUL:
            yield Violation("only harmful is certified", text, text, str(verdict.label))
        for attacked, outcome in self._escapes(verdict.certificate.threat, prompt):
            yield Violation("certificate", text, attacked, outcome)


def first_violation(trials: Iterable[tuple[Trial, Iterable[Pieces]]]) -> Violation | None:
    """The first broken promise over trials and their prompts, or None."""
    found = (v for trial, prompts in trials for prompt in prompts for v in trial.violations(prompt))
    return next(found, None)
