"""Bounds of the shares of votes, for the largest radius: of the chosen class from below, of all others from above."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from promptguard.stats import lower_bound, upper_bound
from promptguard.vision.votes import Tally


class RunnerUp(Protocol):
    """How the share of the other classes is bounded, for the largest radius."""

    def shares(self, chosen: int, selection: Tally, votes: Tally, alpha: float) -> tuple[float, float]:
        """A lower bound of the chosen class' share and an upper bound of every other one's, both right 1 - alpha."""
        ...


class Rest:
    """All other classes together: p_B = 1 - p_A, so alpha goes to one bound. Nothing is lost with two classes."""

    def shares(self, chosen: int, selection: Tally, votes: Tally, alpha: float) -> tuple[float, float]:
        """See `RunnerUp`."""
        del selection
        low = lower_bound(int(votes.counts[chosen]), votes.trials, 1 - alpha)
        return low, 1 - low


class ClassPartition:
    """Groups of other classes, each with a bound of its own: Bonferroni over the groups (Delattre et al. 2025, CPM).

    The groups come from the selection votes alone: the runner-up is one, and the others are put together as long as
    they stay below it. No class of a group is likelier than the group. A sound use of a bound per class when three of a
    thousand classes matter; with p_A = .55 and p_B = .05 of ten classes the radius is .87 sigma, by `Rest` .11.
    """

    def shares(self, chosen: int, selection: Tally, votes: Tally, alpha: float) -> tuple[float, float]:
        """See `RunnerUp`."""
        groups = self.groups(chosen, selection)
        each = alpha / (1 + len(groups))
        low = lower_bound(int(votes.counts[chosen]), votes.trials, 1 - each)
        sums = (int(votes.counts[group].sum()) + votes.unsure for group in groups)
        return low, min(1 - low, max(upper_bound(s, votes.trials, 1 - each) for s in sums))

    @staticmethod
    def groups(chosen: int, selection: Tally) -> list[list[int]]:
        """The other classes: the runner-up alone, then first fit into groups that are no likelier than it."""
        order = [int(c) for c in np.argsort(-selection.counts, kind="stable") if c != chosen]
        most = max(1, int(selection.counts[order[0]]))
        groups: list[list[int]] = []
        sizes: list[int] = []
        for one in order:
            count = int(selection.counts[one])
            fits = next((i for i, size in enumerate(sizes) if i and size + count <= most), None)
            if fits is None:
                groups.append([one])
                sizes.append(count)
            else:
                groups[fits].append(one)
                sizes[fits] += count
        return groups
