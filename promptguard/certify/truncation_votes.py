"""Votes of the suffix truncations: between erase-and-check and a majority, without chance.

Kumar et al. 2024 (*Certifying LLM Safety against Adversarial Prompting*, appendix on smoothing) compare erase-and-check
with the majority of the same d + 1 truncations. Both belong to one family: flag x if at least tau of the truncations
that drop 0, 1, ..., d units from its end are flagged.

    Theorem. Let tau of the truncations of P that drop at most s units be flagged, s <= d. Then P with up to d - s units
    appended is flagged.

Proof. Dropping the j <= d - s appended units gives P back, so the truncations of P that drop up to s units are among
those of the attacked text, which drop up to s + j <= d.

tau = 1 is erase-and-check in suffix mode; tau = ceil((d + 1) / 2) is the majority, which certifies half of d at most.
In between, a false alarm needs tau hits, and d + 1 - tau units are certified where all truncations are flagged. A text
of fewer than tau units is never flagged. (The published code claims min(hits - 1, d / 2) even for texts that have no
majority.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from promptguard.capabilities import PrefixFilter
from promptguard.certify.pieces import Pieces
from promptguard.certify.scoring import prefixes_all, score_all
from promptguard.errors import InvalidArgument, TextTooLong
from promptguard.threat import Threat
from promptguard.types import Certificate, Filter, Label, Units, Verdict, Witness
from promptguard.view import VIEW, check_text, prefix_views

MAX_CHARS = 100_000
MAX_WORK = 5_000_000


class TruncationVotes:
    """Certifies that text appended to a harmful prompt does not hide it, with fewer false alarms than erase-and-check.

    Theorem: see the module. The flags of a certificate are the guard band above the threshold.

    Args:
        filter_: the filter F; one that scores all prefixes in one pass makes this one call.
        units: what is dropped and what the budget counts.
        budget: d, units dropped at most; `math.inf` drops any number, and certifies any number.
        tau: truncations that must be flagged, from 1 to d + 1.
        batch_size: truncations per call of a filter without that capability.
        max_chars: longest text accepted, in code points.
        max_work: code points that the filter reads for a text, None for no limit.

    Raises:
        InvalidArgument: a budget that is no whole number >= 0 and not infinite, tau or a size outside its range, or a
            filter whose threshold or guard band means nothing.
    """

    method = "truncation-votes"

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        budget: float,
        tau: int,
        *,
        batch_size: int = 64,
        max_chars: int = MAX_CHARS,
        max_work: int | None = MAX_WORK,
    ) -> None:
        sizes = [batch_size, max_chars, *([max_work] if max_work is not None else [])]
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InvalidArgument("batch_size, max_chars and max_work must be whole numbers, at least 1")
        if isinstance(budget, bool) or not (budget == math.inf or (isinstance(budget, int) and budget >= 0)):
            raise InvalidArgument(f"the budget must be a whole number >= 0, or infinite, not {budget!r}")
        if isinstance(tau, bool) or not isinstance(tau, int) or not 1 <= tau <= budget + 1:
            raise InvalidArgument(f"tau must be a whole number from 1 to budget + 1, not {tau!r}")
        if not math.isfinite(filter_.threshold) or not 0 <= filter_.guard_band < math.inf:
            raise InvalidArgument("the filter's threshold and guard band must be finite numbers, the band not negative")
        self.filter = filter_
        self.units = units
        self.budget = budget
        self.tau = tau
        self._batch_size = batch_size
        self._max_chars = max_chars
        self._max_work = max_work

    def threat(self, budget: float | None = None) -> Threat:
        """Suffixes of at most this many units; default, of the largest number that can be certified, d + 1 - tau."""
        return Threat("suffix", self.budget + 1 - self.tau if budget is None else budget, self.units.name)

    def certify(self, x: str) -> Verdict:
        """Count the truncations of x that are flagged; the score is the tau-th largest.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all truncations.
            FilterError: the filter broke its contract.
        """
        pieces = Pieces.of(check_text(x, self._max_chars), self.units)
        text, ends = prefix_views(pieces.cut())
        ends = [0, *ends][::-1][: int(min(self.budget, len(pieces))) + 1]  # by how many units are dropped
        distinct = sorted({end for end in ends if end})
        work = len(text) if isinstance(self.filter, PrefixFilter) else sum(distinct)
        if self._max_work is not None and work > self._max_work:
            raise TextTooLong(len(x), len(x) * self._max_work // work, "max_work")
        known = dict(self._scores(text, distinct))
        scores = [known.get(end, -math.inf) for end in ends]
        sure = self._last_vote(scores, self.filter.threshold + self.filter.guard_band)
        last = self._last_vote(scores, self.filter.threshold) if sure is None else sure
        runs = ((len(pieces) - last, len(pieces)),) if last else ()
        return Verdict(
            label=Label.SAFE if last is None else Label.HARMFUL,
            score=self._score(scores),
            threshold=self.filter.threshold,
            calls=1 if isinstance(self.filter, PrefixFilter) else len(distinct),
            checks=len(scores),
            threat=self.threat(),
            certificate=None if sure is None else self._certificate(self.budget - sure),
            witness=None if last is None else Witness(last, runs, pieces.chars(runs)),
        )

    def _scores(self, text: str, ends: list[int]) -> Iterator[tuple[int, float]]:
        """F of the prefixes that end there."""
        if isinstance(self.filter, PrefixFilter):
            yield from zip(ends, prefixes_all(self.filter, [text], [ends])[0], strict=True)
            return
        rest = iter(ends)
        while batch := list(islice(rest, self._batch_size)):
            yield from zip(batch, score_all(self.filter, [text[:end] for end in batch]), strict=True)

    def _last_vote(self, scores: list[float], threshold: float) -> int | None:
        """Units dropped by the tau-th truncation that is flagged; None if fewer are."""
        flagged = (dropped for dropped, score in enumerate(scores) if score >= threshold)
        return next(islice(flagged, self.tau - 1, None), None)

    def _score(self, scores: list[float]) -> float:
        """The tau-th largest; where a text has fewer truncations, the least one, which does not flag it."""
        seen = sorted((score for score in scores if score > -math.inf), reverse=True)
        below = math.nextafter(self.filter.threshold, -math.inf)
        return seen[self.tau - 1] if self.tau <= len(seen) else min(seen[-1], below)

    def _certificate(self, budget: float) -> Certificate:
        return Certificate(
            label=Label.HARMFUL,
            threat=self.threat(budget),
            method=self.method,
            confidence=1.0,
            filter=self.filter.digest,
            assumes=(
                f"filter {self.filter.name}, threshold {self.filter.threshold!r}, guard band "
                f"{self.filter.guard_band!r}",
                f"texts are scored in the {VIEW}; blank ones are not harmful",
                f"unit {self.units.name} covers {self.units.covers}",
                f"{self.tau} of the truncations by up to {self.budget} units must be flagged",
                *getattr(self.filter, "assumes", ()),
                f"texts of more than {self._max_chars} code points, {self._max_work or 'any number of'} over all "
                "truncations, or with NUL bytes or lone surrogates, are refused",
            ),
        )
