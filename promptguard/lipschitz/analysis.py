"""What is proven of a layer: its Lipschitz constant, and how far rounding moves what it computes.

A certificate is about the network that runs, in floating point. Let f be a layer in exact arithmetic and f~ what runs:

    |f(x) - f(y)| <= lipschitz * |x - y|          |f(0)| <= offset
    |f~(x) - f(x)| <= relative * |x| + absolute   (Euclidean norms of the flattened tensors)

`Analysis.then` derives the four numbers of a composition. For sums of n products rounding errors are at most
gamma_n = n u / (1 - n u) times the sum of absolute values, in whatever order they are added (Higham 2002, section 3.1),
so neither batch size nor threads matter. Not covered: convolutions by Winograd or FFT, TF32, autocast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.bound import ONE, UpperBound, up

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


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


@dataclass(frozen=True, slots=True)
class Analysis:
    """The four numbers of a layer; see the module.

    Attributes:
        lipschitz: of the exact function.
        offset: norm of its value at zero, at most.
        relative: rounding error per norm of the input, at most.
        absolute: rounding error beside that, at most.
    """

    lipschitz: UpperBound = ONE
    offset: float = 0.0
    relative: float = 0.0
    absolute: float = 0.0

    def then(self, after: Analysis) -> Analysis:
        """This layer, then another one."""
        mine, other = self.lipschitz.value, after.lipschitz.value
        return Analysis(
            lipschitz=self.lipschitz.then(after.lipschitz),
            offset=up(after.offset + other * self.offset),
            relative=up(after.relative * (mine + self.relative) + other * self.relative),
            absolute=up(after.absolute + after.relative * (self.offset + self.absolute) + other * self.absolute),
        )

    def beside(self, other: Analysis, unit: float) -> Analysis:
        """The sum of two branches of one input."""
        values = self.lipschitz.value + other.lipschitz.value + self.relative + other.relative
        rest = self.offset + other.offset + self.absolute + other.absolute
        return Analysis(
            lipschitz=self.lipschitz.plus(other.lipschitz),
            offset=up(self.offset + other.offset),
            relative=up(self.relative + other.relative + 2 * unit * values),
            absolute=up(self.absolute + other.absolute + 2 * unit * rest),
        )

    def proven(self, lipschitz: UpperBound) -> Analysis:
        """The same with a constant that was proven otherwise, where it is smaller."""
        return replace(self, lipschitz=self.lipschitz.least(lipschitz))


@runtime_checkable
class Bounded(Protocol):
    """A module that derives its own numbers from the weights it runs with."""

    def analysis(self, place: Place) -> Analysis:
        """Its numbers for inputs of this shape.

        Raises:
            UnsupportedThreat: it has no finite constant there.
        """
        ...
