"""Synonym smoothing: each word is replaced by a random synonym (SAFER).

Ye, Gong, Liu 2020, *SAFER: A Structure-free Approach for Certified Robustness to Adversarial Word Substitutions*.

    Theorem. Let P_w be what the noise makes of the word w, each with the same chance, and let x' be x with words w_1,
    ..., w_r replaced by v_1, ..., v_r of the table. Then mu(x') >= mu(x) - (1 - q_1 ... q_r), where
    q_i = |P_w ∩ P_v| / max(|P_w|, |P_v|).

Proof. q is the overlap of two uniform laws, the sum over all words of the smaller of their two chances. Independent
words multiply overlaps, and no event differs by more than 1 minus the overlap.

An attacker chooses the words: a radius counts the r smallest overlaps of the text, each with the worst synonym of its
word. The published overlap |P_w ∩ P_v| / |P_w| is too large when P_v is the larger set.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from promptguard.certify.smoothing import Sampling, Smoothed, fingerprint, rounded_up
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.types import Filter, Units, Verdict
from promptguard.view import canonical

_KIND = "synonym"


class SynonymSmoothing:
    """Certifies that replacing words of a harmful prompt by their synonyms does not hide it from the smoothed filter.

    Theorem: let `certify(P)` give a certificate of radius r, and let the pieces of x be those of P with up to r words w
    replaced by synonyms of w in the table, white space as it was. Then, except with probability alpha, more than eta
    of x's noised texts are flagged; and a run on x says "safe" with probability at most alpha.

    Args:
        filter_: the filter F.
        units: must cut each word of the table as one piece; in practice words.
        radius: words that the attacker may replace; None reports the largest radius, which takes all samples.
        synonyms: word to the words that an attacker may put in its place. The noise draws from these and the word
            itself. Words are compared in the canonical view, letters in capitals or not as they are; what the table
            does not hold is neither noised nor attacked.
        eta: a text is harmful when more than this share of its noised versions is flagged, in (0, 1).
        threat: "synonym"; nothing else can be certified.
        sampling: error rates and limits.
        rng: one draw per text seeds its noise. The default is the system's; benchmarks pass a seeded one.

    Raises:
        UnsupportedThreat: another threat.
        InvalidArgument: a word of the table is no single unit, it holds nothing, eta or radius is outside its range, or
            there are too few samples.
    """

    method = "synonym-smoothing"

    def __init__(
        self,
        filter_: Filter,
        units: Units,
        radius: int | None,
        *,
        synonyms: Mapping[str, Iterable[str]],
        eta: float = 0.5,
        threat: str = _KIND,
        sampling: Sampling | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if threat != _KIND:
            raise UnsupportedThreat(f"synonym smoothing certifies {_KIND}, not {threat!r}")
        self.filter = filter_
        self.units = units
        kernel = _Kernel(_table(synonyms, units), units)
        self._smoothed = Smoothed(filter_, units, kernel, radius=radius, eta=eta, sampling=sampling, rng=rng)

    def threat(self, radius: int | None = None) -> Threat:
        """What a certificate covers, at the radius that was asked for or another one."""
        return self._smoothed.threat(radius)

    def certify(self, x: str) -> Verdict:
        """Sample texts that x becomes when words are replaced by synonyms.

        Raises:
            InvalidText: x is not text, empty, or too long, alone or over all samples.
            FilterError: the filter broke its contract.
        """
        return self._smoothed.verdict(x)


@dataclass(frozen=True, slots=True)
class _Word:
    """What the noise makes of a word, and the smallest overlap with what it makes of one of its synonyms."""

    choices: tuple[str, ...]
    overlap: float


def _table(synonyms: Mapping[str, Iterable[str]], units: Units) -> dict[str, _Word]:
    """The table, in the canonical view.

    Raises:
        InvalidArgument: it is no mapping to lists of words, it is empty, or a word is no single unit.
    """
    sets: dict[str, set[str]] = {}
    for word, others in synonyms.items():
        words = [word] if isinstance(others, str) else [word, *others]
        if len(words) == 1 or not all(isinstance(each, str) for each in words):
            raise InvalidArgument("every word in the table of synonyms needs a list of words, at least one")
        sets.setdefault(canonical(word), set()).update(map(canonical, words))
    if not sets or any(not word or len(units(word)) != 1 for word in set().union(*sets.values())):
        raise InvalidArgument(f"the table of synonyms must hold words, each of them one unit ({units.name})")

    def overlap(word: str) -> float:
        mine = sets[word]
        others = (sets.get(other, {other}) for other in mine)
        return min(len(mine & other) / max(len(mine), len(other)) for other in others)

    return {word: _Word(tuple(sorted(choices)), overlap(word)) for word, choices in sets.items()}


@dataclass(frozen=True, slots=True)
class _Kernel:
    table: dict[str, _Word]
    units: Units
    method: str = SynonymSmoothing.method
    kind: str = _KIND

    @property
    def assumes(self) -> tuple[str, ...]:
        return (
            f"noise: each word in a table of {len(self.table)} (sha256 {self._digest()}) is replaced by itself or one "
            "of its synonyms, all equally likely",
            f"words are replaced one for one, white space as it was: the pieces of unit {self.units.name} that the two "
            "texts are cut into are equally many, and differ in at most so many places, each by a synonym in the table",
        )

    def of(self, pieces: list[str]) -> _Noised:
        known = [self.table.get(view := canonical(piece), _Word((view,), 1.0)) for piece in pieces]
        # Words in the table and others keep their white space alike: an attacker puts one in the place of the other.
        rows = [_in_place_of(piece, word.choices) for piece, word in zip(pieces, known, strict=True)]
        return _Noised(rows, sorted(word.overlap for word in known))

    def least(self, eta: float, radius: int) -> float:
        return rounded_up(eta)

    def _digest(self) -> str:
        return fingerprint({word: entry.choices for word, entry in self.table.items()})


def _in_place_of(piece: str, words: Sequence[str]) -> list[str]:
    """The words, with a space before and behind them where the view of the piece has one."""
    view = canonical(f"|{piece}|")
    before, behind = view[1:2].isspace() * " ", view[-2:-1].isspace() * " "
    return [before + word + behind for word in words]


@dataclass(frozen=True, slots=True)
class _Noised:
    choices: list[list[str]]
    overlaps: list[float]

    @property
    def most(self) -> int:
        return len(self.choices)

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        sizes = np.array([len(row) for row in self.choices])
        drawn: npt.NDArray[np.int64] = rng.integers(0, sizes, size=(count, len(sizes)))
        return ["".join(row[at] for row, at in zip(self.choices, places, strict=True)) for places in drawn.tolist()]

    def needed(self, eta: float, radius: int) -> float:
        return rounded_up(eta + (1 - math.prod(self.overlaps[:radius])))
