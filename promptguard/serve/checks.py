"""One check: from the bytes of a request, or a model's answer, to a decision. Runs in a thread of the pool."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promptguard.certify.erase_and_check import Cost
from promptguard.errors import BudgetExceeded, InvalidRequest
from promptguard.guard import Decision, Guard, Part, Policy, Reason
from promptguard.guard.chat_request import ChatRequest
from promptguard.guard.reading import read
from promptguard.serve.certifier import price
from promptguard.serve.config import Limits
from promptguard.serve.pool import Ticket, Watched
from promptguard.types import Certifier

if TYPE_CHECKING:
    from promptguard.serve.pictures import PricedPictures

_DIGESTS = 32  # of one request's texts, and of its pictures, in the audit log


@dataclass(frozen=True, slots=True)
class Checked:
    """A decision and what it was about.

    Attributes:
        decision: the guard's.
        cost: of all texts and pictures, counted before inference.
        texts: a digest of each text, the first of them only; empty without a digest function.
        pictures: the same of pictures.
    """

    decision: Decision
    cost: Cost
    texts: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Priced:
    """What a request would cost, the characters of its texts, and the digests of texts and pictures."""

    cost: Cost
    characters: int
    texts: tuple[str, ...]
    pictures: tuple[str, ...]

    def checked(self, decision: Decision) -> Checked:
        return Checked(decision, self.cost, self.texts, self.pictures)


class Checker:
    """A certifier with policy and limits.

    Args:
        certifier: what judges each text.
        policy: what follows.
        limits: what a request may cost.
        images: what judges pictures; without it they are unscannable.
    """

    def __init__(
        self, certifier: Certifier, policy: Policy, limits: Limits, images: PricedPictures | None = None
    ) -> None:
        self.certifier = certifier
        self.policy = policy
        self.images = images
        self._limits = limits

    def check_all(
        self,
        requests: Sequence[ChatRequest],
        ticket: Ticket,
        charge: Callable[[int], None],
        digest: Callable[[str], str] | None = None,
    ) -> list[Checked]:
        """Decide about what came in one request and wants a decision each; together they may cost what one may.

        Args:
            requests: their texts.
            ticket: whether somebody waits.
            charge: called once with the characters that the filter will read, before it reads any; raises to refuse.
                What is over a limit is charged the characters that were read to find out.
            digest: what stands for a text in the audit log.

        Raises:
            InvalidRequest: too many messages or parts.
            Abandoned: nobody waits.
        """
        self._count([message for request in requests for message in request.messages])
        priced: list[_Priced] = []
        spent = Cost(0, 0)
        for request in requests:
            priced.append(self._priced(request, ticket, digest))
            spent = _sum(spent, priced[-1].cost)
            if spent.checks > self._limits.checks or spent.characters > self._limits.characters:
                charge(sum(one.characters for one in priced))  # the rest is not read: that would cost more
                unread = [_Priced(Cost(0, 0), 0, (), ())] * (len(requests) - len(priced))
                return [one.checked(self._over_budget()) for one in (*priced, *unread)]
        charge(sum(one.cost.characters or one.characters for one in priced))
        guard = Guard(Watched(self.certifier, ticket), self.policy, self.images)
        decisions = [guard.check(list(request.messages), context=request.context) for request in requests]
        return [one.checked(decision) for decision, one in zip(decisions, priced, strict=True)]

    def _priced(self, request: ChatRequest, ticket: Ticket, digest: Callable[[str], str] | None) -> _Priced:
        reading = read(list(request.messages), self.policy, request.context, with_pictures=self.images is not None)
        pieces, pictures = reading.pieces, reading.pictures
        cost = Cost(0, 0)
        if len(pieces) <= (self.policy.max_texts or len(pieces)):
            for piece in pieces:
                ticket.check()
                cost = _sum(cost, price(self.certifier, piece.text))
        if self.images is not None and len(pictures) <= self.images.max_pictures:
            for picture in pictures:
                ticket.check()
                cost = _sum(cost, self.images.price(picture.data))
        texts = tuple(digest(piece.text) for piece in pieces[:_DIGESTS]) if digest else ()
        shown = tuple(digest(hashlib.sha256(one.data).hexdigest()) for one in pictures[:_DIGESTS]) if digest else ()
        return _Priced(cost, sum(len(piece.text) for piece in pieces), texts, shown)

    def _count(self, messages: Sequence[object]) -> None:
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        if len(messages) > self._limits.messages or parts > self._limits.parts:
            raise InvalidRequest(f"more than {self._limits.messages} messages or {self._limits.parts} parts")

    def _over_budget(self) -> Decision:
        part = Part("input", Reason.OVER_BUDGET, error=BudgetExceeded.__name__)
        return Decision(self.policy.on_over_budget, Reason.OVER_BUDGET, (part,), None, part.error, 0.0)


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(one.checks + other.checks, one.characters + other.characters)


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


def audit_line(checked: Checked) -> dict[str, Any]:
    """A check in the audit log: numbers, names and digests."""
    decision = checked.decision
    where = decision.parts[-1].where if decision.parts and decision.reason is not Reason.ALLOWED else None
    certificate = decision.certificate
    return {
        "action": str(decision.action),
        "reason": str(decision.reason),
        "error": decision.error,
        "where": where,
        "checks": decision.checks,
        "calls": decision.calls,
        "milliseconds": round(decision.milliseconds, 3),
        "cost": {"checks": checked.cost.checks, "characters": checked.cost.characters},
        "certificate": certificate_line(decision),
        "filter": certificate.filter if certificate else None,
        "texts": list(checked.texts),
        "pictures": list(checked.pictures),
    }


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
