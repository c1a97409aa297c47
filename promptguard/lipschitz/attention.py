"""Self-attention with a Lipschitz constant: weights by distance instead of dot products (Kim et al. 2021, L2-MHA).

Dot-product attention has none: for tokens (0, s, -s) the derivative of the first result is 1 / 3 + 2 s^2 / 3. Here the
weights are softmax(-beta |q_i - q_j|^2), and what is averaged are the q_j themselves, so that both go through one map.

    Theorem. For N tokens and c(n) the solution of c exp(c + 1) = n - 1, the map q -> P(q) q is Lipschitz in the
    Euclidean norm of all tokens together, with constant sqrt(N) (1 + 2 sqrt(c(N) c(2))) + 2 c(N).

Proof. Fix i and let r_j = q_j - q_i, m their mean under P_i, S = sum_j P_ij |r_j|^2. Differentiating,
dg_i = sum_j P_ij dq_j - 2 beta sum_j P_ij (r_j - m) r_j'dq_j + 2 beta Cov dq_i, where |Cov| <= S. The first sum is a
matrix with rows of sum 1, of norm at most sqrt(N). By Cauchy and Schwarz the second is at most
2 beta sqrt(S max_j P_ij |r_j|^2) |dq|, for each of N rows; the third at most 2 beta S |dq_i|. With t_j = beta |r_j|^2,
beta S = sum t_j exp(-t_j) / (1 + sum exp(-t_j)) over j != i is at most v iff sum (t_j - v) exp(-t_j) <= v; each
term is at most exp(-1 - v), so v = c(N) will do. One term alone gives c(2) for beta P_ij |r_j|^2.

This is sharper than sqrt(N) (4 c(N) + 1) and still grows with N: at a thousand tokens it says little.
"""

from __future__ import annotations

import math

import torch
from scipy.special import lambertw
from torch import nn

from promptguard.errors import InvalidArgument
from promptguard.lipschitz.analysis import LARGEST, Analysis, Place
from promptguard.lipschitz.bound import UpperBound, up
from promptguard.lipschitz.linear import matrix


def _rate(tokens: int) -> float:
    """The solution c of c exp(c + 1) = tokens - 1, rounded up."""
    return float(lambertw((tokens - 1) / math.e).real) * (1 + 1e-9)


def attention_constant(tokens: int) -> float:
    """The constant of the theorem for that many tokens, rounded up."""
    many = _rate(tokens)
    return up((math.sqrt(tokens) * (1 + 2 * math.sqrt(many * _rate(2))) + 2 * many) * (1 + 1e-12))


class L2Attention(nn.Module):
    """Multi-head self-attention by distance: x -> O concat_h(P_h Q_h x), with one map Q for queries, keys and values.

    Constant: ||O|| times that of the theorem times ||Q||; heads act on separate coordinates, so they do not add up.

    Args:
        width: of the tokens.
        heads: how many; they divide the width.

    Raises:
        InvalidArgument: they do not.
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InvalidArgument("the number of heads must divide the width")
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (batch, tokens, width)."""
        parts = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        apart = (parts.unsqueeze(3) - parts.unsqueeze(2)).square().sum(-1)
        weights = torch.softmax(-apart / math.sqrt(parts.shape[-1]), -1)
        mixed: torch.Tensor = self.out((weights @ parts).transpose(1, 2).flatten(2))
        return mixed

    def extra_repr(self) -> str:
        """What is no tensor."""
        return f"heads={self.heads}"

    def analysis(self, place: Place) -> Analysis:
        """See the theorem.

        Rounding: a distance is off by a share e of itself, so weight j by about e t_j of itself; that moves a row by at
        most e sum_j P_ij t_j |r_j - m|, where t^1.5 exp(-t) < 0.41. Weights and sums round relatively to |q|.
        """
        tokens, size = place.input[0], self.query.out_features // self.heads
        many = _rate(tokens)
        moved = (0.41 * tokens + many**1.5) * size**0.25 * math.sqrt(tokens * self.heads)
        inside = Place(place.input, place.input, place.unit)
        constant = attention_constant(tokens)
        # Squared distances are at most 2 |q|^2, which overflows where 2 |q| is above the root of the largest number.
        mixing = Analysis(
            UpperBound.of(constant),
            relative=up(8 * place.gamma(tokens + 32) * math.sqrt(tokens)),
            absolute=up(8 * place.gamma(size + 8) * moved + inside.lost(8 * (tokens + size), constant)),
            swing=2 * math.sqrt(LARGEST) + tokens,
            level=1.0,
        )
        before = matrix(self.query.weight, self.query.bias, inside)
        return before.then(mixing).then(matrix(self.out.weight, self.out.bias, place))
