"""Tries: every sequence is a path, nothing shared is there twice, and a node sees its own past and no more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptguard.score.trie import Trie, pack_tries

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12)


def grown(sequences: list[list[int]]) -> Trie:
    trie = Trie()
    for sequence in sequences:
        trie.add(sequence)
    return trie


def path(trie: Trie, node: int) -> list[int]:
    """Nodes from a beginning to this one."""
    found = []
    while node >= 0:
        found.append(node)
        node = trie.parents[node]
    return found[::-1]


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}


@given(SEQUENCES)
def test_every_sequence_is_a_path_and_every_prefix_one_node(sequences: list[list[int]]) -> None:
    trie = grown(sequences)
    assert len(trie) == len(prefixes(sequences))
    assert all(parent < node for node, parent in enumerate(trie.parents))
    for sequence, leaf in zip(sequences, trie.leaves, strict=True):
        nodes = path(trie, leaf)
        assert [trie.ids[node] for node in nodes] == sequence
        assert [trie.depths[node] for node in nodes] == list(range(len(sequence)))


@given(SEQUENCES, st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_what_a_sequence_adds_is_known_before(sequences: list[list[int]], another: list[int]) -> None:
    trie = grown(sequences)
    before, added = len(trie), trie.added_by(another)
    trie.add(another)
    assert len(trie) - before == added
    assert trie.added_by(another) == 0


@given(SEQUENCES, st.one_of(st.none(), st.integers(1, 9)))
def test_a_node_sees_its_ancestors_within_the_window(sequences: list[list[int]], window: int | None) -> None:
    trie = grown(sequences)
    seen = trie.visible(window)
    assert seen.dtype == torch.bool
    assert seen.shape == (len(trie), len(trie))
    for node in range(len(trie)):
        expected = path(trie, node)[-(window or len(trie)) :]
        assert seen[node].nonzero().flatten().tolist() == expected


@given(SEQUENCES)
def test_a_chain_has_the_plain_causal_mask(sequences: list[list[int]]) -> None:
    trie = grown(sequences)
    causal = torch.ones(len(trie), len(trie), dtype=torch.bool).tril()
    assert trie.is_chain() == torch.equal(trie.visible(), causal)


@given(SEQUENCES, st.integers(1, 20), st.booleans())
def test_packing_takes_every_sequence_once_and_keeps_to_the_limit(
    sequences: list[list[int]], limit: int, related: bool
) -> None:
    seen = []
    for trie, held in pack_tries(sequences, limit, related=related):
        assert len(trie) <= limit or len(held) == 1
        assert len(trie.leaves) == len(held)
        for index, leaf in zip(held, trie.leaves, strict=True):
            assert [trie.ids[node] for node in path(trie, leaf)] == sequences[index]
        seen += held
    assert sorted(seen) == list(range(len(sequences)))


@pytest.mark.parametrize("trunk", [1, 10])
def test_prefixes_with_a_common_end_cost_one_trunk(trunk: int) -> None:
    """The erasures of a suffix inside a template: the trunk once, and the template's end for each."""
    text, end = list(range(trunk)), [100, 101, 102]
    (trie, held), *more = pack_tries([text[: at + 1] + end for at in range(trunk)], 10_000)
    assert not more
    assert len(held) == trunk
    assert len(trie) == trunk + trunk * len(end)
