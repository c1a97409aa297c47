"""The certifier's behaviour: labels, scores, counts, limits, witnesses, and what a bad filter or text does to it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from attacks import threats
from hypothesis import given
from hypothesis import strategies as st
from oracle import TestFilter, arbitrary, exact, keyword

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import (
    BudgetExceeded,
    EmptyText,
    FilterError,
    InvalidArgument,
    InvalidText,
    PromptGuardError,
    TextTooLong,
)
from promptguard.score import as_filter
from promptguard.threat import Threat
from promptguard.types import Label, Units
from promptguard.units import Chars, Words
from promptguard.view import canonical


@dataclass
class Recorder:
    """A filter that remembers what it was asked."""

    score: Callable[[str], float]
    threshold: float = 0.5
    guard_band: float = 0.0
    name: str = "recorder"
    digest: str = "recorder"
    batches: list[list[str]] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.batches.append(list(texts))
        return [self.score(text) for text in texts]

    @property
    def asked(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


def recorder(flagged: str = "nothing") -> Recorder:
    return Recorder(lambda text: float(text == flagged))


def check(filter_: Any, kind: str = "suffix", budget: float = 3, *, blocks: int = 1, **options: Any) -> EraseAndCheck:
    return EraseAndCheck(filter_, load_mode(kind, budget, blocks), Chars(), **options)


@given(st.text("ab", min_size=1, max_size=7), threats(3, 2), st.integers(0, 5), st.booleans(), st.integers(1, 9))
def test_the_label_and_the_score_are_those_of_plain_enumeration(
    text: str, wanted: Threat, seed: int, early_stop: bool, batch_size: int
) -> None:
    mode = load_mode(wanted.kind, wanted.budget, wanted.blocks)
    kept = [
        "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in erasure.runs))
        for erasure in mode.erasures(len(text))
    ]
    filter_ = arbitrary(seed)
    scores = [filter_.score(view) for view in kept if view]
    verdict = EraseAndCheck(filter_, mode, Chars(), early_stop=early_stop, batch_size=batch_size).certify(text)
    assert verdict.label == (Label.HARMFUL if max(scores) >= 0.5 else Label.SAFE)
    if not early_stop or verdict.label == Label.SAFE:
        assert verdict.score == max(scores)
        assert verdict.checks == mode.count(len(text))
        assert verdict.calls == len({view for view in kept if view})
    assert verdict.score <= max(scores)


def test_early_stop_ends_at_the_first_flagged_text() -> None:
    filter_ = recorder("abc")
    verdict = check(filter_, "infusion").certify("abc")
    assert (verdict.calls, verdict.checks, filter_.asked) == (1, 1, ["abc"])
    assert check(recorder("abc"), "infusion", early_stop=False).certify("abc").checks == 8


def test_duplicates_are_scored_once() -> None:
    filter_ = recorder()
    verdict = check(filter_, "infusion", 2).certify("aaaa")
    assert sorted(filter_.asked) == ["aa", "aaa", "aaaa"]
    assert (verdict.calls, verdict.checks) == (3, 1 + 4 + 6)


def test_texts_that_look_alike_in_the_view_are_one_text() -> None:
    filter_ = recorder()
    check(filter_, "infusion", 1).certify("a\u0430")
    assert sorted(filter_.asked) == ["a", "aa"]


def test_the_filter_sees_views_only() -> None:
    filter_ = recorder()
    check(filter_, "infusion", 3).certify("  b\u200bo\u00adm\uff42 \u043e\u3000! ")
    assert all(text == canonical(text) for text in filter_.asked)
    assert filter_.asked[0] == "bomb o !"


def test_blank_texts_never_reach_the_filter_and_are_not_harmful() -> None:
    filter_ = Recorder(lambda text: float(not text.strip()))
    verdict = check(filter_, "infusion", math.inf).certify("a b")
    assert verdict.label == Label.SAFE
    assert "" not in filter_.asked
    assert verdict.score == 0.0


def test_the_text_itself_is_scored_first() -> None:
    filter_ = recorder()
    check(filter_).certify("abc")
    assert filter_.batches[0] == ["abc"]


@pytest.mark.parametrize("kind", ["suffix", "insertion", "infusion"])
def test_no_budget_is_the_filter_alone(kind: str) -> None:
    filter_ = recorder("ab")
    verdict = check(filter_, kind, 0).certify("ab!")
    assert (verdict.label, filter_.asked) == (Label.SAFE, ["ab!"])
    certificate = check(recorder("ab"), kind, 0).certify("ab").certificate
    assert certificate is not None
    assert certificate.threat.budget == 0


def test_safe_is_never_certified() -> None:
    verdict = check(recorder()).certify("ab")
    assert (verdict.label, verdict.certificate, verdict.witness) == (Label.SAFE, None, None)


@pytest.mark.parametrize(("kind", "blocks"), [("suffix", 1), ("infusion", 1), ("insertion", 1), ("insertion", 2)])
def test_a_flagged_prompt_is_certified_for_the_whole_budget(kind: str, blocks: int) -> None:
    verdict = check(exact("ab"), kind, 3, blocks=blocks).certify("ab")
    assert verdict.certificate is not None
    assert verdict.certificate.threat == verdict.threat == Threat(kind, 3, "char", blocks)
    assert not verdict.certificate.degraded
    assert verdict.certificate.confidence == 1.0


def test_an_attacked_prompt_is_certified_for_what_is_left() -> None:
    certificate = check(exact("ab"), "suffix", 5).certify("ab!!").certificate
    assert certificate is not None
    assert certificate.threat.budget == 3


def test_an_unlimited_budget_is_certified_without_a_limit_of_checks_only() -> None:
    unlimited = check(exact("ab"), "suffix", math.inf, max_checks=None).certify("ab!!!!!!!!!!")
    assert unlimited.certificate is not None
    assert unlimited.certificate.threat.budget == math.inf
    assert "any number of" in unlimited.certificate.sentence()
    assert unlimited.to_dict()["certificate"]["threat"]["budget"] == "unlimited"
    limited = check(exact("ab"), "suffix", math.inf, max_checks=50).certify("ab!")
    assert limited.certificate is not None
    assert limited.certificate.threat.budget < 50


def test_a_score_inside_the_guard_band_is_harmful_without_a_certificate() -> None:
    filter_ = Recorder(lambda text: 0.55 if text == "ab" else 0.0, guard_band=0.1)
    verdict = check(filter_).certify("ab!")
    assert (verdict.label, verdict.certificate) == (Label.HARMFUL, None)
    assert verdict.witness is not None


def test_a_score_at_the_threshold_is_harmful() -> None:
    assert check(Recorder(lambda text: 0.5)).certify("ab").label == Label.HARMFUL
    assert check(Recorder(lambda text: math.nextafter(0.5, 0))).certify("ab").label == Label.SAFE


def test_a_score_beyond_the_guard_band_is_searched_behind_one_inside_it() -> None:
    filter_ = Recorder(lambda text: {"ab!": 0.55, "ab": 0.9}.get(text, 0.0), guard_band=0.1)
    verdict = check(filter_, "suffix", 3).certify("ab!")
    assert verdict.certificate is not None
    assert verdict.certificate.threat.budget == 2


def test_over_the_limit_nothing_is_scored() -> None:
    filter_ = recorder()
    with pytest.raises(BudgetExceeded) as caught:
        check(filter_, "infusion", 3, max_checks=10).certify("abcdef")
    assert filter_.batches == []
    assert caught.value.limit == 10


def test_the_message_of_a_hopeless_request_is_short() -> None:
    with pytest.raises(BudgetExceeded) as caught:
        check(recorder(), "infusion", math.inf).certify("a" * 20_000)
    assert len(str(caught.value)) < 300


@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from(["suffix", "insertion", "infusion"]))
def test_anytime_checks_the_largest_budget_that_fits_and_says_so(n: int, limit: int, kind: str) -> None:
    mode = load_mode(kind, 4)
    verdict = EraseAndCheck(recorder(), mode, Chars(), max_checks=limit, anytime=True).certify("abcdefghi"[:n])
    assert verdict.threat is not None
    reached = verdict.threat.budget
    assert verdict.checks == mode.with_budget(reached).count(n) <= limit
    assert verdict.degraded == (reached < 4)
    assert not verdict.degraded or mode.with_budget(reached + 1).count(n) > limit


def test_a_certificate_under_a_limit_says_that_it_is_smaller() -> None:
    verdict = check(exact("abcd"), "infusion", 3, max_checks=22, anytime=True).certify("abcd")
    assert verdict.certificate is not None
    # Attacked with 2 units the text has 6, and 1 + 6 + 15 checks undo them; three units would need 64 of 7 units.
    assert verdict.certificate.threat.budget == 2
    assert verdict.certificate.degraded


def test_cost_is_known_before_any_inference() -> None:
    filter_ = recorder()
    assert check(filter_, "infusion", 2).cost("abcd").checks == 1 + 4 + 6
    assert filter_.batches == []


@given(st.text("ab ", min_size=1, max_size=8), threats(3, 2))
def test_the_witness_points_at_the_erased_text(text: str, wanted: Threat) -> None:
    filter_ = keyword("a", "b")
    units: Units = Chars()
    mode = load_mode(wanted.kind, wanted.budget, wanted.blocks)
    if not canonical(text):
        return
    verdict = EraseAndCheck(filter_, mode, units).certify(text)
    assert (verdict.witness is None) == (verdict.label == Label.SAFE)
    if verdict.witness is None:
        return
    left, pieces = list(text), units(text)
    for start, stop in reversed(verdict.witness.chars):
        del left[start:stop]
    for start, stop in reversed(verdict.witness.units):
        del pieces[start:stop]
    assert "".join(left) == "".join(pieces)
    assert filter_([canonical("".join(left))]) == [1.0]
    assert verdict.witness.spent <= wanted.budget
    assert (verdict.witness.spent == 0) == (verdict.witness.units == ())


def test_the_witness_is_the_cheapest_erasure() -> None:
    filter_ = Recorder(lambda text: float(text in {"a", "ab"}))
    witness = check(filter_, "suffix", 3).certify("ab!").witness
    assert witness is not None
    assert (witness.spent, witness.units, witness.chars) == (1, ((2, 3),), ((2, 3),))


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "a\0", "a\ud800", None, 7, b"a"])
def test_a_text_that_cannot_be_checked_is_refused_before_any_inference(text: Any) -> None:
    filter_ = recorder()
    with pytest.raises(InvalidText):
        check(filter_).certify(text)
    with pytest.raises(InvalidText):
        check(filter_).cost(text)
    assert filter_.batches == []


def test_empty_is_told_from_invalid() -> None:
    with pytest.raises(EmptyText):
        check(recorder()).certify(" ")


def test_a_megabyte_is_refused_at_once() -> None:
    filter_ = recorder()
    with pytest.raises(TextTooLong):
        check(filter_).certify("secret " * 150_000)
    assert filter_.batches == []
    assert check(filter_, max_chars=4).certify("abcd").label == Label.SAFE
    with pytest.raises(TextTooLong):
        check(filter_, max_chars=4).certify("abcde")


def test_a_budget_larger_than_the_text_is_fine() -> None:
    assert check(exact("a"), "suffix", 10**6, max_checks=None).certify("ab").label == Label.HARMFUL


def raising(texts: Sequence[str]) -> list[float]:
    raise RuntimeError(f"cannot score {texts}")


BAD: dict[str, Callable[[Sequence[str]], Any]] = {
    "raises": raising,
    "one score for many": lambda texts: [0.1] * (len(texts) + 1),
    "none": lambda texts: [],
    "nan": lambda texts: [math.nan] * len(texts),
    "inf": lambda texts: [math.inf] * len(texts),
    "-inf": lambda texts: [-math.inf] * len(texts),
    "words": lambda texts: ["harmful"] * len(texts),
    "numbers in words": lambda texts: ["0.9"] * len(texts),
    "one word": lambda texts: "1" * len(texts),
    "nothing at all": lambda texts: None,
    "nothing each": lambda texts: [None] * len(texts),
    "lists": lambda texts: [[0.1, 0.9]] * len(texts),
}


@dataclass(frozen=True)
class BadFilter:
    fn: Callable[[Sequence[str]], Any]
    name: str = "bad"
    digest: str = "bad"
    threshold: float = 0.5
    guard_band: float = 0.0

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.fn(texts)


@pytest.mark.parametrize("fault", BAD)
def test_a_filter_that_breaks_its_contract_is_a_typed_error_without_the_text(fault: str) -> None:
    with pytest.raises(FilterError) as caught:
        check(BadFilter(BAD[fault])).certify("secret prompt")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # tools that walk the chain must not find the text


def test_a_filter_that_fails_late_fails_the_check() -> None:
    def late(texts: Sequence[str]) -> list[float]:
        return [0.0 if text == "abcd" else math.nan for text in texts]

    with pytest.raises(FilterError):
        check(BadFilter(late)).certify("abcd")


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_a_filter_without_a_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidArgument):
        check(TestFilter(len, threshold))


@pytest.mark.parametrize("band", [math.nan, math.inf, -0.1])
def test_a_guard_band_that_means_nothing_certifies_nothing(band: float) -> None:
    """A negative band would certify scores below the threshold."""
    try:
        verdict = check(TestFilter(lambda text: 0.45, guard_band=band)).certify("ab")
    except PromptGuardError:
        return
    assert (verdict.label, verdict.certificate) == (Label.SAFE, None)


@pytest.mark.parametrize("option", ["max_checks", "batch_size", "max_chars"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one_are_refused(option: str, value: int) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(InvalidArgument):
        check(recorder(), **options)


@dataclass(frozen=True)
class Lossy:
    name: str = "lossy"
    covers: str = "nothing"

    def __call__(self, text: str) -> list[str]:
        return text.split()


def test_units_that_lose_text_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="lossy"):
        EraseAndCheck(recorder(), load_mode("suffix", 2), Lossy()).certify("a b")


def test_progress_counts_up_to_what_was_promised() -> None:
    seen: list[tuple[int, int]] = []
    check(recorder(), "infusion", 2, batch_size=2, progress=lambda done, total: seen.append((done, total))).certify(
        "abcd"
    )
    assert [total for _, total in seen] == [11] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[0] == (1, 11)
    assert seen[-1] == (11, 11)


def test_batches_are_no_larger_than_asked_for() -> None:
    filter_ = recorder()
    check(filter_, "infusion", 3, batch_size=4).certify("abcdef")
    assert max(map(len, filter_.batches)) == 4


@given(st.text("ab", min_size=1, max_size=6), threats(2, 2), st.integers(1, 80))
def test_batch_size_changes_no_verdict(text: str, wanted: Threat, batch_size: int) -> None:
    mode = load_mode(wanted.kind, wanted.budget, wanted.blocks)
    one, other = (
        EraseAndCheck(arbitrary(3), mode, Chars(), batch_size=size, early_stop=False).certify(text)
        for size in (1, batch_size)
    )
    assert one == other


@given(st.text("ab ", min_size=1, max_size=6).filter(str.strip))
def test_verdicts_are_deterministic_and_carry_no_text(text: str) -> None:
    certifier = EraseAndCheck(keyword("a", "b"), load_mode("infusion", 2), Words())
    assert certifier.certify(text) == certifier.certify(text)
    secret = check(exact("secret")).certify("secret!")
    assert "secret" not in json.dumps(secret.to_dict())
    assert secret.certificate is not None
    assert "secret" not in secret.certificate.sentence()


def test_work_over_all_erasures_is_bounded_before_any_inference() -> None:
    filter_ = recorder()
    certifier = check(filter_, "suffix", 3, max_work=40)
    assert certifier.certify("abcde abcd").label == Label.SAFE  # 4 erasures of 10 code points
    calls = len(filter_.batches)
    with pytest.raises(TextTooLong, match="max_work"):
        certifier.certify("abcde abcde")
    assert len(filter_.batches) == calls


def test_a_certificate_names_its_procedure_and_what_its_unit_covers() -> None:
    certificate = EraseAndCheck(keyword("bomb", "cake"), load_mode("suffix", 2), Words()).certify("a bomb").certificate
    assert certificate is not None
    said = "\n".join(certificate.assumes)
    for part in (
        Words.covers,
        "threshold",
        "guard band",
        "canonical view",
        "Unicode",
        "checks per text",
        "code points",
    ):
        assert part in said


@pytest.mark.parametrize("answer", [10**400, "0.9"])
def test_scores_that_do_not_become_floats_are_a_typed_error(answer: Any) -> None:
    with pytest.raises(FilterError) as caught:
        EraseAndCheck(as_filter(lambda texts: [answer] * len(texts)), load_mode("suffix", 1), Words()).certify("a b")
    assert caught.value.__context__ is None
