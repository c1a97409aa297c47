"""Many token sequences with shared prefixes as one forward pass of a causal model.

A causal model's state at a token depends on the tokens before it only. Sequences that begin alike therefore share the
states of what they share: they are laid out as a trie, one row of tokens, each seeing its ancestors by a 4-D attention
mask and standing at its own depth by explicit position ids. The state at a sequence's last node is the state that the
model would have at its end had it been run alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Trie:
    """Token sequences as one row of nodes; parents come before their children.

    Attributes:
        ids: the token of each node.
        parents: the node before it, -1 at a beginning.
        depths: its position in its sequences.
        leaves: for each sequence added, its last node.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, sequence: Sequence[int]) -> None:
        """Add a sequence, at least one token."""
        node = -1
        for depth, token in enumerate(sequence):
            key = (node, token)
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = child
        self.leaves.append(node)

    def added_by(self, sequence: Sequence[int]) -> int:
        """How many nodes adding this sequence would make."""
        node = -1
        for depth, token in enumerate(sequence):
            child = self._children.get((node, token))
            if child is None:
                return len(sequence) - depth
            node = child
        return 0

    def is_chain(self) -> bool:
        """True when every node follows the one before it: a plain causal mask will do."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def visible(self, window: int | None = None) -> torch.Tensor:
        """Which nodes each node sees, itself among them: bool, shape (nodes, nodes).

        Args:
            window: with sliding-window attention, how many positions a token sees, its own included.
        """
        size = len(self)
        seen = torch.zeros(size, size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        if window is not None:
            depths = torch.tensor(self.depths)
            seen &= depths[:, None] - depths[None, :] < window
        return seen


def pack_tries(
    sequences: Sequence[Sequence[int]], max_nodes: int, *, related: bool = False
) -> Iterator[tuple[Trie, list[int]]]:
    """Tries of at most `max_nodes` nodes (one sequence may be longer) with the indices of the sequences they hold.

    Sequences are taken in the order of their tokens, so that those with a common beginning meet in one trie.

    Args:
        sequences: token ids, each at least one.
        max_nodes: nodes in a trie; a forward pass takes time and memory by its square.
        related: a sequence joins a trie only if it continues, or shares at least half with, the one before it.
    """
    trie, held = Trie(), list[int]()
    for index in sorted(range(len(sequences)), key=lambda index: list(sequences[index])):
        sequence = sequences[index]
        if held:
            new = trie.added_by(sequence)
            shorter = min(len(sequence), len(sequences[held[-1]]))
            stranger = related and 2 * (len(sequence) - new) < shorter
            if stranger or len(trie) + new > max_nodes:
                yield trie, held
                trie, held = Trie(), []
        trie.add(sequence)
        held.append(index)
    if held:
        yield trie, held
