"""What a benchmark measures: a certifier, and what `run.json` says of it."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from typing import Any, Self

from promptguard.errors import FilterError, PromptGuardError
from promptguard.evaluate.prompts import Prompt
from promptguard.threat import Threat
from promptguard.types import Certifier, Label, Verdict

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """A certifier to be measured.

    Attributes:
        certifier: answers for each prompt.
        about: what `run.json` says of it.
        rng: the certifier's source of randomness, seeded anew for each prompt; None if it uses none.
        seed: the run's seed.
    """

    certifier: Certifier
    about: dict[str, Any]
    rng: random.Random | None = None
    seed: int = 0

    @classmethod
    def of(
        cls,
        certifier: Certifier,
        name: str,
        settings: dict[str, Any],
        *,
        rng: random.Random | None = None,
        seed: int = 0,
        fast: bool = False,
    ) -> Self:
        """Describe a certifier.

        Args:
            certifier: with the attributes that ours have: `filter`, `method`, `threat`; a composed one has `members`.
            name: for people.
            settings: all that decides a row beside filter and threshold, as JSON has it.
            rng: the very source of randomness that the certifier holds.
            seed: of the run; kept only with a source of randomness.
            fast: scores may be less than the maximum over the erasures; known of erase-and-check that stops early.
        """
        filter_ = getattr(certifier, "filter", None)
        threat = full_threat(certifier)
        # A composed certifier's rows hold margins: harmful from 0 on.
        threshold = filter_.threshold if filter_ else 0.0
        is_fast = fast or _stops_early(certifier)
        used = {"seed": None if rng is None else seed, "fast": is_fast, "threshold": threshold}
        about = {
            "certifier": name,
            "method": getattr(certifier, "method", name),
            "settings": settings | used,
            "filter": filter_.digest if filter_ else _digests(certifier),
            "filter_name": filter_.name if filter_ else name,
            "threshold": threshold,
            "guard_band": getattr(filter_, "guard_band", None),
            "threat": threat.to_dict() if threat else None,
        }
        return cls(certifier, about, rng, seed)

    def measure(self, prompt: Prompt) -> Row:
        """The row of one prompt; a text that cannot be checked abstains.

        Raises:
            FilterError: the filter is broken, which no row should hide.
        """
        seed = None if self.rng is None else prompt_seed(self.seed, prompt.id)
        if self.rng is not None:
            self.rng.seed(seed)
        start = time.perf_counter()
        try:
            verdict = self.certifier.certify(prompt.text)
        except FilterError:
            raise
        except PromptGuardError:
            verdict = None
        return _row(prompt, verdict, 1000 * (time.perf_counter() - start), seed)


def prompt_seed(seed: int, prompt: str) -> int:
    """The seed of one prompt's row: it depends on the run's seed and the prompt's id, not on the order of prompts."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:4])


def full_threat(certifier: Certifier) -> Threat | None:
    """What a certificate of the certifier covers at most; None for one that has none, or several."""
    threat = getattr(certifier, "threat", None)
    found = threat() if callable(threat) else threat
    return found if isinstance(found, Threat) else None


def _stops_early(certifier: Any) -> bool:
    """Whether the certifier, or a member of it, says that it stops before all erasures are scored."""
    members = getattr(certifier, "members", ())
    return getattr(certifier, "early_stop", False) is True or any(map(_stops_early, members))


def _digests(certifier: Any) -> str:
    """The digests of the filters inside a composed certifier."""
    return "+".join(member.filter.digest for member in getattr(certifier, "members", ()))


def _row(prompt: Prompt, verdict: Verdict | None, milliseconds: float, seed: int | None) -> Row:
    row: Row = {"id": prompt.id, "source": prompt.source, "label": prompt.label}
    if verdict is None:  # refused: it could not be checked, which blocks
        blocked = {"verdict": str(Label.ABSTAIN), "score": None, "certificate": None, "checks": 0, "ms": None}
        return row | blocked | {"seed": seed}
    certificate = verdict.certificate.to_dict() if verdict.certificate else None
    return row | {
        "verdict": str(verdict.label),
        "score": _score(verdict),
        "certificate": certificate and {key: certificate[key] for key in ("label", "threat", "method", "confidence")},
        "checks": verdict.checks,
        "ms": round(milliseconds, 3),
        "seed": seed,
    }


def _score(verdict: Verdict) -> float:
    """The verdict's score; of a composed verdict, how far its members are above their thresholds at most."""
    if not verdict.parts:
        return verdict.score
    return max(part.score - part.threshold for part in verdict.parts)
