"""Which words tell harmful texts: a logistic regression on their occurrence, with weights bounded below by 0.

The bound makes it monotone: a word more never lowers the score. Fitted by L-BFGS-B in seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from curve import PAPER
from data import SHARES, Row
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from promptguard.score.arrays import Array
from promptguard.score.wordpieces import read_words


@dataclass(frozen=True)
class WordPlan:
    """Every setting of a fit."""

    paper_share: float  # of the erase-and-check paper's training split, beside the shares of the others
    ridge: float = 1.0
    total: float = 2000.0  # weight of each class
    seen: int = 2  # harmful texts that a word must occur in


def row_weights(rows: list[Row], plan: WordPlan) -> Array:
    """(rows,) weights that give every source its share within its class."""
    counts = Counter((row["label"], row["source"]) for row in rows)
    shares = {label: {**SHARES[label], PAPER: plan.paper_share} for label in SHARES}
    sums = {label: sum(shares[label].get(s, 0) for other, s in counts if other == label) for label in shares}
    each = {(k, s): plan.total * shares[k].get(s, 0) / sums[k] / count for (k, s), count in counts.items()}
    return np.array([each[row["label"], row["source"]] for row in rows])


def fit(rows: list[Row], plan: WordPlan) -> dict[str, float]:
    """Words and their weights, in log odds."""
    texts = [set(read_words(row["text"])) for row in rows]
    harmful = np.array([row["label"] == "harmful" for row in rows])
    seen = Counter(word for words, bad in zip(texts, harmful, strict=True) if bad for word in words)
    column = {word: i for i, word in enumerate(sorted(word for word, count in seen.items() if count >= plan.seen))}
    pairs = [(i, column[word]) for i, words in enumerate(texts) for word in sorted(words) if word in column]
    at = tuple(zip(*pairs, strict=True))
    occurs = csr_matrix((np.ones(len(pairs)), at), shape=(len(rows), len(column)))
    weights, sign = row_weights(rows, plan), np.where(harmful, 1.0, -1.0)

    def loss(values: Array) -> tuple[float, Array]:
        slopes, cut = values[:-1], values[-1]
        margin = sign * (occurs @ slopes - cut)
        pull = -sign * weights / (1 + np.exp(margin))
        penalty = plan.ridge * float(slopes @ slopes)
        gradient = np.append(occurs.T @ pull + 2 * plan.ridge * slopes, -pull.sum())
        return float(weights @ np.logaddexp(0, -margin)) + penalty, gradient

    bounds = [*[(0.0, None)] * len(column), (None, None)]
    found = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
    return {word: float(found.x[i]) for word, i in column.items() if found.x[i] > 0}
