"""A bound for the neighbourhood of one input: ReLU units that cannot switch there are taken out of the product.

Huang et al. 2021, *Training Certifiably Robust Neural Networks with Efficient Local Lipschitz Bounds*: a unit that is
negative on the whole ball is constant, so its row and column are dropped. Here layers whose units all keep their sign
are also merged with the next one, as they are affine on the ball: if no unit switches, the bound is exact.

    Theorem. Let |x' - x| <= r. On the ball, the input of the layers merged so far moves by at most f r, so unit i moves
    by at most |M_i| f r, M being their product; units are dropped, kept or left open by that.

Everything is computed in float64 and rounding is added to every norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from promptguard.errors import UnsupportedThreat
from promptguard.lipschitz.analysis import Analysis, Place
from promptguard.lipschitz.bound import UpperBound, up
from promptguard.lipschitz.dense import dense_norm
from promptguard.lipschitz.linear import matrix

_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class _Merged:
    """An affine map on the ball, of a vector that moves by at most `factor` times the radius.

    Attributes:
        weight: its matrix M.
        error: how far M is from what it stands for, in norm.
        factor: f.
    """

    weight: torch.Tensor
    error: float
    factor: UpperBound

    def then(self, weight: torch.Tensor) -> _Merged:
        gamma = 16 * _UNIT * (weight.shape[1] + 2)
        sizes = float(torch.linalg.matrix_norm(weight)), float(torch.linalg.matrix_norm(self.weight))
        rounding = up(gamma * sizes[0] * sizes[1]) + up(sizes[0] * (1 + 1e-9) * self.error)
        return _Merged(weight @ self.weight, up(rounding), self.factor)

    def norm(self) -> UpperBound:
        return self.factor.then(dense_norm(self.weight).plus(UpperBound.of(self.error)))

    def reach(self, rows: torch.Tensor) -> torch.Tensor:
        """How far each row's result moves per radius."""
        lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
        return (lengths * (1 + 1e-12) + 2 * self.error) * self.factor.value


def local_pairs(network: nn.Sequential, x: torch.Tensor, radius: float, label: int) -> torch.Tensor:
    """Constants of logit `label` minus each other logit on the ball of `radius` around x.

    Args:
        network: Linear and ReLU in turn, perhaps Flatten before them; the last is Linear.
        x: one input, without the batch.
        radius: of the closed ball.
        label: the class.

    Returns:
        Upper bounds, float64 of shape (classes,); 0 at `label`.

    Raises:
        UnsupportedThreat: the network has other modules.
    """
    layers = _layers(network)
    value = x.detach().to("cpu", torch.float64).flatten()
    size = up(float(torch.linalg.vector_norm(value)))
    rounding = Analysis()
    merged = _Merged(torch.eye(len(value), dtype=torch.float64), 0.0, UpperBound.of(1.0))
    for layer in layers[:-1]:
        weight, bias = _double(layer)
        merged, before = merged.then(weight), weight @ value + bias
        rounding = rounding.then(matrix(weight, bias, Place((weight.shape[1],), (weight.shape[0],), _UNIT)))
        moves = merged.reach(merged.weight) * (radius * (1 + 1e-12)) + up(rounding.relative * size + rounding.absolute)
        dead, alive = before + moves < 0, before - moves > 0
        value = before.clamp(min=0)
        if bool((dead | alive).all()):
            merged = _Merged(merged.weight * alive[:, None], merged.error, merged.factor)
        else:
            kept = _Merged(merged.weight[~dead], merged.error, merged.factor)
            selection = torch.eye(len(value), dtype=torch.float64)[:, ~dead]
            merged = _Merged(selection, 0.0, kept.norm())
    head = merged.then(_double(layers[-1])[0])
    found = head.reach(head.weight[label] - head.weight)
    found[label] = 0.0
    return found


def _double(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    weight = layer.weight.detach().to("cpu", torch.float64)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().to("cpu", torch.float64)
    return weight, bias


def _layers(network: nn.Sequential) -> list[nn.Linear]:
    modules = [module for module in network if type(module) not in (nn.Flatten, nn.Identity, nn.Dropout)]
    layers = [module for module in modules[::2] if type(module) is nn.Linear]
    if len(modules) % 2 == 0 or len(layers) != len(modules[::2]) or {type(m) for m in modules[1::2]} - {nn.ReLU}:
        raise UnsupportedThreat("local bounds need Linear and ReLU in turn, the last one Linear")
    return layers
