"""Certificates from a Lipschitz constant: one forward pass, no chance, any network of known constant.

Tsuzuku et al. 2018 (*Lipschitz-Margin Training*) with the pairwise constants of Leino et al. 2021 (*Globally-Robust
Neural Networks*): the label stays where no other logit can catch up. The theorem, with the rounding of the forward
pass, is that of `promptguard.lipschitz.network`: constants are computed from the weights that run, and certificates are
about the running network, not about its idea in exact arithmetic.
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn

from promptguard.errors import InvalidArgument
from promptguard.lipschitz.analysis import LARGEST
from promptguard.lipschitz.bound import down, up
from promptguard.lipschitz.local import local_pairs
from promptguard.lipschitz.network import SQRT2, constants
from promptguard.threat import L2, Threat
from promptguard.types import Certificate, Verdict

_STEPS = 12  # halvings in the search for a local radius
_BELOW = 1 - 2.0**-40  # far more than the roundings of the last few operations


@dataclass(frozen=True, slots=True, eq=False)
class Radii:
    """What is proven of a batch.

    Attributes:
        labels: int64 of shape (batch,): the class of each input.
        radii: float64 of shape (batch,): the label stays for every change of at most this Euclidean norm; 0 is nothing.
    """

    labels: torch.Tensor
    radii: torch.Tensor


class LipschitzCertifier:
    """Certifies that no small change of a tensor changes its class.

    Theorem: if `certify(x)` gives a certificate of radius r, every tensor x' of the network's type with |x' - x| <= r
    gets the same class from the same network.

    A verdict's `score` is the radius that was proven and its `threshold` the one that was asked for.

    Args:
        network: modules in order, in eval mode; copied, so that later changes of its weights change nothing here.
        shape: of one input.
        radius: the norm of changes that is asked about; None reports the largest that can be proven.
        unit: what the tensor is, "image" or "embedding".
        local: where the constants of the whole network do not prove the radius, try those of the ball around the input
            (Linear and ReLU only).

    Raises:
        UnsupportedThreat: a module of which nothing is proven, such as dot-product attention.
        InvalidArgument: training mode, or a radius that is not a positive number.
    """

    method = "lipschitz"

    def __init__(
        self,
        network: nn.Sequential,
        shape: tuple[int, ...],
        radius: float | None = None,
        *,
        unit: str = "image",
        local: bool = False,
    ) -> None:
        if radius is not None and not 0 < radius < math.inf:
            raise InvalidArgument("the radius must be a positive number, or None for the largest one")
        self._network = copy.deepcopy(network).requires_grad_(False)
        self._shape = shape
        self._radius = radius
        self._unit = unit
        self._local = local
        found = constants(self._network, shape)
        self._relative, self._absolute = (up(2 * SQRT2 * e) for e in (found.whole.relative, found.whole.absolute))
        # The largest norm of an input at which nothing overflows; -inf for none.
        self._largest = down((LARGEST - found.whole.level) / found.whole.swing)
        sample = next(t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point())
        self._kind, device = sample.dtype, sample.device
        pairs = found.pairs + self._relative
        self._inverse = (_BELOW / pairs).fill_diagonal_(math.inf).to(device)
        if local:
            local_pairs(self._network, torch.zeros(shape), 1.0, 0)
        self.digest = _digest(self._network)

    def radii(self, batch: torch.Tensor) -> Radii:
        """Classes and radii of many inputs, from the constants of the whole network, for one forward pass.

        Args:
            batch: of shape (batch, *shape), in the network's type and on its device.

        Raises:
            InvalidArgument: another shape or type: the constants are those of one size of image.
        """
        if tuple(batch.shape[1:]) != self._shape or batch.dtype != self._kind:
            raise InvalidArgument(f"x must be of shape {self._shape} and type {self._kind}")
        labels, radii = self._proven(batch)
        return Radii(labels.clone(), radii.clone())  # copies may take part in what is differentiated: in an attack

    @torch.inference_mode()
    def _proven(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._network(batch).double()
        top = logits.max(1)
        size = torch.linalg.vector_norm(batch.flatten(1), dim=1, dtype=torch.float64)
        room = self._largest - size
        slack = size.mul_(self._relative * (1 + 2.0**-40)).add_(self._absolute)
        # What is left of the top logit once the others are taken away; NaN where logits are not finite.
        lead = (top.values - slack).unsqueeze(1).sub(logits).sub_(logits.abs(), alpha=2.0**-48)
        radii = lead.mul_(self._inverse[top.indices]).scatter_(1, top.indices.unsqueeze(1), math.inf).amin(1)
        return top.indices, torch.minimum(radii, room).nan_to_num_(nan=0.0).clamp_(min=0)

    def certify(self, x: torch.Tensor) -> Verdict:
        """Check one tensor.

        Args:
            x: of shape `shape`.

        Raises:
            InvalidArgument: another shape or type, or entries that are not finite.
        """
        if not bool(torch.isfinite(x).all()):
            raise InvalidArgument("x has entries that are not finite")
        found = self.radii(x.unsqueeze(0))
        label, proven = int(found.labels[0]), float(found.radii[0])
        asked = self._radius
        if self._local and (asked is None or proven < asked):
            proven = self._nearby(x, label, proven)
        budget = proven if asked is None else asked
        threat = Threat(L2, budget, self._unit)
        holds = proven >= budget > 0
        certificate = self._certificate(label, threat) if holds else None
        return Verdict(label, proven, asked or 0.0, calls=1, checks=1, threat=threat, certificate=certificate)

    def _nearby(self, x: torch.Tensor, label: int, proven: float) -> float:
        """The radius asked for, or the largest found, if the constants of the ball prove it; else what was proven."""
        with torch.inference_mode():
            logits = self._network(x.unsqueeze(0))[0].double()
        lead = logits[label] - logits - logits.abs() * 2.0**-48
        size = up(float(torch.linalg.vector_norm(x.double())))

        def holds(radius: float) -> bool:
            if not size + radius <= self._largest:
                return False
            needed = local_pairs(self._network, x, radius, label) * radius
            slack = up(self._relative * up(size + radius) + self._absolute)
            enough = lead.cpu() * _BELOW > needed + slack
            enough[label] = True
            return bool(enough.all())

        if self._radius is not None:
            return self._radius if holds(self._radius) else proven
        low, high = proven, max(2 * proven, 1e-3)
        while high < 1e6 and holds(high):
            low, high = high, 2 * high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _certificate(self, label: int, threat: Threat) -> Certificate:
        return Certificate(
            label=label,
            threat=threat,
            method=self.method,
            confidence=1.0,
            filter=self.digest,
            assumes=(
                f"the changed {self._unit} is a tensor of {self._kind}, and the same network runs in that type, "
                "without TF32, autocast, or convolutions by Winograd or FFT",
                f"rounding of a forward pass moves two logits apart by at most {self._relative / 2:.3g} times the norm "
                f"of its input plus {self._absolute / 2:.3g}, which was taken off the margin",
            ),
        )


def _digest(network: nn.Module) -> str:
    """sha256 over what the network computes: modules with their constants, tensors by name, type, shape and content."""
    found = hashlib.sha256(repr(network).encode())
    for name, module in network.named_modules():  # `repr` leaves some constants out, of AvgPool2d for one
        constants_ = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | tuple)}
        found.update(f"|{name}|{sorted(constants_.items())}".encode())
    tensors = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        found.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
