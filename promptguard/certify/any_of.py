"""Any of several certifiers: harmful as soon as one of them says so, and every certificate is kept.

    Theorem. Let a member certify that x stays harmful under a threat, and let y be a text that the threat reaches from
    x. Then `AnyOf` says "harmful" of y, or refuses y as `InvalidText`.

Proof. The certificate says that the member flags y or refuses it as `InvalidText`. If it flags y, so does `AnyOf`,
whatever the others do: what another member raises is kept until all have answered, and dropped when one has flagged. If
it refuses y, `AnyOf` flags y through another member or raises `InvalidText`, which goes before other errors.

So a member's certificate, word for word, is a certificate of the composed procedure. That is for deterministic members:
a sampled one may abstain on y, and then `AnyOf` abstains or raises, which blocks too; "safe" is said of y with
probability alpha at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from promptguard.errors import FilterError, InvalidArgument, InvalidText, PromptGuardError, discreetly
from promptguard.threat import Threat
from promptguard.types import Certificate, Certifier, Label, Verdict


class AnyOf:
    """Flags what any member flags; "safe" takes every member's word.

    Theorem: each certificate of a member stays true of the whole (see the module). Certificates of confidence 1 are
    all true at once. Sampled ones hold one by one: to trust all that several sampled members say with error alpha,
    give each member alpha divided by their number (Bonferroni).

    The verdict lists the members' verdicts in `parts`, in order; members that raised, or were not asked, have none.
    Scores of different filters cannot be compared, so everything else but the counts comes from one *deciding* member:

    * harmful: the member with the certificate of the largest reach (see `furthest`), else the first that flags;
    * abstain, when no member flags and one abstains: the first that abstains;
    * safe: the member whose score is closest below its own threshold.

    Args:
        certifiers: the members, at least one. Cheap ones first if `stop_early`.
        stop_early: ask no further member once one has flagged the text with a certificate.

    Raises:
        InvalidArgument: there is no member, or something that cannot certify.
    """

    method = "any-of"

    def __init__(self, certifiers: Iterable[Certifier], *, stop_early: bool = False) -> None:
        self.members = tuple(certifiers)
        if not self.members or not all(callable(getattr(member, "certify", None)) for member in self.members):
            raise InvalidArgument("AnyOf needs at least one certifier, and nothing that is none")
        self._stop_early = stop_early

    def certify(self, x: str) -> Verdict:
        """Ask the members about x.

        Raises:
            InvalidText: no member flagged x, and one refuses it as a text.
            PromptGuardError: no member flagged x, and one could not tell; the first such error. An error that is not
                ours, or an answer that is no verdict, counts as a `FilterError` of that member.
        """
        parts: list[Verdict] = []
        errors: list[PromptGuardError] = []
        for member in self.members:
            try:
                parts.append(_ask(member, x))
            except PromptGuardError as error:
                errors.append(error)
                continue
            if self._stop_early and _proof(parts[-1]):
                break
        if errors and not any(part.label is Label.HARMFUL for part in parts):
            # A member that may refuse y by its certificate must be seen to refuse it: see the proof.
            raise next((error for error in errors if isinstance(error, InvalidText)), errors[0])
        decider = _deciding(parts)
        return replace(
            decider,
            certificate=_proof(decider),  # "safe" of one member would not be "safe" of all
            calls=sum(part.calls for part in parts),
            checks=sum(part.checks for part in parts),
            degraded=any(part.degraded for part in parts),
            parts=tuple(parts),
        )


def furthest(certificates: Sequence[Certificate]) -> Certificate:
    """The certificate with the largest reach, where that can be told; at least one is given.

    Deterministic ones go before sampled ones, unlimited budgets before limited ones, and budget 0 comes last. Among
    the rest the first counts, unless a later one covers its threat: no smaller budget or blocks, the rest equal.
    Threats of different kinds or units are not weighed against each other.
    """
    best = max(map(_rank, certificates))
    first, *others = (certificate for certificate in certificates if _rank(certificate) == best)
    for other in others:
        if other.threat != first.threat and _covers(other.threat, first.threat):
            first = other
    return first


def _rank(certificate: Certificate) -> tuple[bool, bool, bool]:
    budget = certificate.threat.budget
    return certificate.confidence == 1.0, math.isinf(budget), budget > 0


def _covers(large: Threat, small: Threat) -> bool:
    same = replace(large, budget=0, blocks=1) == replace(small, budget=0, blocks=1)
    return same and large.budget >= small.budget and large.blocks >= small.blocks


def _ask(member: Certifier, x: str) -> Verdict:
    """A member's verdict, if it is one.

    Raises:
        PromptGuardError: the member's own error.
        FilterError: it raised something else, or its answer means nothing.
    """
    verdict: object = discreetly("a member of AnyOf", lambda: member.certify(x))
    if not isinstance(verdict, Verdict) or not isinstance(verdict.label, Label):
        raise FilterError("a member of AnyOf returned something that is not a verdict")
    # The composed score may be another member's, so nothing behind this place would notice.
    if verdict.label is Label.SAFE and not (isinstance(verdict.score, int | float) and math.isfinite(verdict.score)):
        raise FilterError("a member of AnyOf called a text safe without a finite score")
    return verdict


def _proof(part: Verdict) -> Certificate | None:
    """What proves that the part's text stays harmful."""
    certificate = part.certificate if part.label is Label.HARMFUL else None
    return certificate if certificate and certificate.label is Label.HARMFUL else None


def _deciding(parts: Sequence[Verdict]) -> Verdict:
    harmful = [part for part in parts if part.label is Label.HARMFUL]
    if proofs := [proof for part in harmful if (proof := _proof(part))]:
        best = furthest(proofs)
        return next(part for part in harmful if _proof(part) is best)
    if harmful:
        return harmful[0]
    abstained = [part for part in parts if part.label is Label.ABSTAIN]
    return abstained[0] if abstained else min(parts, key=lambda part: part.threshold - part.score)
