"""Certified edits of characters in one pass, without sampling: filters that bound their score over all edits.

LipsLev (Abad Rocamora et al. 2025, *Certified Robustness Under Bounded Levenshtein Distance*) bounds a filter's change
per edited character by a constant. The certifier takes any filter that gives such bounds, `promptguard.lipschitz.text`
for one.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol, runtime_checkable

from promptguard.errors import FilterError, InvalidArgument, UnsupportedThreat, discreetly
from promptguard.threat import Threat
from promptguard.types import Certificate, Filter, Label, Verdict
from promptguard.view import VIEW, check_text

_KIND, _UNIT = "edit", "char"
MAX_CHARS = 20_000
MAX_RADIUS = 100


@runtime_checkable
class EditFilter(Filter, Protocol):
    """A filter that bounds its score from below over all edits of a text."""

    def edit_scores(self, text: str, budget: int) -> list[float]:
        """B_0 >= B_1 >= ... >= B_budget: F(y) >= B_k, up to the guard band, for every y within k edited characters.

        An edit inserts, deletes or replaces one code point; invisible ones are free.

        Args:
            text: as it came.
            budget: at least 0.
        """
        ...


class LevenshteinCertifier:
    """Certifies that edited characters do not hide a harmful prompt.

    Theorem: let `certify(P)` give a certificate of radius r. Every text at Levenshtein distance at most r from P, in
    visible code points, is flagged. (Its proof is the filter's: see `promptguard.lipschitz.windows`.)

    Args:
        filter_: one that bounds its score over edits.
        radius: edited characters that are asked about; None reports the largest number, up to 100.
        max_chars: longest text accepted, in code points.

    Raises:
        UnsupportedThreat: the filter does not bound its score over edits.
        InvalidArgument: a radius that is no whole number >= 1, or a threshold or guard band that means nothing.
    """

    method = "levenshtein"

    def __init__(self, filter_: Filter, radius: int | None = None, *, max_chars: int = MAX_CHARS) -> None:
        if not isinstance(filter_, EditFilter):
            raise UnsupportedThreat("edits need a filter that bounds its score over them: see `edit_scores`")
        if radius is not None and (isinstance(radius, bool) or not isinstance(radius, int) or radius < 1):
            raise InvalidArgument(f"the radius must be a whole number >= 1 or None, not {radius!r}")
        if not math.isfinite(filter_.threshold) or not 0 <= filter_.guard_band < math.inf or max_chars < 1:
            raise InvalidArgument("the filter's threshold and guard band must be finite numbers, max_chars at least 1")
        self.filter: EditFilter = filter_
        self._radius = radius
        self._max_chars = max_chars

    def certify(self, x: str) -> Verdict:
        """Check a text.

        Raises:
            InvalidText: x is not text, empty, or too long.
            FilterError: the filter broke its contract.
        """
        check_text(x, self._max_chars)
        budget = MAX_RADIUS if self._radius is None else self._radius
        bounds = discreetly("the filter", lambda: list(self.filter.edit_scores(x, budget)))
        if len(bounds) != budget + 1 or not all(map(math.isfinite, bounds)):
            raise FilterError(f"the filter must give {budget + 1} finite bounds")
        if any(after > before for before, after in pairwise(bounds)):
            raise FilterError("the filter's bounds must descend")
        threshold = self.filter.threshold
        held = [k for k, bound in enumerate(bounds) if bound >= threshold + self.filter.guard_band]
        proven = max(held, default=-1)
        threat = Threat(_KIND, max(proven, 0) if self._radius is None else self._radius, _UNIT)
        return Verdict(
            label=Label.HARMFUL if bounds[0] >= threshold else Label.SAFE,
            score=bounds[0],
            threshold=threshold,
            calls=1,
            checks=1,
            threat=threat,
            certificate=self._certificate(threat) if proven >= threat.budget else None,
        )

    def _certificate(self, threat: Threat) -> Certificate:
        return Certificate(
            label=Label.HARMFUL,
            threat=threat,
            method=self.method,
            confidence=1.0,
            filter=self.filter.digest,
            assumes=(
                f"texts are scored in the {VIEW}, code point by code point",
                f"threshold {self.filter.threshold!r}, guard band {self.filter.guard_band:.3g}",
                "invisible code points are not counted",
                f"texts of at most {self._max_chars} code points",
            ),
        )
