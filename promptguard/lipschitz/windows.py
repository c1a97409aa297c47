"""How much the evidence of a text's windows can change under edits of its characters, in one pass.

F(x) = bias + sum of g(w) over the windows w of q consecutive symbols of x, with q - 1 blanks put before and after it. A
convolutional filter with sum pooling has this form. One edit inserts, deletes or replaces one symbol; k edits are a
Levenshtein distance of at most k.

    Theorem 1 (constants). If replacing slot s of a window by another symbol changes g by at most a_s, g moves by at
    most R and |g| <= G, one edit changes F by at most the larger of the sum of all a_s, and
        G + min over c of [sum_{i <= c} min(R, a_1 + ... + a_i) + sum_{i > c + 1} min(R, a_i + ... + a_q)].

Proof. A replaced symbol is in q windows, in each slot once. An inserted one is in q new windows, in slot i of the i-th,
which stand for q - 1 old ones that spanned the place. New window i has the symbols of old window i right of slot i, and
those of old window i - 1 left of it. Pair the first c with their own number, those after c + 1 with the one before, and
leave one alone. A deletion is an insertion backwards.

The sum of all a_s is the constant of LipsLev (Abad Rocamora et al. 2025, *Certified Robustness Under Bounded
Levenshtein Distance*): norms of the kernel's columns times the largest distance of embeddings. As a bound for inserted
symbols too it would be too small: a symbol with embedding 0 splits the windows that span it, though it "moves" nothing.

    Theorem 2 (windows). If g >= -m, k edits lower F by at most k q m and the largest sum of max(g, 0) over the windows
    of x in k runs of q consecutive windows.

Proof. An edit hits one symbol of x, in q consecutive windows, or the gap between two neighbours, in q - 1. The other
windows stand in the attacked text too. Its remaining windows hold an inserted or replaced symbol or span a deletion:
at most q for each edit, of at least -m each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def edit_constant(slots: Sequence[float], reach: float, size: float) -> float:
    """What one edit changes F by, at most (theorem 1).

    Args:
        slots: a_1, ..., a_q.
        reach: R, how far apart two values of g can be.
        size: G, the largest |g|.
    """
    left = [min(reach, total) for total in accumulate(slots)]
    right = [min(reach, total) for total in accumulate(reversed(slots))][::-1]
    pairings = (sum(left[:c]) + sum(right[c + 1 :]) for c in range(len(slots)))
    return max(sum(min(reach, slot) for slot in slots), size + min(pairings))


def destroyed(evidence: Sequence[float], width: int, budget: int) -> list[float]:
    """The largest sum of positive evidence in k runs of `width` consecutive windows, for k = 0, ..., budget.

    Args:
        evidence: g of each window, in order.
        width: q.
        budget: of edits.
    """
    positive = [max(0.0, value) for value in evidence]
    sums = [0.0, *accumulate(positive)]
    best = [0.0] * (len(positive) + 1)  # of the first windows, with k runs
    found = [0.0]
    for _ in range(budget):
        # Runs can be taken apart: moving one beyond the text's end, or off another one, loses nothing.
        ending = [best[max(0, end - width)] + sums[end] - sums[max(0, end - width)] for end in range(len(sums))]
        best = list(accumulate(ending, max))
        found.append(best[-1])
        if best[-1] >= sums[-1]:
            break
    return found + [found[-1]] * (budget + 1 - len(found))


def lower_bounds(
    score: float, evidence: Sequence[float], *, width: int, floor: float, constant: float, budget: int
) -> list[float]:
    """The least that F can be after k edits, for k = 0, ..., budget; descending.

    Args:
        score: F of the text.
        evidence: g of each of its windows.
        width: q.
        floor: m, the largest -g.
        constant: what one edit changes F by, at most.
        budget: of edits.
    """
    runs = destroyed(evidence, width, budget)
    return [score - min(k * constant, runs[k] + k * width * floor) for k in range(budget + 1)]
