"""Screening: a cheap filter bounds the score from above, and the exact filter decides where the bound leaves room.

In erase-and-check (Kumar et al. 2024) the maximum over the erasures is wanted, and nearly all of them score far below
it. A model in bfloat16 costs half of one in float32 but its scores are off by an amount that is measured, not proven.
So no promise is made about that amount. The screened score is a function of its own,

    F(x) = min(U(x), max(E(x), floor)),    log-odds of U(x) = log-odds of the screen's score + margin,

and the theorem holds for F as for any filter. F(x) <= U(x) by definition, so texts whose U is below what was found
already need no exact score. Where the screen is off by less than the margin, F is E, or the floor's side of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from promptguard.errors import FilterError, InvalidArgument
from promptguard.score.hf import HFFilter
from promptguard.types import Filter

# Log-odds. On `docs/performance.md`'s samples bfloat16 is off by at most 0.34, nearly always by less than 0.15.
MARGIN = 0.5
# Log-odds: how far a bfloat16 score moves with its batch. Packs without padding moved none of the measured scores.
SWAY = 0.02
FLOOR = 1e-3


class ScreenedFilter:
    """A cheap and an exact filter with scores in [0, 1] as one: a `BoundedFilter`.

    Its digest is its own. The mask gradient and other capabilities of the exact filter are not passed on: `exact`
    keeps it.
    """

    def __init__(
        self, exact: Filter, screen: Filter, *, margin: float = MARGIN, sway: float = SWAY, floor: float = FLOOR
    ) -> None:
        """Compose two filters; threshold and name are the exact one's.

        Args:
            exact: E; scores are probabilities.
            screen: the cheap filter; scores are probabilities, its threshold does not matter.
            margin: added to the log-odds of the screen's score; in [0, 100]. The larger, the surer F is E.
            sway: how far the log-odds of the screen's score may move with the composition of a batch, rounded up
                generously; in [0, 100].
            floor: scores up to it come from the screen alone; in [0, 1).

        Raises:
            InvalidArgument: a number is outside its range.
        """
        if not (0 <= margin <= 100 and 0 <= sway <= 100 and 0 <= floor < 1):
            raise InvalidArgument("margin and sway must be in [0, 100] and floor in [0, 1)")
        self.exact = exact
        self.screen = screen
        self.margin = margin
        self.sway = sway
        self.floor = floor
        self.tokenizer = getattr(exact, "tokenizer", None)  # for unit "token"
        self.name = f"{exact.name}, screened"
        self.threshold = exact.threshold
        self.exact_band = exact.guard_band
        # min and max move no more than what they are taken of; a score in [0, 1] by at most a quarter of its log-odds.
        self.guard_band = max(exact.guard_band, sway / 4)

    @classmethod
    def of(
        cls, exact: Filter, dtype: str = "bfloat16", *, margin: float = MARGIN, floor: float = FLOOR
    ) -> ScreenedFilter:
        """A classifier screened by itself in a lower precision.

        Worth it where the processor multiplies bfloat16 faster than float32 (AVX512_BF16, AMX); elsewhere it is right,
        and slower. The model is held twice.

        Args:
            exact: an `HFFilter` in float32 that needs no padding: BERT, DistilBERT or RoBERTa on the CPU.
            dtype: precision of the screen.
            margin: as for the constructor.
            floor: as for the constructor.

        Raises:
            InvalidArgument: no such precision, or another kind of filter: the scores of most models in bfloat16 move
                with the padding of a batch.
        """
        if not isinstance(exact, HFFilter) or exact.pads or (screen := exact.in_precision(dtype)).pads:
            raise InvalidArgument(
                f"filter {exact.name} cannot be screened: only stock BERT, DistilBERT and RoBERTa on the CPU can"
            )
        return cls(exact, screen, margin=margin, floor=floor)

    @property
    def digest(self) -> str:
        """sha256 of the two filters' digests and of the numbers that compose them."""
        parts = [self.exact.digest, self.screen.digest, *(float(x).hex() for x in (self.margin, self.floor))]
        return hashlib.sha256(json.dumps(["screened", *parts]).encode()).hexdigest()

    @property
    def assumes(self) -> tuple[str, ...]:
        """What a certificate says of the scores."""
        return (
            *getattr(self.exact, "assumes", ()),
            f"the score is the smaller of two: the exact one, at least {self.floor!r}, and that of a screen "
            f"(filter {self.screen.digest[:16]}) with {self.margin!r} added to its log-odds, which move by at most "
            f"{self.sway!r}",
        )

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """F, one score per text.

        Raises:
            FilterError: as the two filters, or a score of the screen is not in [0, 1].
        """
        bounds, scores = self.upper_bounds(texts), self.exact_scores(texts)
        return [min(bound, max(score, self.floor)) for bound, score in zip(bounds, scores, strict=True)]

    def upper_bounds(self, texts: Sequence[str]) -> list[float]:
        """The screen's scores with the margin added to their log-odds.

        Raises:
            FilterError: as the screen, or a score is not in [0, 1].
        """
        scores = list(self.screen(texts))
        if not all(0.0 <= score <= 1.0 for score in scores):
            raise FilterError(f"the screen of filter {self.exact.name} gave a score that is not in [0, 1]")
        return [_shifted(score, self.margin) for score in scores]

    def least_bound(self, bound: float) -> float:
        """A bound with the sway taken off its log-odds."""
        return _shifted(bound, -self.sway)

    def exact_scores(self, texts: Sequence[str]) -> list[float]:
        """The exact filter's scores.

        Raises:
            FilterError: as the exact filter.
        """
        return list(self.exact(texts))


def _shifted(probability: float, by: float) -> float:
    """The probability whose log-odds are `by` higher."""
    odds = probability * math.exp(by)
    return odds / (1.0 - probability + odds)
