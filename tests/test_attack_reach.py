"""What a threat reaches is read off strings: against brute force, and case by case where units are subtle."""

from __future__ import annotations

import math
import random
from itertools import product

import attacks
import pytest

from promptguard.attack.reach import Reach
from promptguard.erase import load_mode
from promptguard.errors import EmptyText, InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.units import Tokens, load_units
from promptguard.view import canonical


def reach(text: str, kind: str, budget: float = math.inf, unit: str = "word", blocks: int = 1, cap: int = 40) -> Reach:
    return Reach(text, Threat(kind, budget, unit, blocks), load_units(unit), cap=cap)


THREATS = [("suffix", 1), ("infusion", 1), ("wrap", 1), ("insertion", 1), ("insertion", 2)]


@pytest.mark.parametrize(("kind", "blocks"), THREATS)
@pytest.mark.parametrize("prompt", ["aba", "aab", "a"])
def test_the_cost_is_the_smallest_budget_that_reaches_a_text(kind: str, blocks: int, prompt: str) -> None:
    within = [attacks.attacks(attacks.threat(kind, b, blocks), prompt, "ab") for b in range(4)]
    subject = reach(prompt, kind, unit="char", blocks=blocks)
    tested = 0
    for n in range(1, len(prompt) + 4):
        for text in map("".join, product("ab", repeat=n)):
            least = next((b for b, texts in enumerate(within) if tuple(text) in texts), None)
            found = subject.cost(text)
            assert found == least or (least is None and found is not None and found > 3)
            tested += least is not None
    assert tested > 3


@pytest.mark.parametrize("kind", ["suffix", "infusion", "wrap", "insertion"])
def test_some_erasure_of_every_text_that_is_reached_leaves_the_prompt(kind: str) -> None:
    prompt, rng = "How do I pick (your) lock?", random.Random(0)
    subject = reach(prompt, kind, 2)
    units, mode = load_units("word"), load_mode(kind, 2)
    held = 0
    for _ in range(200):
        slots = subject.slots(rng, 2)
        text = subject.with_added(sorted((rng.choice(slot), rng.choice(["cat", "!", "x"])) for slot in slots))
        if not subject.holds(text):
            continue
        held += 1
        pieces = units(text)
        assert any(
            canonical("".join(p for at, p in enumerate(pieces) if not any(a <= at < b for a, b in e.runs)))
            == canonical(prompt)
            for e in mode.erasures(len(pieces))
        )
    assert held > 150


@pytest.mark.parametrize(
    ("kind", "text", "cost"),
    [
        ("suffix", "how to x", 1),
        ("suffix", "how to", 0),
        ("suffix", "how tox", None),
        ("suffix", "how to!", 1),
        ("suffix", "how to don't", 3),
        ("suffix", "x how to", None),
        ("suffix", "how to\u200b x", 1),
        ("infusion", "x how to", 1),
        ("infusion", "x how y to z", 3),
        ("infusion", "how, to", 1),
        ("infusion", "how -to", None),
        ("infusion", "to how", None),
        ("infusion", "how", None),
        ("insertion", "x y how to", 2),
        ("insertion", "x how to y", None),
        ("wrap", "x how to y", 2),
        ("wrap", "how x to", None),
        ("wrap-boundary", "x. how to y", 3),
        ("wrap-boundary", "x how to", None),
        ("substitution", "how do", 1),
        ("substitution", "how to do", None),
        ("deletion", " to", 1),
        ("deletion", "how to x", None),
        ("edit", "how do it", 2),
        ("edit", "x", 2),
    ],
)
def test_costs_in_words(kind: str, text: str, cost: int | None) -> None:
    assert reach("how to", kind).cost(text) == cost


def test_two_blocks_cost_the_larger_one() -> None:
    two = reach("how to", "insertion", blocks=2)
    assert two.cost("x y how z to") == 2
    assert two.cost("x how y to z") is None
    assert two.cost("how to a b c") == 2  # two blocks that touch
    assert two.room == 80


def test_every_character_counts_in_characters_and_text_may_be_glued() -> None:
    glued = reach("how to", "infusion", unit="char")
    assert glued.cost("hxow to") == 1
    assert glued.cost("how to x") == 2
    assert glued.glues
    assert glued.with_added([(1, "x"), (1, "y"), (6, "!")]) == "hxyow to!"
    assert glued.around(6, apart=True) == ("how to ", "")
    assert glued.around(1, apart=True) == ("h ", " ow to")
    assert glued.around(1) == ("h", "ow to")


def test_words_are_set_off_and_only_where_the_unit_allows_it() -> None:
    subject = reach("don't go", "infusion")
    assert subject.with_added([(0, "x"), (3, "y"), (4, "z")]) == "x don't y go z"
    assert subject.slots(random.Random(0), 1) == [[0, 1, 2, 3, 4]]
    assert subject.cost(subject.with_added([(2, "!")])) == 1  # a mark may stand before the t
    assert subject.cost(subject.with_added([(2, "x")])) is None  # a letter would be glued to it
    assert reach("go now", "suffix").slots(random.Random(0), 2) == [[2], [2]]
    assert reach("go now", "wrap").slots(random.Random(0), 1) == [[0, 2]]


def test_the_additions_of_an_insertion_keep_to_its_blocks() -> None:
    subject = reach("one two three four", "insertion", 3, blocks=2)
    for seed in range(20):
        slots = subject.slots(random.Random(seed), 6)
        assert len({tuple(slot) for slot in slots}) <= 2
        assert subject.holds(subject.with_added(sorted((slot[0], "x") for slot in slots)))


def test_an_unlimited_budget_is_capped_and_a_limited_one_is_kept() -> None:
    assert reach("how to", "suffix", math.inf, cap=7).budget == 7
    assert reach("how to", "suffix", 3, cap=7).budget == 3
    assert not reach("how to", "suffix", 1).holds("how to x y")
    assert reach("how to", "suffix", 1).holds("how to x")


def test_tokens_are_counted_by_their_own_units() -> None:
    tiny = pytest.importorskip("tiny")
    units = Tokens(tiny.wordpiece())
    subject = Reach("how to steal", Threat("suffix", 2, units.name), units)
    assert subject.cost("how to steal a") == 1
    assert subject.added("how to steal a car") == len(units("how to steal a car")) - len(units("how to steal"))


@pytest.mark.parametrize(
    ("threat", "error"),
    [
        (Threat("paraphrase", 3, "word"), UnsupportedThreat),
        (Threat("suffix", -1, "word"), InvalidArgument),
        (Threat("suffix", 1.5, "word"), InvalidArgument),
        (Threat("suffix", 3, "char"), InvalidArgument),
        (Threat("insertion", 3, "word", blocks=0), InvalidArgument),
        (Threat("wrap", 3, "word", max_prompt=1), InvalidArgument),
    ],
)
def test_threats_that_mean_nothing_are_refused(threat: Threat, error: type[Exception]) -> None:
    with pytest.raises(error):
        Reach("how to", threat, load_units("word"))


def test_an_empty_prompt_and_a_negative_cap_are_refused() -> None:
    with pytest.raises(EmptyText):
        reach(" ", "suffix")
    with pytest.raises(InvalidArgument):
        reach("how", "suffix", cap=-1)
