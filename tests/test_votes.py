"""Truncation votes: the family from erase-and-check to the majority, by brute force over every attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from attacks import text_without_surrogates, words
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import TestFilter, Trial, Violation, arbitrary, exact, first_violation, keyword

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.truncation_votes import TruncationVotes
from promptguard.erase import load_mode
from promptguard.errors import EmptyText, InvalidArgument, InvalidText, TextTooLong
from promptguard.threat import Threat
from promptguard.types import Label, Units, Verdict
from promptguard.units import Chars, Words
from promptguard.view import canonical

ALPHABET = "ab"


@dataclass(frozen=True)
class OnePass(TestFilter):
    """Scores all prefixes at once."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[self.score(text[:end]) for end in cuts] for text, cuts in zip(texts, ends, strict=True)]


def votes(filter_: TestFilter, budget: float, tau: int, units: Units | None = None, **more: Any) -> TruncationVotes:
    return TruncationVotes(filter_, units or Chars(), budget, tau, **more)


def harmful_truncations(filter_: TestFilter, text: str, budget: int) -> list[bool]:
    """Whether dropping 0, 1, ..., budget characters leaves something flagged."""
    return [d < len(text) and filter_.score(text[: len(text) - d]) >= 0.5 for d in range(budget + 1)]


@given(st.text(ALPHABET, min_size=1, max_size=7), st.integers(0, 5), st.integers(1, 4), st.integers(0, 30))
def test_votes_are_counted_and_certified_as_the_definition_says(text: str, budget: int, tau: int, seed: int) -> None:
    assume(tau <= budget + 1)
    filter_ = arbitrary(seed)
    verdict = votes(filter_, budget, tau).certify(text)
    flagged = [d for d, harmful in enumerate(harmful_truncations(filter_, text, budget)) if harmful]
    assert (verdict.label == Label.HARMFUL) == (len(flagged) >= tau)
    assert (verdict.score >= verdict.threshold) == (verdict.label == Label.HARMFUL)
    assert math.isfinite(verdict.score)
    if len(flagged) >= tau:
        assert verdict.certificate is not None
        assert verdict.certificate.threat == Threat("suffix", budget - flagged[tau - 1], "char")
        assert verdict.witness is not None
        assert verdict.witness.spent == flagged[tau - 1]
        assert verdict.witness.chars == (((len(text) - flagged[tau - 1], len(text)),) if flagged[tau - 1] else ())


@pytest.mark.parametrize(("budget", "tau"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 4), (4, 3)])
def test_no_suffix_escapes_a_certificate(budget: int, tau: int) -> None:
    filters = [*map(arbitrary, range(6)), exact("ab"), keyword("a", "bb"), TestFilter(lambda text: 1.0)]
    trials = [
        (Trial(votes(filter_, budget, tau), filter_, None, ALPHABET), words(ALPHABET, 4, 1)) for filter_ in filters
    ]
    assert first_violation(trials) is None


def test_the_search_finds_a_certificate_that_is_one_too_large() -> None:
    class TooFar(TruncationVotes):
        def threat(self, budget: float | None = None) -> Threat:
            return super().threat(None if budget is None else budget + 1)

    filter_ = arbitrary(3)
    found = first_violation([(Trial(TooFar(filter_, Chars(), 2, 2), filter_, None, ALPHABET), words(ALPHABET, 4, 1))])
    assert isinstance(found, Violation)


@given(text_without_surrogates(8), st.integers(0, 4), st.integers(0, 9), st.sampled_from([Chars(), Words()]))
def test_one_vote_is_erase_and_check(text: str, budget: int, seed: int, units: Units) -> None:
    assume(canonical(text))
    filter_ = arbitrary(seed)
    ours = votes(filter_, budget, 1, units).certify(text)
    theirs = EraseAndCheck(filter_, load_mode("suffix", budget), units, early_stop=False).certify(text)
    assert (ours.label, ours.score, ours.checks) == (theirs.label, theirs.score, theirs.checks)
    assert ours.witness == theirs.witness
    assert reach(ours) == reach(theirs)


def reach(verdict: Verdict) -> Threat | None:
    return verdict.certificate.threat if verdict.certificate else None


@pytest.mark.parametrize("budget", [1, 4, 5, 20])
def test_all_votes_of_a_long_text_certify_d_plus_1_minus_tau(budget: int) -> None:
    always = TestFilter(lambda text: 1.0)
    majority = math.ceil((budget + 1) / 2)
    for tau in (1, majority, budget + 1):
        verdict = votes(always, budget, tau).certify("a" * 40)
        assert reach(verdict) == Threat("suffix", budget + 1 - tau, "char")
        assert verdict.threat == reach(verdict)


def test_five_hits_of_21_are_no_majority() -> None:
    """The published smoothing baseline claims min(5 - 1, 20 / 2) = 4 here, although the text is not even flagged."""
    filter_ = TestFilter(lambda text: float(len(text) > 25))
    verdict = votes(filter_, 20, 11).certify("a" * 30)
    assert sum(harmful_truncations(filter_, "a" * 30, 20)) == 5
    assert (verdict.label, verdict.certificate) == (Label.SAFE, None)
    assert verdict.score < 0.5


@given(st.text("ab ,", min_size=1, max_size=9), st.integers(0, 6), st.integers(1, 3), st.integers(0, 9))
def test_one_pass_gives_what_one_by_one_gives(text: str, budget: int, tau: int, seed: int) -> None:
    assume(canonical(text) and tau <= budget + 1)
    score = arbitrary(seed).score
    separate = votes(TestFilter(score), budget, tau, Words(), batch_size=2).certify(text)
    together = votes(OnePass(score), budget, tau, Words()).certify(text)
    assert (together.label, together.score, together.checks) == (separate.label, separate.score, separate.checks)
    assert (together.certificate, together.witness) == (separate.certificate, separate.witness)
    assert together.calls == 1


def test_an_unlimited_budget_certifies_suffixes_of_any_length() -> None:
    verdict = votes(keyword("bomb", "never"), math.inf, 3, Words()).certify("a bomb at home and more")
    assert reach(verdict) == Threat("suffix", math.inf, "word")
    assert verdict.witness is not None
    assert verdict.witness.spent == 2


def test_a_text_of_fewer_than_tau_units_is_never_flagged() -> None:
    verdict = votes(TestFilter(lambda text: 1.0), 5, 4).certify("abc")
    assert verdict.label == Label.SAFE
    assert verdict.score < verdict.threshold


def test_votes_inside_the_guard_band_flag_and_certify_nothing() -> None:
    near = TestFilter(lambda text: 0.55, guard_band=0.1)
    verdict = votes(near, 2, 2).certify("aaaa")
    assert (verdict.label, verdict.certificate) == (Label.HARMFUL, None)


def test_texts_of_one_view_count_once_per_truncation() -> None:
    """Trailing white space is a character: dropping it leaves the same view, and one more vote."""
    filter_ = exact("ab")
    assert votes(filter_, 2, 3).certify("ab  ").label == Label.HARMFUL
    assert votes(filter_, 2, 3).certify("ab ").label == Label.SAFE


@pytest.mark.parametrize(
    "call",
    [
        *[lambda b=b: votes(exact("a"), b, 1) for b in (-1, 1.5, True, math.nan)],
        *[lambda t=t: votes(exact("a"), 2, t) for t in (0, 4, 1.0, True)],
        lambda: votes(exact("a"), 2, 1, batch_size=0),
        lambda: votes(exact("a"), 2, 1, max_chars=0),
        lambda: votes(exact("a"), 2, 1, max_work=0),
        lambda: votes(TestFilter(lambda text: 0.0, threshold=math.inf), 2, 1),
    ],
)
def test_arguments_that_mean_nothing_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument):
        call()


def test_texts_that_cannot_be_checked_are_refused() -> None:
    certifier = votes(exact("a"), 2, 1, max_chars=20, max_work=20)
    with pytest.raises(EmptyText):
        certifier.certify(" \u200b")
    with pytest.raises(TextTooLong):
        certifier.certify("a" * 21)
    with pytest.raises(InvalidText, match="max_work"):
        certifier.certify("a" * 10)
    assert certifier.certify("a" * 7).label == Label.SAFE
