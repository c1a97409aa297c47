"""Certifiers that do as they are told, for tests of the guard and of what is built on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from promptguard.threat import Threat
from promptguard.types import Certificate, Label, Verdict

CANARY = "canary-7f3a bomb"
THREAT = Threat("suffix", 3, "word")


@dataclass
class Words:
    """Flags texts that contain a word; remembers what it was asked."""

    word: str = "bomb"
    seen: list[str] = field(default_factory=list)

    def certify(self, x: str) -> Verdict:
        self.seen.append(x)
        if self.word not in x:
            return Verdict(Label.SAFE, 0.1, 0.5, calls=2, checks=3, threat=THREAT)
        certificate = Certificate(Label.HARMFUL, THREAT, "double", 1.0, "digest")
        return Verdict(Label.HARMFUL, 0.9, 0.5, calls=1, checks=1, threat=THREAT, certificate=certificate)


@dataclass
class Does:
    """Returns, or raises, what it is given, for texts that contain a word; other texts are safe."""

    outcome: Any
    word: str = ""

    def certify(self, x: str) -> Verdict:
        if self.word not in x:
            return Words("never").certify(x)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        verdict: Verdict = self.outcome
        return verdict


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def text(value: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": value}


SAFE = Words("never").certify("x")
