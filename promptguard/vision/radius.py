"""Radii of Gaussian smoothing, and the share of votes that a radius needs. All in float64, all rounded down.

    Theorem (Cohen, Rosenfeld and Kolter 2019, theorem 1; Neyman and Pearson). Let f be any classifier, e ~ N(0, s^2 I),
    P[f(x + e) = A] >= a and P[f(x + e) = B] <= b for every other class B, a > b. Then for all d with
    |d|_2 < s / 2 (Phi^-1(a) - Phi^-1(b)) class A is the likeliest of f(x + d + e) too.

With b = 1 - a this is s Phi^-1(a). The bound is attained by half-spaces, so nothing better holds for every f.

`slack` is the total variation distance between the noise that is drawn and the Gaussian of the theorem (see
`promptguard.vision.noise`). Shares move by at most that, at the checked image and at the attacked one.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from promptguard.errors import InvalidArgument

_ROUNDING = 1e-12  # more than the error of ndtr and ndtri, relative and, in units of sigma, absolute
_LEAST = 1e-280  # below it shares underflow between two quantiles, and `certified_radius` may prove nothing
_STEPS = 1000  # of the search for PixelDP's best epsilon; any epsilon is sound


def certified_radius(p_a: float, p_b: float, sigma: float, slack: float = 0.0) -> float:
    """The l2 radius within which class A stays the likeliest (Cohen et al. 2019, theorem 1), rounded down.

    With a slack t and q = Phi((Phi^-1(a) + Phi^-1(b)) / 2), where a = p_a - t and b = p_b + t: within
    sigma min(Phi^-1(a) - Phi^-1(q + t), Phi^-1(q - t) - Phi^-1(b)) A's share is above q + t, and B's below q - t.

    Args:
        p_a: a lower bound of the share of class A, in [0, 1).
        p_b: an upper bound of the share of every other class, in (0, 1].
        sigma: standard deviation of the noise, in the units of the image.
        slack: total variation between the noise that is drawn and N(0, sigma^2 I).

    Returns:
        0.0 if nothing is proved.

    Raises:
        InvalidArgument: an argument outside its range; a share of exactly 1 would prove an infinite radius.
    """
    if not 0 <= p_a < 1 or not 0 < p_b <= 1 or not 0 < sigma < math.inf or not 0 <= slack < 0.5:
        raise InvalidArgument("certified_radius needs p_a in [0, 1), p_b in (0, 1], sigma > 0 and slack in [0, 0.5)")
    a, b = p_a - slack, p_b + slack
    if a <= b or b >= 1:
        return 0.0
    upper, lower = float(ndtri(a)), float(ndtri(b))
    middle = float(ndtr((upper + lower) / 2))
    if not slack < middle < 1 - slack:
        return 0.0
    found = min(upper - float(ndtri(middle + slack)), float(ndtri(middle - slack)) - lower)
    size = max(1.0, abs(upper), abs(lower))
    return max(0.0, sigma * (found - _ROUNDING * size) * (1 - _ROUNDING))


def share_needed(radius: float, sigma: float, slack: float = 0.0) -> float:
    """The share that class A must exceed for a radius: Phi(radius / sigma), rounded up; 1.0 if none will do.

    With a slack t it is Phi(radius / sigma + Phi^-1(1/2 + t)) + t: the share at the attacked image is then above 1/2
    for the noise that is drawn.

    Args:
        radius: l2, at least 0, in the units of the image.
        sigma: standard deviation of the noise.
        slack: total variation between the noise that is drawn and N(0, sigma^2 I).

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if not 0 <= radius < math.inf or not 0 < sigma < math.inf or not 0 <= slack < 0.5:
        raise InvalidArgument("share_needed needs a finite radius >= 0, sigma > 0 and slack in [0, 0.5)")
    quantile = (radius / sigma + float(ndtri(0.5 + slack))) * (1 + _ROUNDING)
    share = (float(ndtr(quantile)) + slack) * (1 + _ROUNDING)
    return min(1.0, share)


def pixeldp_radius(p_a: float, p_b: float, sigma: float) -> float:
    """The radius that differential privacy proves (Lecuyer et al. 2019, PixelDP, proposition 1); never above Cohen's.

    The Gaussian mechanism is (eps, delta)-private for moves up to L if sigma >= sqrt(2 ln(1.25 / delta)) L / eps and
    eps <= 1, and A stays the likeliest if p_a > e^(2 eps) p_b + (1 + e^eps) delta. For each eps of a grid the largest
    delta is taken. Kept as the historical baseline.

    Args:
        p_a: a lower bound of the share of class A, in [0, 1].
        p_b: an upper bound of the share of every other class, in [0, 1].
        sigma: standard deviation of the noise.

    Raises:
        InvalidArgument: an argument outside its range.
    """
    if not 0 <= p_a <= 1 or not 0 <= p_b <= 1 or not 0 < sigma < math.inf:
        raise InvalidArgument("pixeldp_radius needs shares in [0, 1] and sigma > 0")
    if p_a < _LEAST:
        return 0.0
    eps = np.arange(1, _STEPS + 1) / _STEPS
    delta = (p_a - np.exp(2 * eps) * p_b) / (1 + np.exp(eps))
    eps, delta = eps[delta > 0], delta[delta > 0]
    if not len(eps):
        return 0.0
    return float(np.max(sigma * eps / np.sqrt(2 * (math.log(1.25) - np.log(delta))))) * (1 - _ROUNDING)


def shown(radius: float, digits: int = 3) -> str:
    """A radius for people, rounded towards zero: printing must not promise more than was proved."""
    scale = 10**digits
    whole = math.floor(radius * scale)
    if whole / scale > radius:  # the product was rounded up
        whole -= 1
    return f"{whole / scale:.{digits}f}"
