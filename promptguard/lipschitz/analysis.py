"""What is proven of a layer: its Lipschitz constant, and how far rounding moves what it computes.

A certificate is about the network that runs, in floating point. Let f be a layer in exact arithmetic and f~ what runs:

    |f(x) - f(y)| <= lipschitz * |x - y|          |f(0)| <= offset
    |f~(x) - f(x)| <= relative * |x| + absolute   (Euclidean norms of the flattened tensors)
    |v| <= swing * |x| + level                    for every number v on the way to f~(x), products and sums included

The first two lines of f~ hold where no v overflows, so where the last bound is at most `LARGEST`: it is 1 / 16 of the
largest float32, room for the rounding of the sums (a factor of 2 for each layer at most, as `Place.gamma` is below 1).
Each operation may also be off by `TINY`, below which float32 is denormal: this covers gradual underflow and processors
that take denormal numbers for zero. Both constants serve float64 too, which has more of either.

`Analysis.then` derives the six numbers of a composition. For sums of n products rounding errors are at most
gamma_n = n u / (1 - n u) times the sum of absolute values, in whatever order they are added (Higham 2002, section 3.1),
so neither batch size nor threads matter. Not covered: convolutions by Winograd or FFT, TF32, autocast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.bound import ONE, UpperBound, up

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TINY = 2.0**-126
LARGEST = 2.0**124


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer stands.

    Attributes:
        input: shape of one input, without the batch.
        output: shape of one output.
        unit: largest relative error of one floating-point operation, 2^-24 in float32.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    unit: float

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of that many products, and two more operations.

        Raises:
            UnsupportedThreat: so many that the analysis says nothing.
        """
        count = (terms + 2) * self.unit
        if count >= 0.5:
            raise UnsupportedThreat("sums this long have no useful rounding bound: use float64")
        return up(count / (1 - count))

    def lost(self, terms: int, spread: float = 1.0) -> float:
        """What underflow changes sums of that many products by, at most, as a norm over the whole output.

        Args:
            terms: of each sum.
            spread: norm of the map with absolute values, which denormal inputs go through.
        """
        own = 4 * (terms + 2) * math.sqrt(math.prod(self.output))
        return up(TINY * (own + 2 * spread * math.sqrt(math.prod(self.input))))


@dataclass(frozen=True, slots=True)
class Analysis:
    """The numbers of a layer; see the module.

    Attributes:
        lipschitz: of the exact function.
        offset: norm of its value at zero, at most.
        relative: rounding error per norm of the input, at most.
        absolute: rounding error beside that, at most.
        swing: largest number on the way per norm of the input, at most.
        level: largest number on the way beside that, at most.
    """

    lipschitz: UpperBound = ONE
    offset: float = 0.0
    relative: float = 0.0
    absolute: float = 0.0
    swing: float = 1.0
    level: float = 0.0

    def then(self, after: Analysis) -> Analysis:
        """This layer, then another one."""
        mine, other = self.lipschitz.value, after.lipschitz.value
        return Analysis(
            lipschitz=self.lipschitz.then(after.lipschitz),
            offset=up(after.offset + other * self.offset),
            relative=up(after.relative * (mine + self.relative) + other * self.relative),
            absolute=up(after.absolute + after.relative * (self.offset + self.absolute) + other * self.absolute),
            swing=max(self.swing, up(after.swing * (mine + self.relative))),
            level=max(self.level, up(after.level + after.swing * (self.offset + self.absolute))),
        )

    def beside(self, other: Analysis, place: Place) -> Analysis:
        """The sum of two branches of one input."""
        values = self.lipschitz.value + other.lipschitz.value + self.relative + other.relative
        rest = self.offset + other.offset + self.absolute + other.absolute
        return Analysis(
            lipschitz=self.lipschitz.plus(other.lipschitz),
            offset=up(self.offset + other.offset),
            relative=up(self.relative + other.relative + 2 * place.unit * values),
            absolute=up(self.absolute + other.absolute + 2 * place.unit * rest + 2 * place.lost(2)),
            swing=up(self.swing + other.swing),
            level=up(self.level + other.level),
        )

    def unscaled(self, bare: Analysis) -> Analysis:
        """The same layer, underflow and the largest numbers taken from an analysis without scaled units or rounding.

        What underflow moves is rounded after that, by a factor of 2 for each of at most three sums.
        """
        relative, absolute = up(self.relative + 8 * bare.relative), up(self.absolute + 8 * bare.absolute)
        return replace(self, relative=relative, absolute=absolute, swing=bare.swing, level=bare.level)

    def proven(self, lipschitz: UpperBound) -> Analysis:
        """The same with a constant that was proven otherwise, where it is smaller."""
        return replace(self, lipschitz=self.lipschitz.least(lipschitz))


@runtime_checkable
class Bounded(Protocol):
    """A module that derives its own numbers from the weights it runs with."""

    def analysis(self, place: Place) -> Analysis:
        """All of its numbers for inputs of this shape; those left out are those of the identity.

        Raises:
            UnsupportedThreat: it has no finite constant there.
        """
        ...
