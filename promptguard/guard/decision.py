"""What a guard decided, and on what grounds; nothing in it quotes the checked text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptguard.guard.policy import Action, Reason
from promptguard.types import Certificate, Verdict


@dataclass(frozen=True, slots=True)
class Part:
    """One text or picture of a request and what became of it.

    Attributes:
        where: which one: "text", "messages[2]" (the whole turn), "messages[2].content[0]", "conversation" (the
            turns joined), "context", or "input" when the request as a whole is the trouble. Never a key or value of
            the request.
        reason: ALLOWED, or why it is not clean.
        verdict: what the certifier said, or None if it never did.
        error: type name of the error, or None.
        is_picture: whether it is a picture.
    """

    where: str
    reason: Reason
    verdict: Verdict | None = None
    error: str | None = None
    is_picture: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "where": self.where,
            "reason": str(self.reason),
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "error": self.error,
            "is_picture": self.is_picture,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """A guard's answer for one request.

    Keep it on your side: scores and witnesses help whoever tunes an attack against the filter.

    Attributes:
        action: what happens to the request.
        reason: why; under a policy that allows a finding, the first finding.
        parts: the texts, then the pictures, that were looked at, in order. Checking stops at the first block, so the
            last one is then the blocking part and later ones are not listed.
        certificate: the certificate of the blocking part, None if the request is allowed or nothing is proved.
            It speaks of the one text at `where`, not of the request: when that text is attacked as the certificate's
            threat describes, it stays harmful. So any request in which the attacked text is again a whole text, a
            whole turn or the whole joined conversation is not allowed by this guard (unless its policy allows a
            finding), whatever else is in that request. For "conversation" the threat counts edits of the joined
            text: an edit spread over several turns counts as what it does there. Of a picture it speaks as that
            picture is resized for its classifier: a request with any picture that resizes to within the threat's norm
            of it is not allowed.
            When the certifier composes others, it is the one with the largest reach; `certificates` has all.
        error: type name of the error behind reason "error" or "over_budget", else None.
        milliseconds: wall time of the check.
    """

    action: Action
    reason: Reason
    parts: tuple[Part, ...]
    certificate: Certificate | None
    error: str | None
    milliseconds: float

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return self.action is Action.ALLOW

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """Every certificate of the blocking part, `certificate` first; empty if the request is allowed."""
        verdict = self.parts[-1].verdict if self.parts and not self.allowed else None
        return verdict.certificates if verdict else ()

    @property
    def calls(self) -> int:
        """Texts, and noised pictures, that the filters scored for this request."""
        return sum(part.verdict.calls for part in self.parts if part.verdict)

    @property
    def checks(self) -> int:
        """Erasures and votes that these calls cover."""
        return sum(part.verdict.checks for part in self.parts if part.verdict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; it contains no part of the checked text."""
        return {
            "action": str(self.action),
            "allowed": self.allowed,
            "reason": str(self.reason),
            "error": self.error,
            "certificate": self.certificate.to_dict() if self.certificate else None,
            "certificates": [certificate.to_dict() for certificate in self.certificates],
            "calls": self.calls,
            "checks": self.checks,
            "milliseconds": self.milliseconds,
            "parts": [part.to_dict() for part in self.parts],
        }
