"""ACES: a certified selector decides for each image between a smoothed and an accurate model.

Horvath et al. 2022, *Robust and Accurate: Compositional Architectures for Randomized Smoothing*. Where the selector
says so the certified model answers, elsewhere the core model, which is more accurate and certifies less or nothing.

    Theorem. Let the selector's choice be certified within r, and the chosen model's label within s. Then the label of
    the composition is certified within min(r, s).

Within r the choice stays, so the same model answers; within s its label stays. Both hold with probability at least
1 - (alpha_1 + alpha_2). A certificate of the answering model alone is none: an attack may change the choice.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from promptguard.errors import UnsupportedThreat
from promptguard.threat import L2, Threat
from promptguard.types import Certificate, Certifier, Label, Verdict

_METHOD = "aces"


class CertifiedSelection:
    """A composition of two certifiers of images by a third.

    Args:
        selector: a certifier with two classes; class `chosen` picks `certified`, any other answer picks `core`.
        certified: answers where it is picked.
        core: answers elsewhere.
        chosen: the selector's class that picks `certified`; Label.HARMFUL for a selector with merged classes.
    """

    def __init__(
        self,
        selector: Certifier[torch.Tensor],
        certified: Certifier[torch.Tensor],
        core: Certifier[torch.Tensor],
        chosen: int | Label = 1,
    ) -> None:
        self._selector, self._chosen = selector, chosen
        self._certified, self._core = certified, core

    def certify(self, x: torch.Tensor) -> Verdict:
        """The answering model's verdict, with a certificate within the smaller of the two radii.

        An abstaining selector has no choice to keep, so the composition abstains.

        Raises:
            PromptGuardError: as the three certifiers do.
            UnsupportedThreat: their certificates are of different or other threats than l2.
        """
        choice = self._selector.certify(x)
        if choice.label is Label.ABSTAIN:
            return replace(choice, threat=None, certificate=None, parts=())
        answer = (self._certified if choice.label == self._chosen else self._core).certify(x)
        return replace(
            answer,
            calls=choice.calls + answer.calls,
            checks=choice.checks + answer.checks,
            threat=_smaller(choice.threat, answer.threat),
            certificate=_both(choice.certificate, answer.certificate),
            degraded=choice.degraded or answer.degraded,
            parts=(),  # a part's own certificate says nothing of the composition
        )


def _both(choice: Certificate | None, answer: Certificate | None) -> Certificate | None:
    if choice is None or answer is None:
        return None
    threat = _smaller(choice.threat, answer.threat)
    if threat is None:
        raise UnsupportedThreat("a selection needs l2 certificates of the same unit")
    wrong = (1 - choice.confidence) + (1 - answer.confidence)
    return Certificate(
        answer.label,
        threat,
        _METHOD,
        max(0.0, 1 - wrong),
        f"{choice.filter}:{answer.filter}",
        (f"the selector stays within {choice.threat.budget!r}", *choice.assumes, *answer.assumes),
        choice.degraded or answer.degraded,
        choice.may_abstain or answer.may_abstain,
    )


def _smaller(choice: Threat | None, answer: Threat | None) -> Threat | None:
    """What both undo; None unless both are of l2 and the same unit."""
    if choice is None or answer is None or not choice.kind == answer.kind == L2 or choice.unit != answer.unit:
        return None
    return min(choice, answer, key=lambda threat: threat.budget)
