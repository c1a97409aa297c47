"""Edit certificates by brute force: every string within the certified distance keeps the label."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptguard.certify.levenshtein import MAX_RADIUS, EditFilter, LevenshteinCertifier
from promptguard.errors import EmptyText, FilterError, InvalidArgument, TextTooLong, UnsupportedThreat
from promptguard.lipschitz.text import ALPHABET, WindowFilter, Windows
from promptguard.lipschitz.text_training import TextRecipe, fit_windows
from promptguard.lipschitz.windows import destroyed, edit_constant, lower_bounds
from promptguard.types import Certifier, Label


def windows(seed: int, widths: Sequence[int] = (2, 2), *, floor: float = 0.1, scale: float = 1.0) -> Windows:
    made = Windows(widths, 4, floor=floor, cap=1.0, alphabet="ab", generator=torch.Generator().manual_seed(seed))
    for parameter in made.parameters():
        parameter.data.mul_(scale)
    return made


def neighbours(text: str, alphabet: str = "abz") -> set[str]:
    """Every string at Levenshtein distance 1."""
    found = {text[:at] + text[at + 1 :] for at in range(len(text))}
    for letter in alphabet:
        found |= {text[:at] + letter + text[at + 1 :] for at in range(len(text))}
        found |= {text[:at] + letter + text[at:] for at in range(len(text) + 1)}
    return found - {text}


def within(text: str, distance: int) -> Iterator[tuple[int, str]]:
    """Every string within a distance, with its distance."""
    seen, edge = {text}, {text}
    for at in range(1, distance + 1):
        edge = {near for one in edge for near in neighbours(one)} - seen
        seen |= edge
        yield from ((at, one) for one in edge)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**20), st.sampled_from([(1,), (2,), (3,), (2, 2), (1, 3)]), st.sampled_from([0.0, 0.1, 1.0]),
       st.sampled_from([0.2, 1.0, 4.0]), st.text("abz", min_size=1, max_size=5))  # fmt: skip
def test_every_string_within_the_distance_scores_at_least_the_bound(
    seed: int, widths: tuple[int, ...], floor: float, scale: float, text: str
) -> None:
    filter_ = WindowFilter(windows(seed, widths, floor=floor, scale=scale))
    bounds = filter_.edit_scores(text, 2)
    assert bounds[0] == filter_([text])[0]
    reached = [(at, one) for at, one in within(text, 2) if one]
    for (at, _), score in zip(reached, filter_([one for _, one in reached]), strict=True):
        assert score >= bounds[at] - filter_.guard_band


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**20), st.integers(1, 3), st.text("abz", min_size=3, max_size=6))
def test_certified_strings_keep_their_label(seed: int, radius: int, text: str) -> None:
    made = WindowFilter(windows(seed, (2,), floor=0.02))
    score = made([text])[0]
    filter_ = WindowFilter(windows(seed, (2,), floor=0.02), threshold=score * 0.6)
    found = LevenshteinCertifier(filter_).certify(text)
    asked = LevenshteinCertifier(filter_, radius).certify(text)
    assert found.certificate is not None
    budget = int(found.certificate.threat.budget)
    assert (asked.certificate is not None) == (radius <= budget)
    for _, one in within(text, min(2, budget)):
        assert not one or LevenshteinCertifier(filter_).certify(one).label is Label.HARMFUL


def test_certificates_are_not_all_zero() -> None:
    budgets = []
    for seed in range(10):
        score = WindowFilter(windows(seed, (2,), floor=0.02))(["abba" * 3])[0]
        filter_ = WindowFilter(windows(seed, (2,), floor=0.02), threshold=score * 0.5)
        certificate = LevenshteinCertifier(filter_).certify("abba" * 3).certificate
        budgets.append(certificate.threat.budget if certificate else 0)
    assert max(budgets) >= 3


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20), st.sampled_from([(1,), (2,), (3,), (2, 2), (4,)]), st.text("abz", min_size=1, max_size=6))
def test_one_edit_changes_the_score_by_at_most_the_constant(seed: int, widths: tuple[int, ...], text: str) -> None:
    filter_ = WindowFilter(windows(seed, widths, scale=0.6))
    score = filter_([text])[0]
    others = [one for one in neighbours(text) if one]
    assert max(abs(other - score) for other in filter_(others)) <= filter_.constant + filter_.guard_band


def test_the_sum_of_slots_alone_is_no_bound_for_insertions() -> None:
    """g counts the windows "ab". A symbol whose vector is zero moves nothing, and still splits the window."""
    vectors = {"a": 1.0, "b": 1.0, "z": 0.0, "": 0.0}

    def score(text: str) -> float:
        spaced = ["", *text, ""]
        return sum(max(0.0, vectors[x] + vectors[y] - 1) for x, y in pairwise(spaced))

    slots, norm_of_inserted = (1.0, 1.0), vectors["z"]
    assert score("aab") - score("azab") == 1.0 > sum(slots) * norm_of_inserted
    assert edit_constant(slots, 1.0, 1.0) >= 1.0


def test_constants_by_hand() -> None:
    assert edit_constant([1.0], math.inf, 5.0) == 5.0
    assert edit_constant([9.0], math.inf, 5.0) == 9.0
    assert edit_constant([1.0, 2.0], math.inf, 5.0) == 6.0  # the new window alone, the other moves by its first slot
    assert edit_constant([1.0, 1.0, 1.0], math.inf, 0.0) == 3.0
    assert edit_constant([9.0, 9.0, 9.0], 0.5, 0.5) == 1.5


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 3))
def test_the_worst_runs_by_brute_force(evidence: list[int], width: int, budget: int) -> None:
    starts = range(1 - width, len(evidence))
    best = 0
    for chosen in product(starts, repeat=budget):
        hit = {at for start in chosen for at in range(max(0, start), min(len(evidence), start + width))}
        best = max(best, sum(max(0, evidence[at]) for at in hit))
    assert destroyed(evidence, width, budget)[budget] == best


def test_lower_bounds_take_the_better_theorem() -> None:
    found = lower_bounds(10.0, [3.0, 3.0, 3.0], width=1, floor=0.5, constant=2.0, budget=2)
    assert found == [10.0, 8.0, 6.0]
    found = lower_bounds(10.0, [3.0, 3.0, 3.0], width=1, floor=0.5, constant=9.0, budget=4)
    assert found == [10.0, 6.5, 3.0, -0.5, -1.0]
    found = lower_bounds(10.0, [3.0, 3.0, 3.0], width=2, floor=0.5, constant=99.0, budget=1)
    assert found == [10.0, 3.0]  # two windows destroyed, two new ones


# What is read of a text


def test_one_code_point_is_at_most_one_symbol() -> None:
    made = Windows((2,), 2, floor=0.0, cap=1.0, generator=torch.Generator().manual_seed(0))
    assert made.symbols("Ab ") == [ALPHABET.find(c) + 2 for c in "ab "]
    assert made.symbols("a\u200bb") == made.symbols("ab")  # invisible code points are left out
    assert made.symbols("a\u0430") == made.symbols("aa")  # a Cyrillic letter looks like a Latin one
    assert made.symbols("\ufb01\u4e00") == [1, 1]  # a ligature of two letters, an ideograph
    assert made.symbols("a \t\nb") == made.symbols("a   b")
    rng = random.Random(0)
    for _ in range(2000):
        assert len(made.symbols(chr(rng.choice([rng.randrange(32, 0x3000), rng.randrange(0x10000, 0x1FFFF)])))) <= 1


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=8), st.characters(codec="utf-8"), st.integers(0, 8))
def test_an_edit_of_a_code_point_is_at_most_one_edit_of_symbols(text: str, code: str, at: int) -> None:
    made = Windows((2,), 2, floor=0.0, cap=1.0, generator=torch.Generator().manual_seed(0))
    for edited in (text[:at] + code + text[at:], text[:at] + code + text[at + 1 :], text[:at] + text[at + 1 :]):
        before, after = made.symbols(text), made.symbols(edited)
        while before and after and before[0] == after[0]:
            before, after = before[1:], after[1:]
        while before and after and before[-1] == after[-1]:
            before, after = before[:-1], after[:-1]
        assert max(len(before), len(after)) <= 1


# The certifier


def test_a_certificate_says_what_was_proven() -> None:
    filter_ = WindowFilter(windows(0, (2,), floor=0.0), threshold=-1.0)
    certifier: Certifier = LevenshteinCertifier(filter_)
    assert isinstance(filter_, EditFilter)
    verdict = certifier.certify("abab")
    certificate = verdict.certificate
    assert certificate is not None
    assert (certificate.threat.kind, certificate.threat.unit) == ("edit", "char")
    assert certificate.threat.budget == MAX_RADIUS  # evidence that only adds up cannot fall below 0
    assert (verdict.label, certificate.filter) == (Label.HARMFUL, filter_.digest)
    assert "inserted, deleted or replaced" in certificate.sentence()


def test_safe_texts_and_bare_margins_are_not_certified() -> None:
    made = WindowFilter(windows(0, (2,)))
    score = made(["abab"])[0]
    safe = LevenshteinCertifier(WindowFilter(windows(0, (2,)), threshold=score + 1)).certify("abab")
    assert (safe.label, safe.certificate) == (Label.SAFE, None)
    bare = LevenshteinCertifier(WindowFilter(windows(0, (2,)), threshold=score)).certify("abab")
    assert (bare.label, bare.certificate) == (Label.HARMFUL, None)  # flagged, but within the guard band
    close = WindowFilter(windows(0, (2,)), threshold=score - 2 * made.guard_band)
    certificate = LevenshteinCertifier(close).certify("abab").certificate
    assert certificate is not None
    assert certificate.threat.budget == 0


@pytest.mark.parametrize("widths", [(1,), (1, 1), (2,)])
def test_texts_with_nothing_visible_have_a_score(widths: tuple[int, ...]) -> None:
    filter_ = WindowFilter(windows(0, widths))
    text = "\u200b"
    (score,) = filter_([text])
    bounds = filter_.edit_scores(text, 2)
    assert bounds[0] == score
    assert all(filter_([near])[0] >= bounds[1] - filter_.guard_band for near in neighbours(text))


class Broken(WindowFilter):
    def __init__(self, bounds: list[float]) -> None:
        super().__init__(windows(0))
        self.bounds = bounds

    def edit_scores(self, text: str, budget: int) -> list[float]:
        del text, budget
        return self.bounds


def test_wrong_arguments() -> None:
    filter_ = WindowFilter(windows(0), max_chars=10)
    for radius in (0, -1, True, 1.5):
        with pytest.raises(InvalidArgument):
            LevenshteinCertifier(filter_, radius)  # type: ignore[arg-type]
    with pytest.raises(TextTooLong):
        LevenshteinCertifier(filter_).certify("a" * 11)
    with pytest.raises(EmptyText):
        LevenshteinCertifier(filter_).certify(" ")
    for bounds in ([1.0], [1.0, math.nan], [1.0, 2.0]):
        with pytest.raises(FilterError):
            LevenshteinCertifier(Broken(bounds), 1).certify("a")
    from promptguard import as_filter

    with pytest.raises(UnsupportedThreat):
        LevenshteinCertifier(as_filter(lambda texts: [0.5 for _ in texts]))
    for widths, floor, cap in (
        ((), 0.0, 1.0),
        ((0,), 0.0, 1.0),
        ((2,), -1.0, 1.0),
        ((2,), 0.0, 0.0),
        ((2,), math.nan, 1.0),
    ):
        with pytest.raises(InvalidArgument):
            Windows(widths, 2, floor=floor, cap=cap, generator=torch.Generator())
    with pytest.raises(InvalidArgument):
        WindowFilter(windows(0), threshold=math.nan)
    with pytest.raises(InvalidArgument):
        fit_windows(windows(0), ["a"], [], TextRecipe(), torch.Generator())


def test_the_recipe_trains_a_certified_filter() -> None:
    rng = random.Random(0)
    filler = ["bake", "some", "bread", "today", "walk", "the", "dog", "please", "write", "poem"]
    bad = ["bomb", "poison", "weapon"]

    def text(kind: bool) -> str:
        words = [rng.choice(filler) for _ in range(6)] + [rng.choice(bad) for _ in range(5 if kind else 0)]
        rng.shuffle(words)
        return " ".join(words)

    labels = [at % 2 == 0 for at in range(160)]
    made = Windows((4,), 12, floor=0.02, cap=1.0, generator=torch.Generator().manual_seed(0))
    recipe = TextRecipe(edits=2, epochs=12, rate=0.05)
    trained = fit_windows(made, [text(kind) for kind in labels], labels, recipe, torch.Generator().manual_seed(0))
    certifier = LevenshteinCertifier(WindowFilter(trained), 2)
    held = [(kind, certifier.certify(text(kind))) for kind in labels[:60]]
    assert sum((verdict.label is Label.HARMFUL) == kind for kind, verdict in held) >= 54
    assert sum(verdict.certificate is not None for kind, verdict in held if kind) >= 20
