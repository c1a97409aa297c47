"""What `bench` measures: any certifier, made from the same options as `check` makes erase-and-check."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from promptguard.certify.deletion_smoothing import DeletionSmoothing
from promptguard.certify.empirical import GradEC, GreedyEC, RandEC
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.smoothing import Sampling
from promptguard.certify.truncation_votes import TruncationVotes
from promptguard.cli.options import DEFAULT_MAX_ERASE, Options
from promptguard.errors import InvalidArgument
from promptguard.evaluate.subject import Subject
from promptguard.guard.default import default_certifier
from promptguard.types import Certifier

DEFAULT_RADIUS = 5


class Settings(BaseModel):
    """What `--set` may say of a certifier, and how the certifier is made.

    Attributes:
        draws: it draws at random.
        stops: it stops at the first flagged text, so scores are no maxima.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    draws: ClassVar[bool] = False
    stops: ClassVar[bool] = False

    def make(self, options: Options, base: EraseAndCheck, rng: random.Random) -> Certifier:
        """The certifier around the filter of `base`, which has the mode and units of the options too."""
        del options, rng
        return base


class Smooth(Settings):
    """Deletion smoothing; `--max-erase` is the radius, `--mode` the threat unless `threat` says another."""

    draws: ClassVar[bool] = True
    rate: float = 0.7
    eta: float = 0.1
    threat: str | None = None
    alpha: float = 0.001
    samples: int = 10_000

    def make(self, options: Options, base: EraseAndCheck, rng: random.Random) -> Certifier:
        """Without `--max-erase`, a radius of a few units; "unlimited" asks for the largest radius."""
        budget = DEFAULT_RADIUS if options.max_erase is None else options.budget()
        return DeletionSmoothing(
            base.filter,
            base.units,
            None if math.isinf(budget) else int(budget),
            rate=self.rate,
            eta=self.eta,
            threat=self.threat or options.mode,
            sampling=Sampling(alpha=self.alpha, samples=self.samples),
            rng=rng,
        )


class Votes(Settings):
    """Votes of the suffix truncations; without `tau`, the majority."""

    tau: int | None = None

    def make(self, options: Options, base: EraseAndCheck, rng: random.Random) -> Certifier:
        """`--max-erase` units are dropped."""
        del rng
        if options.mode != "suffix":
            raise InvalidArgument("votes are of suffix truncations: --mode suffix")
        budget = DEFAULT_MAX_ERASE if options.max_erase is None else options.budget()
        if self.tau is None and math.isinf(budget):
            raise InvalidArgument("an unlimited number of truncations has no majority: --set tau=...")
        tau = math.ceil((budget + 1) / 2) if self.tau is None else self.tau
        return TruncationVotes(base.filter, base.units, budget if math.isinf(budget) else int(budget), tau)


class Rand(Settings):
    """RandEC: a share of the erasures."""

    stops: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    ratio: float = 0.3

    def make(self, options: Options, base: EraseAndCheck, rng: random.Random) -> Certifier:
        """No certificate."""
        return RandEC(base.filter, base.mode, base.units, self.ratio, rng=rng)


class Greedy(Settings):
    """GreedyEC: one unit a step."""

    stops: ClassVar[bool] = True
    iterations: int = 9

    def make(self, options: Options, base: EraseAndCheck, rng: random.Random) -> Certifier:
        """No certificate."""
        return GreedyEC(base.filter, base.units, self.iterations)


class Grad(Settings):
    """GradEC: the gradient by a soft mask."""

    stops: ClassVar[bool] = True
    iterations: int = 25
    rate: float = 1.0

    def make(self, options: Options, base: EraseAndCheck, rng: random.Random) -> Certifier:
        """No certificate."""
        return GradEC(base.filter, base.units, self.iterations, rate=self.rate)


class Default(Settings):
    """The bundled guard, whatever the options; its members stop at the first flagged erasure, as in operation."""

    stops: ClassVar[bool] = True


ERASE, DEFAULT = "erase", "default"
CERTIFIERS: dict[str, type[Settings]] = {
    ERASE: Settings,
    "smooth": Smooth,
    "votes": Votes,
    DEFAULT: Default,
    "rand-ec": Rand,
    "greedy-ec": Greedy,
    "grad-ec": Grad,
}


def subject(options: Options, certifier: str, settings: Sequence[str], *, seed: int, fast: bool) -> Subject:
    """The certifier that the command line describes.

    Args:
        options: filter, mode, unit, limits.
        certifier: a key of `CERTIFIERS`; "default" is the guard of `promptguard check`, whatever the options.
        settings: `name=value` for the certifier's own settings.
        seed: of the run; certifiers without randomness take no notice.
        fast: stop at the first flagged erasure; scores are then no maxima.

    Raises:
        PromptGuardError: a name or value means nothing, or the filter cannot be loaded.
    """
    if certifier not in CERTIFIERS:
        raise InvalidArgument(f"unknown certifier {certifier!r}: known are {', '.join(CERTIFIERS)}")
    own = _settings(certifier, settings)
    rng = random.Random(seed) if own.draws else None  # noqa: S311 - a benchmark is repeatable
    if certifier == DEFAULT:
        made: Certifier = default_certifier()
    else:
        # The score of a row is the maximum over all erasures, so nothing stops early unless that is asked for.
        made = own.make(options, options.certifier(early_stop=fast), rng or random.Random())  # noqa: S311 - unused
    described = dataclasses.asdict(options) | {"certifier": own.model_dump()}
    return Subject.of(made, certifier, described, rng=rng, seed=seed, fast=fast or own.stops)


def _settings(certifier: str, settings: Sequence[str]) -> Settings:
    kind = CERTIFIERS[certifier]
    try:
        return kind.model_validate(dict(map(_setting, settings)))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        known = ", ".join(kind.model_fields) or "none"
        raise InvalidArgument(f"--set for {certifier}: {faults} (settings: {known})") from None


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidArgument(f"--set takes name=value, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
