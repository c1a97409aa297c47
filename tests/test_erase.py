"""Stage 2: erasures are the allowed ones, each once, cheapest first, counted right, and they undo every attack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, islice, pairwise, product
from typing import Any

import pytest
from attacks import attacks, threat
from hypothesis import given, settings
from hypothesis import strategies as st

from promptguard.erase import MODES, load_mode
from promptguard.errors import InvalidArgument, UnknownName
from promptguard.threat import Threat
from promptguard.types import Certificate, EraseMode, Erasure

KINDS = [("suffix", 1), ("insertion", 1), ("insertion", 2), ("insertion", 3), ("infusion", 1)]
SMALL = [(kind, blocks, budget) for kind, blocks in KINDS for budget in range(5)]


def kept(erasure: Erasure, n: int) -> frozenset[int]:
    """What an erasure leaves."""
    return frozenset(range(n)) - {i for start, stop in erasure.runs for i in range(start, stop)}


def erase(pieces: tuple[str, ...], erasure: Erasure) -> tuple[str, ...]:
    return tuple(pieces[i] for i in sorted(kept(erasure, len(pieces))))


def allowed(kind: str, blocks: int, budget: int, n: int) -> set[frozenset[int]]:
    """The kept sets that the definition allows, straight from its words."""
    everything = frozenset(range(n))
    if kind == "suffix":
        return {frozenset(range(n - dropped)) for dropped in range(min(budget, n) + 1)}
    if kind == "infusion":
        return {everything - set(c) for size in range(min(budget, n) + 1) for c in combinations(range(n), size)}
    spans = {frozenset(range(a, b)) for a in range(n + 1) for b in range(a, min(a + budget, n) + 1)}
    return {everything - frozenset().union(*chosen) for chosen in product(spans, repeat=blocks)}


@pytest.mark.parametrize(("kind", "blocks", "budget"), SMALL)
def test_erasures_are_the_allowed_ones_each_once(kind: str, blocks: int, budget: int) -> None:
    for n in range(7 if blocks < 3 else 6):
        found = [kept(e, n) for e in load_mode(kind, budget, blocks).erasures(n)]
        assert len(found) == len(set(found))
        assert set(found) == allowed(kind, blocks, budget, n)


@pytest.mark.parametrize(("kind", "blocks", "budget"), SMALL)
def test_erasures_come_cheapest_first_and_the_first_erases_nothing(kind: str, blocks: int, budget: int) -> None:
    for n in range(7):
        found = list(load_mode(kind, budget, blocks).erasures(n))
        assert found[0] == Erasure(0, ())
        assert all(a.cost <= b.cost for a, b in pairwise(found))
        assert all(0 <= e.cost <= min(budget, n) for e in found)


@pytest.mark.parametrize(("kind", "blocks", "budget"), SMALL)
def test_runs_are_ascending_apart_and_inside_the_text(kind: str, blocks: int, budget: int) -> None:
    for n in range(7):
        for erasure in load_mode(kind, budget, blocks).erasures(n):
            assert all(0 <= start < stop <= n for start, stop in erasure.runs)
            assert all(a[1] < b[0] for a, b in pairwise(erasure.runs))


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_cost_is_the_smallest_budget_that_allows_the_erasure(kind: str, blocks: int) -> None:
    for n in range(6):
        by_budget = [allowed(kind, blocks, budget, n) for budget in range(5)]
        for erasure in load_mode(kind, 4, blocks).erasures(n):
            assert kept(erasure, n) in by_budget[erasure.cost]
            assert erasure.cost == 0 or kept(erasure, n) not in by_budget[erasure.cost - 1]


@pytest.mark.parametrize(("kind", "blocks", "budget"), SMALL)
def test_count_is_the_number_of_erasures(kind: str, blocks: int, budget: int) -> None:
    mode = load_mode(kind, budget, blocks)
    assert [mode.count(n) for n in range(8)] == [sum(1 for _ in mode.erasures(n)) for n in range(8)]


@given(st.integers(0, 40), st.one_of(st.integers(0, 60), st.just(math.inf)))
def test_counts_are_the_closed_forms_of_the_paper(n: int, budget: float) -> None:
    d = int(min(budget, n))
    assert load_mode("suffix", budget).count(n) == d + 1
    assert load_mode("insertion", budget).count(n) == 1 + sum(n - j + 1 for j in range(1, d + 1))
    assert load_mode("infusion", budget).count(n) == sum(math.comb(n, i) for i in range(d + 1))


def test_count_of_two_blocks_of_one_unit_is_the_count_of_at_most_two_units() -> None:
    assert load_mode("insertion", 1, 2).count(50) == load_mode("infusion", 2).count(50) == 1 + 50 + 50 * 49 // 2


@given(st.sampled_from(KINDS), st.one_of(st.integers(0, 9), st.just(math.inf)), st.integers(0, 14), st.integers(1, 500))
def test_a_limit_changes_only_counts_above_it(kind: tuple[str, int], budget: float, n: int, limit: int) -> None:
    mode = load_mode(kind[0], budget, kind[1])
    exact, limited = mode.count(n), mode.count(n, limit)
    assert limited == exact if exact <= limit else limited > limit


@given(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 12))
def test_counts_grow_with_the_text_and_with_the_budget(kind: tuple[str, int], budget: int, n: int) -> None:
    mode = load_mode(kind[0], budget, kind[1])
    assert mode.count(n) <= mode.count(n + 1)
    assert mode.count(n) <= mode.with_budget(budget + 1).count(n)


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_counting_a_long_text_does_not_list_it(kind: str, blocks: int) -> None:
    n = 100_000
    assert load_mode(kind, 3, blocks).count(n) > (3 if kind == "suffix" else n)
    assert load_mode(kind, math.inf, blocks).count(n, 10_000) > 10_000
    assert load_mode(kind, 50, blocks).count(n, 10_000) > 50
    assert load_mode("infusion", 3).count(n) == 1 + n + math.comb(n, 2) + math.comb(n, 3)


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_erasures_of_a_long_text_are_lazy(kind: str, blocks: int) -> None:
    first = list(islice(load_mode(kind, math.inf, blocks).erasures(100_000), 3))
    assert [e.cost for e in first] == [0, 1, 1] if kind != "suffix" else [0, 1, 2]


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_no_units_have_one_erasure(kind: str, blocks: int) -> None:
    for budget in (0, 3, math.inf):
        assert list(load_mode(kind, budget, blocks).erasures(0)) == [Erasure(0, ())]
        assert load_mode(kind, budget, blocks).count(0) == 1


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_a_budget_larger_than_the_text_is_the_whole_text(kind: str, blocks: int) -> None:
    expected = {kept(e, 4) for e in load_mode(kind, 4, blocks).erasures(4)}
    for budget in (5, 10**9, math.inf):
        assert {kept(e, 4) for e in load_mode(kind, budget, blocks).erasures(4)} == expected


# The law: whatever is added within budget, some erasure leaves exactly the prompt. The pieces of the prompt are all
# different and none is "*", so only erasing every addition and nothing else can do it.
def recovers(mode: EraseMode, prompt: tuple[str, ...], attacked: tuple[str, ...]) -> bool:
    return any(erase(attacked, e) == prompt for e in mode.erasures(len(attacked)))


LAW = [
    *((kind, 1, budget) for kind in ("suffix", "insertion", "infusion") for budget in range(4)),
    *(("insertion", 2, budget) for budget in range(3)),
    ("insertion", 3, 1),
]


@pytest.mark.parametrize(("kind", "blocks", "budget"), LAW)
def test_every_attack_within_budget_is_undone(kind: str, blocks: int, budget: int) -> None:
    mode = load_mode(kind, budget, blocks)
    for n in range(6):
        prompt = tuple(map(str, range(n)))
        for attacked in attacks(threat(kind, budget, blocks), prompt, "*"):
            assert len(attacked) <= mode.longest(n, budget)
            assert recovers(mode, prompt, attacked), attacked


@pytest.mark.parametrize(("kind", "blocks", "budget"), LAW)
def test_longest_is_reached(kind: str, blocks: int, budget: int) -> None:
    longest = max(map(len, attacks(threat(kind, budget, blocks), ("0", "1"), "*")))
    assert load_mode(kind, 9, blocks).longest(2, budget) == longest


def further_attacks(kind: str, blocks: int, budget: int, n: int, spent: int, left: int) -> Iterator[bool]:
    """Is a witness of cost `spent` still reachable, for each further attack with budget `left`?"""
    prompt, mode = tuple(map(str, range(n))), load_mode(kind, budget, blocks)
    witnesses = [erase(prompt, e) for e in mode.erasures(n) if e.cost == spent]
    for attacked in attacks(threat(kind, left, blocks), prompt, "*"):
        reached = {erase(attacked, e) for e in mode.erasures(len(attacked))}
        yield from (witness in reached for witness in witnesses)


@pytest.mark.parametrize(("kind", "blocks", "budget"), [*LAW, ("infusion", 1, 4), ("suffix", 1, 6)])
def test_what_is_left_of_the_budget_cannot_hide_a_witness(kind: str, blocks: int, budget: int) -> None:
    mode = load_mode(kind, budget, blocks)
    for spent in range(budget + 1):
        left = mode.left(spent)
        if left is not None:
            assert left == int(left)
            assert 0 <= left <= budget
            assert all(further_attacks(kind, blocks, budget, 4, spent, int(left)))


@pytest.mark.parametrize("kind", ["suffix", "infusion"])
def test_one_unit_more_than_what_is_left_hides_a_witness(kind: str) -> None:
    for spent in range(4):
        left = load_mode(kind, 3).left(spent)
        assert left is not None
        assert not all(further_attacks(kind, 1, 3, 4, spent, int(left) + 1))


@pytest.mark.parametrize("blocks", [1, 2])
def test_insertion_certifies_nothing_once_a_block_is_spent(blocks: int) -> None:
    mode = load_mode("insertion", 2, blocks)
    assert mode.left(0) == 2
    assert mode.left(1) is None
    assert mode.left(2) is None
    assert not all(further_attacks("insertion", blocks, 2, 4, 1, 1))  # the rule "d - spent" has counter-examples


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_an_unlimited_budget_leaves_an_unlimited_budget(kind: str, blocks: int) -> None:
    assert load_mode(kind, math.inf, blocks).left(0) == math.inf


@given(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=30)
def test_with_budget_changes_only_the_budget(kind: tuple[str, int], before: int, after: int) -> None:
    mode = load_mode(kind[0], before, kind[1])
    other = mode.with_budget(after)
    assert (other.kind, other.budget, other.blocks) == (kind[0], after, kind[1])
    assert other == load_mode(kind[0], after, kind[1])
    assert mode.budget == before


@pytest.mark.parametrize("kind", list(MODES))
@pytest.mark.parametrize("budget", [-1, -0.5, 1.5, True, False, math.nan, -math.inf])
def test_a_budget_that_is_no_whole_number_is_refused(kind: str, budget: Any) -> None:
    with pytest.raises(InvalidArgument):
        load_mode(kind, budget)
    with pytest.raises(InvalidArgument):
        load_mode(kind, 1).with_budget(budget)


@pytest.mark.parametrize("kind", list(MODES))
def test_a_whole_float_is_a_budget(kind: str) -> None:
    mode = load_mode(kind, 2.0)
    assert mode.budget == 2
    assert len(list(mode.erasures(3))) == mode.count(3)


@pytest.mark.parametrize("kind", ["suffix", "infusion"])
@pytest.mark.parametrize("blocks", [0, 2, -1])
def test_only_insertion_has_blocks(kind: str, blocks: int) -> None:
    with pytest.raises(InvalidArgument):
        load_mode(kind, 2, blocks)


@pytest.mark.parametrize("blocks", [0, -1, 1.5, math.nan, math.inf, True])
def test_blocks_that_are_no_positive_whole_number_are_refused(blocks: Any) -> None:
    with pytest.raises(InvalidArgument):
        load_mode("insertion", 2, blocks)


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"suffix, insertion, infusion.*'suffix'"):
        load_mode("sufix", 2)


@pytest.mark.parametrize("kind", list(MODES))
def test_a_mode_is_registered_under_its_kind(kind: str) -> None:
    assert load_mode(kind, 1).kind == kind


def test_threats_are_written_in_words_and_numbers() -> None:
    assert Threat("suffix", 1, "char").describe() == "up to 1 character appended"
    assert "unlimited" in Threat("suffix", math.inf, "char").to_dict()["budget"]
    assert "2 blocks of up to 3 whole words" in Threat("insertion", 3, "word", 2).describe()


def test_an_l2_threat_keeps_its_fraction() -> None:
    threat = Threat("l2", 0.25, "image")
    assert threat.describe() == "any change of the image of Euclidean norm at most 0.25"
    assert threat.to_dict() == {"kind": "l2", "budget": 0.25, "unit": "image", "blocks": 1}
    certificate = Certificate(3, threat, "smoothing", 0.999, "f")
    assert "this image stays in class 3 with probability at least 0.999" in certificate.sentence()
