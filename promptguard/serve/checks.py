"""One check: from the bytes of a request, or a model's answer, to a decision. Runs in a thread of the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from promptguard.certify.erase_and_check import Cost
from promptguard.errors import BudgetExceeded, InvalidRequest
from promptguard.guard import Decision, Guard, Part, Policy, Reason
from promptguard.guard.chat_request import ChatRequest
from promptguard.guard.reading import read
from promptguard.serve.certifier import price
from promptguard.serve.config import Limits
from promptguard.serve.pool import Ticket, Watched
from promptguard.types import Certifier

_DIGESTS = 32  # of one request's texts, in the audit log


@dataclass(frozen=True, slots=True)
class Checked:
    """A decision and what it was about.

    Attributes:
        decision: the guard's.
        cost: of all texts, counted before inference.
        texts: a digest of each text, the first of them only; empty without a digest function.
    """

    decision: Decision
    cost: Cost
    texts: tuple[str, ...] = ()


class Checker:
    """A certifier with policy and limits.

    Args:
        certifier: what judges each text.
        policy: what follows.
        limits: what a request may cost.
    """

    def __init__(self, certifier: Certifier, policy: Policy, limits: Limits) -> None:
        self.certifier = certifier
        self.policy = policy
        self._limits = limits

    def check(
        self,
        request: ChatRequest,
        ticket: Ticket,
        charge: Callable[[int], None],
        digest: Callable[[str], str] | None = None,
    ) -> Checked:
        """Decide about a request.

        Args:
            request: its texts.
            ticket: whether somebody waits.
            charge: called with the characters that the filter will read, before it reads any; raises to refuse.
            digest: what stands for a text in the audit log.

        Raises:
            InvalidRequest: too many messages or parts.
            Abandoned: nobody waits.
        """
        messages = list(request.messages)
        self._count(messages)
        pieces = read(messages, self.policy, request.context).pieces
        cost = Cost(0, 0)
        if len(pieces) <= (self.policy.max_texts or len(pieces)):
            for piece in pieces:
                ticket.check()
                one = price(self.certifier, piece.text)
                cost = Cost(cost.checks + one.checks, cost.characters + one.characters)
        texts = tuple(digest(piece.text) for piece in pieces[:_DIGESTS]) if digest else ()
        if cost.checks > self._limits.checks or cost.characters > self._limits.characters:
            return Checked(self._over_budget(), cost, texts)
        charge(cost.characters)
        guard = Guard(Watched(self.certifier, ticket), self.policy)
        return Checked(guard.check(messages, context=request.context), cost, texts)

    def _count(self, messages: Sequence[object]) -> None:
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        if len(messages) > self._limits.messages or parts > self._limits.parts:
            raise InvalidRequest(f"more than {self._limits.messages} messages or {self._limits.parts} parts")

    def _over_budget(self) -> Decision:
        part = Part("input", Reason.OVER_BUDGET, error=BudgetExceeded.__name__)
        return Decision(self.policy.on_over_budget, Reason.OVER_BUDGET, (part,), None, part.error, 0.0)


def free(_work: int) -> None:
    """Charges nobody: for answers, whose request was charged."""


def certificate_line(decision: Decision) -> str:
    """The certificate as a header: what may be done to the text, or "none"."""
    if decision.certificate is None:
        return "none"
    threat = decision.certificate.threat.to_dict()
    known = {name: threat[name] for name in ("kind", "budget", "unit")}
    return "; ".join(f"{name}={value}" for name, value in known.items()) + (
        f"; confidence={decision.certificate.confidence!r}"
    )


def summary(decision: Decision) -> dict[str, Any]:
    """What an error or a refusal says of a decision: why, and what is proved."""
    return {
        "reason": str(decision.reason),
        "certificate": decision.certificate.to_dict() if decision.certificate else None,
    }


def shown(decision: Decision, expose_scores: bool) -> dict[str, Any]:
    """A decision as clients see it; what helps whoever tunes an attack only where the owner wants it."""
    about = decision.to_dict()
    return about if expose_scores else _without(_TELLING, about)


_TELLING = frozenset({"score", "witness", "calls", "checks", "milliseconds"})


def _without(names: frozenset[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(names, item) for key, item in value.items() if key not in names}
    return [_without(names, item) for item in value] if isinstance(value, list) else value
