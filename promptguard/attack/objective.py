"""What attacks minimise: the score of a bare filter, or a certifier's own verdict (adaptive attacks)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from promptguard.attack.base import Outcome
from promptguard.capabilities import TokenAccess, TokenGradientFilter
from promptguard.certify.scoring import score_all
from promptguard.errors import InvalidArgument, PromptGuardError
from promptguard.types import Certifier, Filter, Label
from promptguard.view import canonical

_BY_ITSELF = 1.0


class FilterObjective:
    """A filter without any defence: a text gets through when its canonical view scores below a threshold.

    Args:
        filter_: the filter; its token gradients are used if it has them.
        threshold: scores below it get through; default the filter's own. A lower one makes texts that are far from the
            filter's threshold, which stand a better chance against defences built on it (transfer attacks).

    Raises:
        InvalidArgument: a threshold that is no finite number.
    """

    def __init__(self, filter_: Filter, *, threshold: float | None = None) -> None:
        self._filter = filter_
        self._threshold = filter_.threshold if threshold is None else threshold
        if not math.isfinite(self._threshold):
            raise InvalidArgument("the threshold must be a finite number")
        self.tokens = tokens_of(filter_)

    def __call__(self, texts: Sequence[str]) -> list[Outcome]:
        """One filter score per text.

        Raises:
            FilterError: the filter broke its contract.
        """
        scores = score_all(self._filter, [canonical(text) for text in texts])
        return [Outcome(score, score - self._threshold, score < self._threshold) for score in scores]


class CertifierObjective:
    """A certifier's own verdict: a text gets through when its label is not "harmful".

    The margin is the verdict's score above its threshold, and one more for texts that are flagged without any erasure.
    Their score is not that of an erasure, and is lower just above the threshold than that of a better text whose
    erasures are flagged: without the step a search would stop in front of the threshold.

    Token gradients are those of the filter at the attacked text, as the verdict itself has none; every candidate that
    they propose is judged by the certifier.

    Args:
        certifier: the guard under attack.
        filter_: the filter whose token gradients guide the search; default the certifier's own `filter`.
        breaking: errors that count as getting through. All other errors of promptguard are refusals: callers that must
            not fail open block such a text.
    """

    def __init__(
        self,
        certifier: Certifier,
        *,
        filter_: Filter | None = None,
        breaking: tuple[type[PromptGuardError], ...] = (),
    ) -> None:
        self._certifier = certifier
        self._breaking = breaking
        self.tokens = tokens_of(getattr(certifier, "filter", None) if filter_ is None else filter_)

    def __call__(self, texts: Sequence[str]) -> list[Outcome]:
        """One verdict per text."""
        return [self._outcome(text) for text in texts]

    def _outcome(self, text: str) -> Outcome:
        try:
            verdict = self._certifier.certify(text)
        except PromptGuardError as error:
            return Outcome.refusal(broken=isinstance(error, self._breaking))
        margin = verdict.score - verdict.threshold
        if verdict.witness is not None and verdict.witness.spent == 0:
            margin += _BY_ITSELF
        return Outcome(verdict.score, margin, verdict.label is not Label.HARMFUL, verdict.calls)


def tokens_of(filter_: object) -> TokenAccess | None:
    """The token access of a filter that has one."""
    return filter_.tokens if isinstance(filter_, TokenGradientFilter) else None
