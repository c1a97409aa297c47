"""Randomized smoothing of text: what all its kinds of noise share.

    Definition. A kernel makes a random text z of a text x. mu(x) = P[F flags z]; the smoothed filter flags x when
    mu(x) > eta.

    Theorem schema. A kernel knows, for every radius r, a share `needed(r)` with: if mu(x) > needed(r), then
    mu(x') > eta for every x' within r edits of x. The proof stands at each kernel.

mu is not known but sampled: the verdict on x is "harmful" when samples show mu(x) > eta, "safe" only when they show
mu(x) <= eta, and "abstain" otherwise, which blocks. A certificate says that mu(x') > eta for all x' that its threat
reaches. A run on such an x' is sampled too: it says "safe" with probability at most alpha.

What keeps this true of the program:

* The noise works on the pieces of the raw text, and F reads the canonical view of what they join to. So the verdict on
  a noised text is a function of the pieces' own views, and what an attack leaves whole is noised as before.
* A noised text whose view is blank is not harmful, by definition; the filter never sees one.
* The certificate counts a sample only if it is flagged by the guard band, so it is flagged in any batch.
* Samples of one text are scored once if they read alike. Seeds are fresh and secret: a certificate holds for a text
  that was chosen before its noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import numpy as np

from promptguard.certify.pieces import Pieces
from promptguard.certify.scoring import score_all
from promptguard.certify.tally import AtRadius, Flags, Largest, Settings, Tally
from promptguard.errors import InvalidArgument, TextTooLong
from promptguard.stats import fewest_trials, trials_needed
from promptguard.threat import Threat
from promptguard.types import Certificate, Filter, Label, Units, Verdict
from promptguard.view import VIEW, canonical, check_text

_SEED_BITS = 256
_FIRST_BATCH = 16  # most texts are settled by a few samples


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much is sampled, and how often an answer may be wrong.

    Attributes:
        alpha: probability that a certificate is false; and of its own that a harmful text, thus also an attacked one
            within a certificate, is called safe.
        samples: noised texts drawn for a text, at most.
        futility: chance of giving up a radius that holds; it costs certificates, never their truth.
        last_look: spend half of alpha on one exact test when all samples are drawn.
        batch_size: noised texts per call of the filter.
        max_chars: longest text accepted, in code points.
        max_work: code points of a text times `samples`, at most; None for no limit. Longer texts are refused.

    Raises:
        InvalidArgument: an attribute outside its range.
    """

    alpha: float = 0.001
    samples: int = 10_000
    futility: float = 0.01
    last_look: bool = True
    batch_size: int = 64
    max_chars: int = 100_000
    max_work: int | None = 50_000_000

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 < self.futility < 1:
            raise InvalidArgument("alpha and futility must be between 0 and 1, both excluded")
        sizes = [self.samples, self.batch_size, self.max_chars, *([self.max_work] if self.max_work is not None else [])]
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
            raise InvalidArgument("samples, batch_size, max_chars and max_work must be whole numbers, at least 1")


def rounded_up(share: float) -> float:
    """A share that a radius needs, raised by more than the error of the floating-point steps that led to it."""
    return share * (1 + 1e-12) + 1e-15


def fingerprint(value: object) -> str:
    """Names a table in a certificate: the beginning of its digest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Noised(Protocol):
    """The noised versions of one text."""

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Independent noised texts, raw."""
        ...

    def needed(self, eta: float, radius: int) -> float:
        """The share that mu must exceed for this radius, rounded up; 1 or more if none will do. It never falls."""
        ...

    @property
    def most(self) -> int | None:
        """No larger radius means anything; None is no such limit."""
        ...


class Kernel(Protocol):
    """A kind of noise, and the edits that it answers."""

    @property
    def method(self) -> str:
        """The certifier, for certificates."""
        ...

    @property
    def kind(self) -> str:
        """The threat's kind."""
        ...

    @property
    def assumes(self) -> tuple[str, ...]:
        """The noise and what counts as an edit, in words."""
        ...

    def of(self, pieces: list[str]) -> Noised:
        """The noised versions of a text of these pieces."""
        ...

    def least(self, eta: float, radius: int) -> float:
        """The smallest `needed` over all texts: what no text can do with less."""
        ...


class Smoothed:
    """A smoothed filter, sampled; what the certifiers of this family are made of.

    Args:
        filter_: the filter F.
        units: what is noised and what the radius counts.
        kernel: the noise.
        radius: the radius that is asked for; None reports the largest, which takes all samples.
        eta: a text is harmful when more than this share of its noised versions is flagged, in (0, 1).
        sampling: error rates and limits.
        rng: one draw per text seeds its noise. The default is the system's, which nobody can predict.

    Raises:
        InvalidArgument: eta or the radius means nothing, no text could be certified at this radius, or `samples` is too
            small to certify or to clear any text (the message says how many could).
    """

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        kernel: Kernel,
        *,
        radius: int | None,
        eta: float,
        sampling: Sampling | None,
        rng: random.Random | None,
    ) -> None:
        self.sampling = sampling = sampling or Sampling()
        if not math.isfinite(filter_.threshold) or not 0 <= filter_.guard_band < math.inf:
            raise InvalidArgument("the filter's threshold and guard band must be finite numbers, the band not negative")
        if not 0 < eta < 1:
            raise InvalidArgument(f"eta must be between 0 and 1, both excluded, not {eta!r}")
        if radius is not None and (isinstance(radius, bool) or not isinstance(radius, int) or radius < 0):
            raise InvalidArgument(f"the radius must be a whole number >= 0, or None for the largest, not {radius!r}")
        self.filter, self.units, self.kernel, self.radius, self.eta = filter_, units, kernel, radius, eta
        self._check_samples()
        self._rng = rng or random.SystemRandom()
        self._settings = Settings(eta, sampling.alpha, sampling.samples, sampling.futility, sampling.last_look)

    def _check_samples(self) -> None:
        alpha, samples, last_look = self.sampling.alpha, self.sampling.samples, self.sampling.last_look
        needed = self.kernel.least(self.eta, self.radius or 0)
        if needed >= 1:
            raise InvalidArgument(f"radius {self.radius} is out of reach: lower the radius or eta, or add noise")
        if self.radius is None:
            to_certify = trials_needed(1 - needed, 1 - alpha)
        else:
            to_certify = fewest_trials(needed, alpha, last_look=last_look)
        enough = max(to_certify, fewest_trials(1 - self.eta, alpha, last_look=last_look))
        if samples < enough:
            raise InvalidArgument(f"{samples} samples can never certify or never clear a text: take at least {enough}")

    def threat(self, radius: int | None = None) -> Threat:
        """What a certificate of this radius covers; default, of the radius that is asked for (0 if none is)."""
        budget = (self.radius or 0) if radius is None else radius
        return Threat(self.kernel.kind, budget, self.units.name)

    def verdict(self, x: str) -> Verdict:
        """Sample noised versions of x until the answer is known.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all samples.
            FilterError: the filter broke its contract.
        """
        text = check_text(x, self.sampling.max_chars)
        most = self.sampling.max_work
        if most is not None and len(text) * self.sampling.samples > most:
            raise TextTooLong(len(text), most // self.sampling.samples, "max_work")
        noised = self.kernel.of(Pieces.of(text, self.units).cut())
        tally = self._tally(noised)
        votes = _Votes(self.filter)
        rng = np.random.default_rng(self._rng.getrandbits(_SEED_BITS))
        for size in self._sizes():
            if tally.add(*votes.of(noised.draw(size, rng))):
                break
        radius = tally.radius()
        return Verdict(
            label=tally.label,
            score=tally.counts.share,
            threshold=self.eta,
            calls=votes.calls,
            checks=tally.counts.trials,
            threat=self.threat(radius),
            certificate=None if radius is None else self._certificate(radius),
        )

    def _tally(self, noised: Noised) -> Tally:
        if self.radius is None:
            return Largest(self._settings, lambda radius: noised.needed(self.eta, radius), noised.most)
        return AtRadius(self._settings, self.radius, noised.needed(self.eta, self.radius))

    def _sizes(self) -> Iterator[int]:
        """Sizes of batches, a small one first, that make up all samples."""
        left, size = self.sampling.samples, min(_FIRST_BATCH, self.sampling.batch_size)
        for _ in repeat(None):
            if not left:
                return
            yield min(size, left)
            left -= min(size, left)
            size = self.sampling.batch_size

    def _certificate(self, radius: int) -> Certificate:
        return Certificate(
            label=Label.HARMFUL,
            threat=self.threat(radius),
            method=self.kernel.method,
            confidence=1 - self.sampling.alpha,
            filter=self.filter.digest,
            assumes=tuple(self._assumptions()),
        )

    def _assumptions(self) -> Iterator[str]:
        sampling = self.sampling
        yield f"filter {self.filter.name}, threshold {self.filter.threshold!r}, guard band {self.filter.guard_band!r}"
        yield f"texts are scored in the {VIEW}; blank ones are not harmful"
        yield f"the label is the smoothed filter's: harmful when more than {self.eta!r} of the noised texts are flagged"
        yield from self.kernel.assumes
        yield (
            f"at most {sampling.samples} samples with a fresh secret seed per text; a run on a text within the threat "
            f"says safe with probability at most {sampling.alpha!r}, and harmful or abstain otherwise, which blocks"
        )
        yield from getattr(self.filter, "assumes", ())
        longest = sampling.max_chars
        if sampling.max_work is not None:
            longest = min(longest, sampling.max_work // sampling.samples)
        yield f"texts of more than {longest} code points, or with NUL bytes or lone surrogates, are refused"


class _Votes:
    """What the filter says of noised texts; texts that read alike are scored once."""

    def __init__(self, filter_: Filter) -> None:
        self._filter = filter_
        self._known: dict[str, float] = {"": -math.inf}

    @property
    def calls(self) -> int:
        """Texts that the filter was given."""
        return len(self._known) - 1

    def of(self, texts: list[str]) -> tuple[Flags, Flags]:
        """Which texts are flagged by the guard band, and which are flagged."""
        views = [canonical(text) for text in texts]
        if fresh := list(dict.fromkeys(view for view in views if view not in self._known)):
            self._known |= zip(fresh, score_all(self._filter, fresh), strict=True)
        scores = np.array([self._known[view] for view in views])
        return scores >= self._filter.threshold + self._filter.guard_band, scores >= self._filter.threshold
