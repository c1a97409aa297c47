"""Spectral norms of matrices: proven from above by Cholesky or by Gram iteration, estimated by power iteration.

All proofs run in float64, whatever the type of the weights, and account for their own rounding. Notation: u = 2^-53,
and every constant below is at least twice what the standard analysis asks for (Higham, *Accuracy and Stability of
Numerical Algorithms*, 2002, section 3.5 for products, also complex ones; theorem 10.3 for Cholesky).
"""

from __future__ import annotations

import math

import torch

from promptguard.errors import InvalidArgument
from promptguard.lipschitz.bound import Estimate, UpperBound, up

_U = 2.0**-53
_SAFETY = 16  # complex products take a factor of 4 and a little; the rest is spare
_TINY = 1e-200  # above anything that underflow can lose


def dense_norm(matrices: torch.Tensor) -> UpperBound:
    """An upper bound for the largest spectral norm of a batch of matrices: the SVD guesses, Cholesky proves.

    Let s be the squared guess with a little added. If the Cholesky factorisation of s I - M'M runs to its end in
    floating point, then s I - M'M has no eigenvalue below minus a rounding error that the traces bound (Rump 2006,
    *Verification of positive definiteness*, theorem 2.3), so ||M||^2 is at most s and that error. If it does not, s
    grows; the Frobenius norm ends the search.

    Args:
        matrices: float32, float64 or complex128, of shape (..., rows, columns), finite.

    Returns:
        The bound; relative excess about rows * columns * 1e-14 at worst.

    Raises:
        InvalidArgument: no matrices, or entries that are not finite.
    """
    batch = _prepared(matrices)
    scale = float(batch.abs().amax())
    if scale == 0:
        return UpperBound.of(0.0)
    exponent = 2.0 ** math.floor(math.log2(scale))  # a power of two: scaling by it is exact
    batch = batch / exponent
    gram = batch.mH @ batch if batch.shape[-1] <= batch.shape[-2] else batch @ batch.mH
    size, inner = gram.shape[-1], max(batch.shape[-2:])
    traces = float(batch.abs().square().sum(dim=(-2, -1)).amax()) * (1 + 1e-9)
    guess = float(torch.linalg.matrix_norm(batch, 2).amax()) ** 2
    slack = 4 * _SAFETY * _U * (inner + size + 2) * (traces + size * guess) + _TINY
    eye = torch.eye(size, dtype=gram.dtype)
    for _ in range(8):
        square = guess + slack
        if not torch.linalg.cholesky_ex(square * eye - gram).info.any():
            # Rounding of the Gram matrices, of the shift, and of the factorisation.
            error = _SAFETY * _U * (inner + size + 2) * (2 * traces + size * square)
            return UpperBound.of(up(up(math.sqrt(up(square + error + _TINY))) * exponent))
        slack *= 16
    return UpperBound.of(up(up(math.sqrt(up(traces))) * exponent))


def gram_norm(matrix: torch.Tensor, iterations: int = 30) -> UpperBound:
    """An upper bound for the spectral norm of one matrix by Gram iteration, without any decomposition.

    With G_0 = M'M and G_{t+1} = G_t^2: ||M||^(2^(t+1)) = ||G_t|| <= ||G_t||_F (Delattre et al. 2023, *Efficient Bound
    of Lipschitz Constant for Convolutional Layers by Gram Iteration*, theorem 2). Computed products differ from exact
    ones by at most gamma ||A||_F ||B||_F, which is added on the way back; without that, float32 falls below the norm.

    Args:
        matrix: of shape (rows, columns), finite.
        iterations: squarings; the excess shrinks like rank^(2^-iterations).
    """
    current = _prepared(matrix)[0]
    current = current.mH @ current if current.shape[-1] <= current.shape[-2] else current @ current.mH
    # Scaled by powers of two to norms near 1, which is exact; `logs` are their logarithms to the base 2.
    source = _prepared(matrix)[0].abs().square().sum()
    gamma = _SAFETY * _U * (max(matrix.shape) + 2)
    errors, logs = [gamma * up(float(source)) * (1 + 1e-9) + _TINY], [0]
    for _ in range(iterations):
        size = float(torch.linalg.matrix_norm(current))
        if size == 0:
            break
        logs.append(math.floor(math.log2(size)))
        current = current / 2.0 ** logs[-1]
        errors.append(gamma * float(current.abs().square().sum()) * (1 + 1e-9) + _TINY)
        current = current @ current
    bound = float(torch.linalg.matrix_norm(current)) * (1 + 1e-9)
    for error, log in zip(reversed(errors[1:]), reversed(logs[1:]), strict=True):
        bound = up(up(math.sqrt(up(bound + error))) * 2.0**log)
    return UpperBound.of(up(math.sqrt(up(bound + errors[0]))))


def power_iteration(matrix: torch.Tensor, start: torch.Tensor, iterations: int = 5) -> Estimate:
    """A lower estimate of the spectral norm, for training only (Miyato et al. 2018).

    Args:
        matrix: of shape (rows, columns).
        start: of shape (columns,); a start in the matrix' null space gives 0.
        iterations: products with M'M.
    """
    with torch.no_grad():
        vector = start
        for _ in range(iterations):
            vector = torch.nn.functional.normalize(matrix.mH @ (matrix @ vector), dim=0)
        return Estimate(float(torch.linalg.vector_norm(matrix @ vector)))


def _prepared(matrices: torch.Tensor) -> torch.Tensor:
    """In double precision on the CPU, as one batch."""
    if matrices.dim() < 2 or matrices.numel() == 0 or not bool(torch.isfinite(matrices).all()):
        raise InvalidArgument("a norm needs matrices with finite entries")
    kind = torch.complex128 if matrices.is_complex() else torch.float64
    return matrices.detach().to("cpu", kind).reshape(-1, *matrices.shape[-2:])
