"""The constant of a whole network, by pairs of classes, with the rounding of its forward pass.

    Theorem. Let `margin` be what the running network computes for logit a minus logit b at x, K the pair's constant,
    and let rounding move the vector of logits by at most `relative` |y| + `absolute` at every y. Then the running
    network's logit a is above its logit b at every x' where no number on the way overflows and
        |x' - x| < (margin - 2 sqrt(2) (relative |x| + absolute)) / (K + 2 sqrt(2) relative).

Proof. Exact logits differ from computed ones by e with |e| bounded, so the difference of two logits is off by at most
sqrt(2) |e|, at x and at x', and |x'| <= |x| + |x' - x|.

K is the constant of all but the last layer times ||w_a - w_b|| when that layer is linear (Leino et al. 2021, GloRo), or
sqrt(2) times the constant of the whole map from the input to the vector of logits (Tsuzuku et al. 2018), whichever is
smaller. sqrt(2) is for this joint constant only: of logits that are each 1-Lipschitz it certifies too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.lipschitz.analysis import UNIT, Analysis, Place
from promptguard.lipschitz.bound import UpperBound, up
from promptguard.lipschitz.linear import length
from promptguard.lipschitz.rules import chain, recognised

SQRT2 = up(math.sqrt(2))


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What is proven of a network; see the module.

    Attributes:
        pairs: float64 of shape (classes, classes): K of each pair of logits, 0 on the diagonal.
        whole: the numbers of the map from inputs to logits.
    """

    pairs: torch.Tensor
    whole: Analysis


def constants(network: nn.Sequential, shape: tuple[int, ...]) -> Constants:
    """Bounds for a network in eval mode, from the weights that it runs with.

    Args:
        network: modules in order; logits of shape (batch, classes) come out.
        shape: of one input, without the batch.

    Raises:
        UnsupportedThreat: a module of which nothing is proven, or a type other than float32 and float64.
        InvalidArgument: it is in training mode, or its result is not one row of two or more logits.
    """
    if type(network) is not nn.Sequential:  # a subclass may do more than its modules in order
        raise UnsupportedThreat("a network is certified as a plain torch.nn.Sequential of modules")
    recognised(network)
    if any(module.training for module in network.modules()):
        raise InvalidArgument("a network is certified in eval mode: call network.eval() first")
    place = Place(shape, (), unit_of(network))
    whole = chain(network, place)
    classes = _classes(network, shape)
    joint = up(SQRT2 * whole.lipschitz.value)
    pairs = torch.full((classes, classes), joint, dtype=torch.float64).fill_diagonal_(0)
    head = network[-1]
    if type(head) is nn.Linear:
        trunk = chain(nn.Sequential(*list(network)[:-1]), place).lipschitz
        gaps = [[_times(trunk, length(a - b)) for b in head.weight.double()] for a in head.weight.double()]
        pairs = torch.minimum(pairs, torch.tensor(gaps, dtype=torch.float64))
    return Constants(pairs, whole)


def unit_of(network: nn.Module) -> float:
    """The rounding unit of the type that a network computes in.

    Raises:
        UnsupportedThreat: several types, or one without an analysis.
    """
    kinds = {tensor.dtype for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()}
    if len(kinds) != 1 or not kinds <= set(UNIT):
        raise UnsupportedThreat("a network is certified in float32 or float64, all of it in one type")
    return UNIT[kinds.pop()]


def _times(bound: UpperBound, factor: float) -> float:
    return bound.then(UpperBound.of(factor)).value


def _classes(network: nn.Sequential, shape: tuple[int, ...]) -> int:
    sample = next(t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point())
    with torch.no_grad():
        logits = network(torch.zeros(1, *shape, dtype=sample.dtype, device=sample.device))
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InvalidArgument("a network must give one row of at least two logits for each input")
    return int(logits.shape[1])
