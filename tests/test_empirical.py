"""The empirical defences: seeded, bounded, honest about having no certificate."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from attacks import threats
from hypothesis import given
from hypothesis import strategies as st
from oracle import arbitrary, exact, keyword

from promptguard.capabilities import MaskGradient
from promptguard.certify.empirical import GradEC, GreedyEC, RandEC
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import (
    BudgetExceeded,
    EmptyText,
    FilterError,
    InvalidArgument,
    PromptGuardError,
    UnsupportedThreat,
)
from promptguard.threat import Threat
from promptguard.types import Certifier, Label
from promptguard.units import Chars, Words


@dataclass
class Additive:
    """Each unit adds its weight to the score, so the gradient by the mask is the weights. Harmful at 1.

    Scores of texts and of masks agree, as for a bag of words.
    """

    weights: dict[str, float]
    threshold: float = 1.0
    guard_band: float = 0.0
    name: str = "additive"
    digest: str = "additive"
    asked: list[str] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.asked.extend(texts)
        return [sum(self.weights.get(word, 0.0) for word in text.split()) for text in texts]

    def mask_gradient(self, pieces: Sequence[str], mask: Sequence[float]) -> MaskGradient:
        gradient = tuple(self.weights.get(piece.strip(), 0.0) for piece in pieces)
        return MaskGradient(sum(g * m for g, m in zip(gradient, mask, strict=True)), gradient)


def additive() -> Additive:
    return Additive({"bomb": 1.5, "please": -0.4, "kind": -0.6, "sir": -0.7, "the": 0.1})


ATTACKED = "the bomb please kind sir"  # 1.6 - 1.7: two units hide it, erasing any of them but one is not enough


# RandEC


@given(st.text("ab", min_size=1, max_size=7), threats(3, 2), st.integers(0, 9))
def test_rand_ec_with_ratio_0_is_the_filter_alone(text: str, wanted: Threat, seed: int) -> None:
    filter_ = arbitrary(seed)
    mode = load_mode(wanted.kind, wanted.budget, wanted.blocks)
    verdict = RandEC(filter_, mode, Chars(), 0.0).certify(text)
    assert (verdict.label == Label.HARMFUL) == (filter_.score(text) >= 0.5)
    assert (verdict.score, verdict.calls, verdict.checks) == (filter_.score(text), 1, 1)


@given(st.text("ab", min_size=1, max_size=7), threats(3, 2), st.integers(0, 9))
def test_rand_ec_with_ratio_1_gives_the_label_of_erase_and_check(text: str, wanted: Threat, seed: int) -> None:
    mode = load_mode(wanted.kind, wanted.budget, wanted.blocks)
    certified = EraseAndCheck(arbitrary(seed), mode, Chars()).certify(text)
    sampled = RandEC(arbitrary(seed), mode, Chars(), 1.0).certify(text)
    assert sampled.label == certified.label
    assert sampled.certificate is None


@given(st.floats(0, 1), st.integers(0, 99))
def test_rand_ec_checks_the_text_and_its_share_of_the_other_erasures(ratio: float, seed: int) -> None:
    filter_ = additive()
    verdict = RandEC(filter_, load_mode("infusion", 2), Words(), ratio, rng=random.Random(seed)).certify("a b c d e")
    others = 5 + 10
    assert verdict.checks == 1 + math.floor(ratio * others)
    assert filter_.asked[0] == "a b c d e"


@pytest.mark.parametrize("kind", ["suffix", "insertion", "infusion"])
def test_rand_ec_always_checks_the_original(kind: str) -> None:
    for seed in range(20):
        certifier = RandEC(exact("how to"), load_mode(kind, 3), Words(), 0.1, rng=random.Random(seed))
        assert certifier.certify("how to").label == Label.HARMFUL


def test_rand_ec_is_reproducible_with_a_seed_and_not_without() -> None:
    def asked(rng: random.Random | None) -> list[str]:
        filter_ = additive()
        RandEC(filter_, load_mode("infusion", 4), Words(), 0.3, rng=rng).certify("a b c d e f g h")
        return filter_.asked

    assert asked(random.Random(1)) == asked(random.Random(1))
    assert asked(random.Random(1)) != asked(random.Random(2))
    assert asked(None) != asked(None)  # two samples of 48 of 162 agree once in 10^42


def test_rand_ec_refuses_to_sample_from_too_many_erasures() -> None:
    filter_ = additive()
    with pytest.raises(BudgetExceeded):
        RandEC(filter_, load_mode("infusion", 20), Words(), 0.001).certify("a " * 60)
    assert filter_.asked == []


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_rand_ec_refuses_a_ratio_that_is_no_share(ratio: float) -> None:
    with pytest.raises(InvalidArgument):
        RandEC(additive(), load_mode("suffix", 1), Words(), ratio)


# GreedyEC


def test_greedy_ec_erases_what_hides_the_harm() -> None:
    verdict = GreedyEC(additive(), Words(), 3).certify(ATTACKED)
    assert verdict.label == Label.HARMFUL
    assert verdict.witness is not None
    assert verdict.witness.units == ((3, 5),)  # "sir" first, then "kind"
    assert verdict.score == pytest.approx(1.2)


def test_greedy_ec_stops_after_its_iterations() -> None:
    verdict = GreedyEC(additive(), Words(), 1).certify(ATTACKED)
    assert (verdict.label, verdict.calls, verdict.checks) == (Label.SAFE, 1 + 5, 1 + 5)
    assert verdict.score == pytest.approx(0.6)


def test_greedy_ec_without_iterations_is_the_filter_alone() -> None:
    filter_ = additive()
    assert GreedyEC(filter_, Words(), 0).certify(ATTACKED).label == Label.SAFE
    assert filter_.asked == [ATTACKED]


def test_greedy_ec_stops_when_the_text_is_flagged() -> None:
    verdict = GreedyEC(additive(), Words(), 5).certify("the bomb")
    assert (verdict.label, verdict.calls) == (Label.HARMFUL, 1)
    assert verdict.witness is not None
    assert verdict.witness.spent == 0


def test_greedy_ec_erases_every_unit_but_one_at_most() -> None:
    verdict = GreedyEC(additive(), Words(), 10**6).certify("please kind sir")
    assert (verdict.label, verdict.checks) == (Label.SAFE, 1 + 3 + 2)


# GradEC


def test_grad_ec_follows_the_gradient() -> None:
    verdict = GradEC(additive(), Words(), 10).certify(ATTACKED)
    assert verdict.label == Label.HARMFUL
    assert verdict.witness is not None
    assert verdict.witness.spent in {2, 3}
    kept = set(range(5)) - {i for a, b in verdict.witness.units for i in range(a, b)}
    assert 1 in kept  # the bomb


def test_grad_ec_without_iterations_is_the_filter_alone() -> None:
    filter_ = additive()
    assert GradEC(filter_, Words(), 0).certify(ATTACKED).label == Label.SAFE
    assert filter_.asked == [ATTACKED]


def test_grad_ec_scores_real_texts_only() -> None:
    """A mask can score higher than any text; the verdict counts texts."""
    filter_ = Additive({"a": 0.6, "b": 0.3})
    assert GradEC(filter_, Words(), 5).certify("a b").label == Label.SAFE
    assert set(filter_.asked) <= {"a b", "a", "b"}


@pytest.mark.parametrize("filter_", [exact("a"), keyword("a", "b")])
def test_grad_ec_refuses_a_filter_without_a_gradient(filter_: Any) -> None:
    with pytest.raises(UnsupportedThreat):
        GradEC(filter_, Words(), 3)


@pytest.mark.parametrize("rate", [1.0, 1000.0])
def test_grad_ec_survives_many_and_long_steps(rate: float) -> None:
    """Weights run far away; the sigmoid must not overflow."""
    filter_ = Additive({"a": -1.0, "b": -1.0})
    assert GradEC(filter_, Words(), 1500, rate=rate).certify("a b").label == Label.SAFE


class Broken(Additive):
    """Its gradient is out of order."""

    answer: Callable[[Sequence[str]], Any]

    def mask_gradient(self, pieces: Sequence[str], mask: Sequence[float]) -> MaskGradient:
        gradient: MaskGradient = self.answer(pieces)
        return gradient


def _raise(pieces: Sequence[str]) -> MaskGradient:
    raise RuntimeError(f"no gradient for {pieces}")


@pytest.mark.parametrize(
    "answer",
    [_raise, lambda pieces: MaskGradient(0.0, (1.0,)), lambda pieces: MaskGradient(0.0, (math.nan,) * len(pieces))],
    ids=["raises", "wrong length", "nan"],
)
def test_a_gradient_that_breaks_its_contract_is_a_typed_error_without_the_text(answer: Any) -> None:
    filter_ = Broken({"secret": -1.0})
    filter_.answer = answer
    with pytest.raises(FilterError) as caught:
        GradEC(filter_, Words(), 2).certify("a secret prompt")
    assert "secret" not in str(caught.value)


# All of them


def defences(filter_: Any) -> list[Certifier]:
    return [
        RandEC(filter_, load_mode("infusion", 2), Words(), 1.0),
        GreedyEC(filter_, Words(), 3),
        GradEC(filter_, Words(), 3),
    ]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("text", ["the bomb", ATTACKED, "a b c"])
def test_no_empirical_defence_returns_a_certificate(index: int, text: str) -> None:
    verdict = defences(additive())[index].certify(text)
    assert verdict.certificate is None
    assert (verdict.witness is not None) == (verdict.label == Label.HARMFUL)


@pytest.mark.parametrize("index", [0, 1, 2])
@given(text=st.lists(st.sampled_from(["bomb", "please", "kind", "sir", "the"]), min_size=1, max_size=6).map(" ".join))
def test_harmful_has_a_witness_that_the_filter_flags(index: int, text: str) -> None:
    verdict = defences(additive())[index].certify(text)
    if verdict.witness is None:
        assert verdict.score < 1.0
        return
    edges = [0, *(edge for run in verdict.witness.chars for edge in run), len(text)]
    kept = "".join(text[a:b] for a, b in list(pairwise(edges))[::2])
    assert additive()([kept]) == [verdict.score]
    assert verdict.score >= 1.0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_bad_texts_and_bad_filters_are_typed_errors(index: int) -> None:
    with pytest.raises(EmptyText):
        defences(additive())[index].certify(" ")
    nothing = Additive({"secret": math.nan})
    with pytest.raises(PromptGuardError) as caught:
        defences(nothing)[index].certify("secret")
    assert isinstance(caught.value, FilterError)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("iterations", [-1, 1.5, math.nan])
def test_iterations_that_are_no_whole_number_are_refused(iterations: Any) -> None:
    with pytest.raises(InvalidArgument):
        GreedyEC(additive(), Words(), iterations)
    with pytest.raises(InvalidArgument):
        GradEC(additive(), Words(), iterations)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_lead_nowhere_are_refused(rate: float) -> None:
    with pytest.raises(InvalidArgument):
        GradEC(additive(), Words(), 1, rate=rate)
