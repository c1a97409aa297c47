"""The shared adversary: every text that a threat makes of a prompt, listed or sampled.

A prompt is a sequence of pieces. With the pieces of a unit this is the unit-level attack; with single code points
(`list(text)`) it is the string-level attack, where what is added may be glued to the prompt, blank or invisible.
Nothing of the package is used to make attacks, so a fault there cannot hide itself here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from promptguard.threat import Threat

Pieces = tuple[str, ...]

# No clock decides a test: machines that run many at once are slow.
settings.register_profile("promptguard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("promptguard")

# Additions for string-level attacks: each costs one visible code point or white space character.
ZERO_WIDTH = "\u200b"
TAG_B = chr(0xE0000 + ord("b"))
CYRILLIC_A = "\u0430"
COMBINING_ACUTE = "\u0301"
BLANK_BRAILLE = "\u2800"
NASTY = (
    *("b", "!", " ", "\t", BLANK_BRAILLE, ZERO_WIDTH, ZERO_WIDTH + "b", "b" + ZERO_WIDTH),
    *(TAG_B, CYRILLIC_A, COMBINING_ACUTE),
)


def threat(kind: str, budget: float, blocks: int = 1) -> Threat:
    """A threat whose unit does not matter here."""
    return Threat(kind, budget, "piece", blocks)


def words(alphabet: Sequence[str], longest: int, shortest: int = 0) -> Iterator[Pieces]:
    """Every sequence over the alphabet, shortest first."""
    for length in range(shortest, longest + 1):
        yield from product(alphabet, repeat=length)


def _with_suffix(prompt: Pieces, budget: int, alphabet: Sequence[str]) -> Iterator[Pieces]:
    for added in words(alphabet, budget):
        yield prompt + added


def _with_block(prompt: Pieces, budget: int, alphabet: Sequence[str]) -> Iterator[Pieces]:
    for added in words(alphabet, budget):
        for place in range(len(prompt) + 1):
            yield prompt[:place] + added + prompt[place:]


def _wrapped(prompt: Pieces, budget: int, alphabet: Sequence[str]) -> Iterator[Pieces]:
    for before in words(alphabet, budget):
        for after in words(alphabet, budget - len(before)):
            yield before + prompt + after


def attacks(threat: Threat, prompt: Sequence[str], alphabet: Sequence[str], cap: int = 3) -> set[Pieces]:
    """Every attacked prompt within budget, the prompt itself included.

    Insertion puts block after block into what is there, so blocks touch each other, the ends, and lie in each other.
    An unlimited budget is tried up to `cap`.
    """
    start = tuple(prompt)
    budget = cap if math.isinf(threat.budget) else int(threat.budget)
    if threat.kind == "suffix":
        return set(_with_suffix(start, budget, alphabet))
    if threat.kind == "wrap":
        return set(_wrapped(start, budget, alphabet))
    size, rounds = (budget, threat.blocks) if threat.kind == "insertion" else (1, budget)
    reached, frontier = {start}, {start}
    for _ in range(rounds if size else 0):
        frontier = {x for prompt_ in frontier for x in _with_block(prompt_, size, alphabet)} - reached
        reached |= frontier
    return reached


@st.composite
def attacked(draw: st.DrawFn, threat: Threat, prompt: Sequence[str], addition: st.SearchStrategy[str]) -> Pieces:
    """One attacked prompt within budget (an unlimited one is tried up to 8)."""
    budget = 8 if math.isinf(threat.budget) else int(threat.budget)
    if threat.kind == "wrap":
        before = tuple(draw(st.lists(addition, max_size=budget)))
        return before + tuple(prompt) + tuple(draw(st.lists(addition, max_size=budget - len(before))))
    blocks = {"suffix": 1, "insertion": threat.blocks}.get(threat.kind, budget)
    size = 1 if threat.kind == "infusion" else budget
    result = tuple(prompt)
    for _ in range(blocks):
        block = tuple(draw(st.lists(addition, max_size=size)))
        place = len(result) if threat.kind == "suffix" else draw(st.integers(0, len(result)))
        result = result[:place] + block + result[place:]
    return result


def threats(max_budget: int = 3, max_blocks: int = 3) -> st.SearchStrategy[Threat]:
    """Threats of every kind."""
    budgets = st.integers(0, max_budget)
    return st.one_of(
        st.builds(threat, st.sampled_from(["suffix", "infusion"]), budgets),
        st.builds(threat, st.just("insertion"), budgets, st.integers(1, max_blocks)),
    )


def text_without_surrogates(max_size: int = 30) -> st.SearchStrategy[str]:
    """Any Unicode text, with the code points that views and units care about drawn often."""
    disguised = "\u00a0\u3000\u00ad\ufeff\ufe0f\u3164\U000e0020\U000e0041é中あ½´¨ﷺﬁ①Ⅷ🇦😀"
    special = st.sampled_from([*NASTY, *disguised, *" \na.,'A1_"])
    anything = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.lists(st.one_of(special, anything), max_size=max_size).map("".join)
