"""Empirical defences of the erase-and-check paper: cheaper, and without a certificate.

* `RandEC` (section 5.1) checks a random sample of the erasures.
* `GreedyEC` (section 5.2) erases, one unit at a time, what raises the filter's score most.
* `GradEC` (section 5.3) follows the gradient of the score by a soft erasure mask on the token embeddings.

All of them score real erased texts, so a "harmful" verdict has a witness; none promises that an attack is found.
"""

from __future__ import annotations

import math
import random
from itertools import islice, pairwise

from promptguard.capabilities import DifferentiableFilter
from promptguard.certify.pieces import Pieces, Runs
from promptguard.certify.scoring import gradient_of, score_all
from promptguard.errors import BudgetExceeded, InvalidArgument, UnsupportedThreat
from promptguard.types import EraseMode, Filter, Label, Units, Verdict, Witness
from promptguard.view import canonical, check_text

MAX_CHARS = 100_000
MAX_ERASURES = 1_000_000
_BATCH = 64
_SATURATED = 30.0  # beyond it a sigmoid is 0 or 1 for all that matters


def _runs_without(kept: list[int], n: int) -> Runs:
    """The half-open ranges of units that are not kept."""
    edges = [-1, *kept, n]
    return tuple((a + 1, b) for a, b in pairwise(edges) if b > a + 1)


def _check_iterations(iterations: int) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise InvalidArgument(f"iterations must be a whole number >= 0, not {iterations!r}")


class _Attempts:
    """Scores erased versions of one text and keeps the best."""

    def __init__(self, filter_: Filter, pieces: Pieces) -> None:
        self._filter = filter_
        self._pieces = pieces
        self._best = -math.inf
        self._runs: Runs = ()
        self._calls = self._checks = 0

    @property
    def flagged(self) -> bool:
        return self._best >= self._filter.threshold

    def score(self, candidates: list[Runs]) -> list[float]:
        """Scores in order; blank candidates score minus infinity, unseen by the filter."""
        views = [canonical(self._pieces.without(runs)) for runs in candidates]
        asked = list(dict.fromkeys(filter(None, views)))
        known = dict(zip(asked, score_all(self._filter, asked), strict=True)) if asked else {}
        scores = [known.get(view, -math.inf) for view in views]
        self._calls += len(asked)
        self._checks += len(candidates)
        for runs, score in zip(candidates, scores, strict=True):
            if score > self._best:
                self._best, self._runs = score, runs
        return scores

    def verdict(self) -> Verdict:
        spent = sum(stop - start for start, stop in self._runs)
        witness = Witness(spent, self._runs, self._pieces.chars(self._runs)) if self.flagged else None
        label = Label.HARMFUL if self.flagged else Label.SAFE
        return Verdict(label, self._best, self._filter.threshold, self._calls, self._checks, witness=witness)


class RandEC:
    """Checks the text and a random share of its erasures.

    Args:
        filter_: the filter.
        mode: the erasures to sample from.
        units: what is erased.
        ratio: share of the other erasures that is checked, in [0, 1]; 0 is the filter alone, 1 is erase-and-check.
        rng: source of randomness. The default is the system's, because an attacker who can predict the sample can
            avoid it; benchmarks pass a seeded one and record the seed.
        max_chars: longest text accepted, in code points.

    Raises:
        InvalidArgument: a ratio outside [0, 1].
    """

    method = "rand-ec"

    def __init__(
        self,
        filter_: Filter,
        mode: EraseMode,
        units: Units,
        ratio: float,
        *,
        rng: random.Random | None = None,
        max_chars: int = MAX_CHARS,
    ) -> None:
        if not 0 <= ratio <= 1:
            raise InvalidArgument(f"the sampling ratio must be in [0, 1], not {ratio!r}")
        self.filter = filter_
        self._mode = mode
        self._units = units
        self._ratio = ratio
        self._rng = rng or random.SystemRandom()
        self._max_chars = max_chars

    def certify(self, x: str) -> Verdict:
        """Check x; the certificate is always None.

        Raises:
            InvalidText: x is not text, empty, or too long.
            BudgetExceeded: more than a million erasures to sample from.
            FilterError: the filter broke its contract.
        """
        pieces = Pieces.of(check_text(x, self._max_chars), self._units)
        total = self._mode.count(len(pieces), MAX_ERASURES)
        if total > MAX_ERASURES:
            raise BudgetExceeded(MAX_ERASURES)
        others = range(1, total)
        chosen = {0, *self._rng.sample(others, math.floor(self._ratio * len(others)))}
        erasures = (e.runs for i, e in enumerate(self._mode.erasures(len(pieces))) if i in chosen)
        attempts = _Attempts(self.filter, pieces)
        size = 1
        while not attempts.flagged and (batch := list(islice(erasures, size))):
            attempts.score(batch)
            size = _BATCH
        return attempts.verdict()


class GreedyEC:
    """Erases the unit whose absence raises the score most, again and again, and stops when the text is flagged.

    Args:
        filter_: the filter.
        units: what is erased.
        iterations: units erased at most; 0 is the filter alone.
        max_chars: longest text accepted, in code points.

    Raises:
        InvalidArgument: iterations that are no whole number >= 0.
    """

    method = "greedy-ec"

    def __init__(self, filter_: Filter, units: Units, iterations: int, *, max_chars: int = MAX_CHARS) -> None:
        _check_iterations(iterations)
        self.filter = filter_
        self._units = units
        self._iterations = iterations
        self._max_chars = max_chars

    def certify(self, x: str) -> Verdict:
        """Check x; the certificate is always None.

        Raises:
            InvalidText: x is not text, empty, or too long.
            FilterError: the filter broke its contract.
        """
        pieces = Pieces.of(check_text(x, self._max_chars), self._units)
        n = len(pieces)
        kept = list(range(n))
        attempts = _Attempts(self.filter, pieces)
        attempts.score([()])
        for _ in range(min(self._iterations, n - 1)):
            if attempts.flagged:
                break
            shorter = [kept[:i] + kept[i + 1 :] for i in range(len(kept))]
            scores = attempts.score([_runs_without(rest, n) for rest in shorter])
            kept = shorter[scores.index(max(scores))]
        return attempts.verdict()


class GradEC:
    """Ascends the score by a soft erasure mask, erases what the mask drops, and checks the text that remains.

    The mask is sigmoid(w), one w per unit, and multiplies the token embeddings. Each step moves w along the gradient,
    scaled by its largest entry because a filter's probability is flat far from its threshold; units whose mask is
    below one half are erased.

    Args:
        filter_: a filter with `mask_gradient`.
        units: what is erased.
        iterations: gradient steps; 0 is the filter alone.
        rate: step of w.
        max_chars: longest text accepted, in code points.

    Raises:
        UnsupportedThreat: the filter has no gradient.
        InvalidArgument: iterations that are no whole number >= 0, or a rate that is not positive.
    """

    method = "grad-ec"

    def __init__(
        self, filter_: Filter, units: Units, iterations: int, *, rate: float = 1.0, max_chars: int = MAX_CHARS
    ) -> None:
        if not isinstance(filter_, DifferentiableFilter):
            raise UnsupportedThreat("GradEC needs a filter with mask_gradient, such as a Hugging Face classifier")
        _check_iterations(iterations)
        if not 0 < rate < math.inf:
            raise InvalidArgument(f"the rate must be a finite number above 0, not {rate!r}")
        self.filter = filter_
        self._units = units
        self._iterations = iterations
        self._rate = rate
        self._max_chars = max_chars

    def certify(self, x: str) -> Verdict:
        """Check x; the certificate is always None.

        Raises:
            InvalidText: x is not text, empty, or too long.
            FilterError: the filter broke its contract.
        """
        pieces = Pieces.of(check_text(x, self._max_chars), self._units)
        n = len(pieces)
        texts = [pieces.text[a:b] for a, b in pairwise(pieces.offsets)]
        weights = [1.0] * n
        attempts = _Attempts(self.filter, pieces)
        attempts.score([()])
        for _ in range(self._iterations):
            if attempts.flagged:
                break
            mask = [1 / (1 + math.exp(-w)) for w in weights]
            gradient = gradient_of(self.filter, texts, mask)
            slope = [g * m * (1 - m) for g, m in zip(gradient, mask, strict=True)]
            steepest = max(map(abs, slope))
            if not steepest > 0:
                break
            steps = [w + self._rate * s / steepest for w, s in zip(weights, slope, strict=True)]
            weights = [max(-_SATURATED, min(_SATURATED, w)) for w in steps]
            attempts.score([_runs_without([i for i, w in enumerate(weights) if w >= 0], n)])
        return attempts.verdict()
