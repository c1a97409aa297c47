"""Linear layers with weights packed once for the processor, activation and residual fused where oneDNN can.

In float32 oneDNN's packed kernels do about twice the arithmetic per second of the default ones on an AVX-512 processor
from AMD (`docs/performance.md`); elsewhere the same functions run as plain torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn import functional

# Rows for which weights are packed; other numbers of rows run on the same packing.
_ROWS = 1024
# Precisions that may be packed, and how far the results of the trial may be from those of the default operations.
_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 0.2}


class Linear(Protocol):
    """x W^T + b for rows x of shape (rows, inputs)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (rows, outputs)."""
        ...

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """The exact (erf) GELU of the outputs."""
        ...

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The outputs plus a residual of their shape."""
        ...


class PlainLinear:
    """A `Linear` of torch's default operations."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight, self._bias = weight.detach(), bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return functional.linear(x, self._weight, self._bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return functional.gelu(self(x))

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return self(x) + residual


class PackedLinear:
    """A `Linear` by oneDNN, the weights reordered once into its blocked layout: they take memory a second time."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._bias = bias.detach().contiguous()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        # By overload: to find it by trial would print every argument of the failed ones.
        self._run: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.default
        self._run_binary: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.binary

    def __deepcopy__(self, memo: object) -> PackedLinear:
        # oneDNN's layout cannot be copied, and nothing changes it.
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return torch.as_tensor(self._run(x, self._weight, self._bias, "none", [], ""))

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return torch.as_tensor(self._run(x, self._weight, self._bias, "gelu", [], "none"))

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return torch.as_tensor(self._run_binary(x, residual, self._weight, self._bias, "add"))


def linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """The fastest `Linear` for weights of shape (outputs, inputs) and a bias of shape (outputs,)."""
    packed = weight.device.type == "cpu" and weight.dtype in _ERRORS and can_pack(weight.dtype)
    return PackedLinear(weight, bias) if packed else PlainLinear(weight, bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed linear layers run here, and compute what they should.

    A build of torch may lack them, and processors without AVX-512 or AVX-NE-CONVERT have none in bfloat16.

    Args:
        dtype: torch.float32 or torch.bfloat16.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    kind: dict[str, Any] = {"device": "cpu", "dtype": dtype}
    x = torch.linspace(-1, 1, 64, **kind).reshape(4, 16)
    weight, bias = torch.linspace(-1, 1, 128, **kind).reshape(8, 16), torch.linspace(-1, 1, 8, **kind)
    try:
        with torch.no_grad():
            mine, plain = PackedLinear(weight, bias), PlainLinear(weight, bias)
            pairs = [
                (mine(x), plain(x)),
                (mine.gelu(x), plain.gelu(x)),
                (mine.plus(x, x[:, :8]), plain.plus(x, x[:, :8])),
            ]
            return all(torch.allclose(a, b, atol=_ERRORS[dtype]) for a, b in pairs)
    except RuntimeError:
        return False
