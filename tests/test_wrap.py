"""Wrap mode, and the one-pass ways: the same erasures, the same verdicts, and no wrapping escapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import pytest
from attacks import attacks, threat, words
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TestFilter, Trial, arbitrary, exact, first_violation, keyword

from promptguard.capabilities import PrefixFilter, Span, SpanMode, TextMode
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.ways import Infusions, Monotone, Prefixes
from promptguard.erase import load_mode
from promptguard.erase.suffix import Suffix
from promptguard.erase.wrap import Wrap
from promptguard.errors import BudgetExceeded, FilterError, InvalidArgument, InvalidText, TextTooLong
from promptguard.threat import Threat
from promptguard.types import EraseMode, Erasure, Label
from promptguard.units import Chars, Words
from promptguard.view import canonical, prefix_views

SIZES = [(budget, most) for budget in (0, 1, 3, math.inf) for most in (1, 2, 4, 40)]


def spans_of(n: int, budget: float, most: int) -> set[tuple[int, int]]:
    """The definition, in its own words."""
    return {(a, b) for a in range(n) for b in range(a + 1, n + 1) if b - a <= most and n - (b - a) <= budget}


def kept(erasure: Erasure, n: int) -> tuple[int, int]:
    left = [i for i in range(n) if not any(a <= i < b for a, b in erasure.runs)]
    assert left == list(range(left[0], left[-1] + 1))
    return left[0], left[-1] + 1


@pytest.mark.parametrize(("budget", "most"), SIZES)
def test_erasures_are_the_substrings_each_once_cheapest_first(budget: float, most: int) -> None:
    mode = Wrap(budget, 1, most)
    for n in range(1, 9):
        found = list(mode.erasures(n))
        assert sorted(kept(e, n) for e in found) == sorted(spans_of(n, budget, most))
        assert all(e.cost == n - (kept(e, n)[1] - kept(e, n)[0]) for e in found)
        assert all(a.cost <= b.cost for a, b in pairwise(found))
        assert mode.count(n) == len(found)
    assert list(mode.erasures(0)) == [Erasure(0, ())]


def listed(spans: Iterator[Span]) -> list[tuple[int, int]]:
    return [(span.start, end) for span in spans for end in range(span.low, span.high + 1)]


@pytest.mark.parametrize(
    "mode", [*(Wrap(b, 1, m) for b, m in SIZES), *(Suffix(b) for b in (0, 1, 3, math.inf))], ids=str
)
def test_spans_are_the_erasures(mode: Any) -> None:
    assert isinstance(mode, SpanMode)
    for n in range(1, 9):
        erasures = {kept(e, n) for e in mode.erasures(n) if sum(b - a for a, b in e.runs) < n}
        assert sorted(listed(mode.spans(n))) == sorted(erasures)


@pytest.mark.parametrize("budget", [0, 1, 2, 3])
def test_every_wrapping_within_budget_is_undone(budget: int) -> None:
    mode = Wrap(budget, 1, 5)
    for n in range(1, 6):
        prompt = tuple(map(str, range(n)))
        for attacked in attacks(threat("wrap", budget), prompt, "*"):
            assert len(attacked) <= mode.longest(n, budget)
            assert any(attacked[slice(*kept(e, len(attacked)))] == prompt for e in mode.erasures(len(attacked)))
        too_long = (*prompt, *"xyz")
        assert n < 3 or not any(too_long == too_long[slice(*kept(e, n + 3))] for e in mode.erasures(n + 3))


@pytest.mark.parametrize("bad", [{"max_prompt": 0}, {"max_prompt": True}, {"max_prompt": 2.5}, {"blocks": 2}])
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Wrap(3, **bad)
    with pytest.raises(InvalidArgument, match="max_prompt"):
        load_mode("suffix", 3, 1, max_prompt=4)
    assert load_mode("wrap", math.inf, max_prompt=4) == Wrap(math.inf, 1, 4)


def test_a_text_that_no_allowed_prompt_can_have_become_is_refused() -> None:
    certifier = EraseAndCheck(exact("a"), Wrap(1, 1, 2), Chars())
    assert certifier.certify("abc").label is Label.SAFE
    with pytest.raises(InvalidText, match="more units"):
        certifier.certify("abcd")


def test_the_threat_names_the_longest_prompt_and_the_certificate_reaches_further() -> None:
    verdict = EraseAndCheck(keyword("a", "!"), Wrap(math.inf, 1, 2), Words(), max_checks=None).certify("b b a b b")
    assert verdict.threat == Threat("wrap", math.inf, "word", 1, 2)
    assert verdict.threat.describe() == "any number of whole words put before and after, around a prompt of at most 2"
    assert verdict.certificate is not None
    assert verdict.certificate.threat == Threat("wrap", math.inf, "word")
    assert verdict.threat.to_dict()["max_prompt"] == 2


# Starts after boundaries only


def test_boundaries_are_marks_and_line_breaks() -> None:
    mode = load_mode("wrap-boundary", math.inf, max_prompt=3)
    assert isinstance(mode, TextMode)
    pieces = Words()('Say this: "go on" now\nyes. ok a, b')
    bound: Any = mode.of(pieces)
    starts: tuple[int, ...] = bound.starts
    assert [pieces[i].strip() for i in starts] == ["Say", '"', "go", "now", "yes", "ok", "b"]
    assert mode.count(len(pieces)) >= mode.of(pieces).count(len(pieces))


ENDS = [
    *(mark for mark in ".!?:;,)]}\"'»”」؟।‽¿<#/-_"),
    *("\n", "\r\n", "\u2028", "\x0b", "\n\u200b", " \u200b\n", "\n\u2800", "\ufe0f\n ", ".\u200b", "? ", "!\u3000 "),
]


@pytest.mark.parametrize("unit", [Words(), Chars()], ids=["word", "char"])
@pytest.mark.parametrize("prompt", ["do it", "\xaddo it", " do it"])
def test_wrappers_that_end_at_a_boundary_are_undone(unit: Any, prompt: str) -> None:
    most = len(unit(prompt))
    certifier = EraseAndCheck(
        exact("do it"), load_mode("wrap-boundary", math.inf, max_prompt=most), unit, max_checks=None
    )
    verdict = certifier.certify(prompt)
    assert verdict.certificate is not None
    assert "ending with a mark or a line break" in verdict.certificate.sentence()
    assert any("any visible code point" in line for line in verdict.certificate.assumes)
    for end, after in product(ENDS, ("", " x", "! y")):
        space = " " if unit.name == "word" and end[-1] not in " \n\r\x0b\u2028\u3000" else ""
        assert certifier.certify(f"c d{end}{space}{prompt}{after}").label is Label.HARMFUL, (end, after)
    assert certifier.certify("c d do it").label is Label.SAFE


def test_a_limit_of_checks_counts_every_length_on_the_way() -> None:
    """A longer text can have fewer erasures than a shorter one, so the largest budget is no place to look alone."""
    for budget, limit, length in product((2, 3, 5), (3, 4, 6, 9), (1, 2, 3)):
        prompt = "ab" * length
        filter_ = exact(prompt[:length])
        certifier = EraseAndCheck(filter_, Wrap(budget, 1, 2), Chars(), max_checks=limit)
        try:
            certificate = certifier.certify(prompt[:length]).certificate
        except (BudgetExceeded, InvalidText):
            continue
        if certificate:
            assert first_violation([(Trial(certifier, filter_, None, "x", cap=6), [tuple(prompt[:length])])]) is None


def test_blank_pieces_are_no_start_and_no_text_is_called_safe_unread() -> None:
    certifier = EraseAndCheck(exact("a"), load_mode("wrap-boundary", math.inf, max_prompt=3), Chars())
    assert certifier.certify("     a").label is Label.HARMFUL
    with pytest.raises(InvalidText):
        EraseAndCheck(exact("a"), Wrap(1, 1, 1), Chars()).certify("a  ")


# One pass


@dataclass(frozen=True)
class InOnePass(TestFilter):
    """The same function, with prefixes scored together."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[self.score(text[:end]) for end in cuts] for text, cuts in zip(texts, ends, strict=True)]


def one_pass(filter_: TestFilter) -> InOnePass:
    return InOnePass(filter_.score, filter_.threshold, filter_.guard_band)


MODES: list[tuple[str, float, dict[str, Any]]] = [
    *(("suffix", budget, {}) for budget in (0, 1, 2, math.inf)),
    *(("wrap", budget, {"max_prompt": 3}) for budget in (1, 2, math.inf)),
    *(("wrap", math.inf, {"max_prompt": 1}), ("wrap-boundary", math.inf, {"max_prompt": 3})),
]


@pytest.mark.parametrize("unit", [Words(), Chars()], ids=["word", "char"])
@pytest.mark.parametrize(("kind", "budget", "more"), MODES)
def test_one_pass_gives_the_verdict_of_enumeration(kind: str, budget: float, more: dict[str, Any], unit: Any) -> None:
    mode = load_mode(kind, budget, **more)
    for seed, text in product(range(4), ("a b", "ab, a!b", " b\u200b a\u200b ", "a.b a\n b", "bb")):
        plain = TestFilter(arbitrary(seed).score, guard_band=0.1)
        fast = EraseAndCheck(one_pass(plain), mode, unit, early_stop=False)
        slow = EraseAndCheck(plain, mode, unit, early_stop=False, max_checks=None)
        assert isinstance(one_pass(plain), PrefixFilter)
        assert isinstance(fast._way, Prefixes)
        try:
            expected = slow.certify(text)
        except InvalidText:
            with pytest.raises(InvalidText):
                fast.certify(text)
            continue
        found = fast.certify(text)
        assert (found.label, found.score, found.threat) == (expected.label, expected.score, expected.threat)
        assert (found.witness is None) == (expected.witness is None)
        if found.witness and expected.witness:
            assert found.witness.spent == expected.witness.spent
        assert (found.certificate is None) == (expected.certificate is None)
        if found.certificate and expected.certificate:
            assert found.certificate.threat == expected.certificate.threat


def trials(way: Callable[[TestFilter], TestFilter], mode: Callable[..., EraseMode]) -> Iterator[tuple[Trial, Any]]:
    prompts = list(words("ab", 2, 1))
    for kind, budget in (("suffix", 2), ("suffix", math.inf), ("wrap", 2), ("wrap", math.inf)):
        more = {"max_prompt": 2} if kind == "wrap" else {}
        undone = threat(kind, budget)
        for prompt in prompts:
            filter_ = way(exact("".join(prompt)))
            yield Trial(EraseAndCheck(filter_, mode(kind, budget, **more), Chars()), filter_, undone, "ab"), [prompt]
        for seed in range(3):
            filter_ = way(arbitrary(seed))
            certifier = EraseAndCheck(filter_, mode(kind, budget, **more), Chars())
            yield Trial(certifier, filter_, undone, "ab"), [*prompts, *([] if kind == "wrap" else [tuple("aba")])]
            # Longer than any protected prompt: what is certified must hold all the same.
            yield Trial(certifier, filter_, None, "ab"), [tuple("abba"), tuple("baab")] if budget == math.inf else []


def test_one_pass_verdicts_escape_no_attack() -> None:
    assert first_violation(trials(one_pass, load_mode)) is None


# Planted faults


@dataclass(frozen=True)
class ForgetsTheLast(InOnePass):
    """The pass stops one token early."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[*row[:-1], 0.0] for row in super().prefix_scores(texts, ends)]


@dataclass(frozen=True)
class ShiftsByOne(InOnePass):
    """Scores stand one place too late."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[0.0, *row[:-1]] for row in super().prefix_scores(texts, ends)]


class NoLastStart(Wrap):
    """Substrings that start at the last unit are forgotten."""

    def spans(self, n: int) -> Iterator[Span]:
        return (span for span in super().spans(n) if n == 1 or span.start < n - 1)


class ShortPrompts(Wrap):
    """Prompts of the full length are not looked at."""

    def spans(self, n: int) -> Iterator[Span]:
        most = max(1, self.max_prompt - 1)
        return (Span(s.start, s.low, min(s.high, s.start + most)) for s in super().spans(n) if s.low <= s.start + most)


class FirstStartOnly(Wrap):
    """Text before the prompt is not undone."""

    def spans(self, n: int) -> Iterator[Span]:
        return (span for span in super().spans(n) if span.start == 0)


class TooMuchLeft(Wrap):
    """What was spent is certified again."""

    def left(self, spent: int) -> float:
        return self.budget - max(0, spent - 1)


def with_wrap(mutant: type[Wrap]) -> Callable[..., EraseMode]:
    def mode(kind: str, budget: float, **more: Any) -> EraseMode:
        return mutant(budget, 1, **more) if kind == "wrap" else load_mode(kind, budget)

    return mode


@pytest.mark.parametrize("fault", [ForgetsTheLast, ShiftsByOne])
def test_a_fault_in_a_pass_is_caught(fault: type[InOnePass]) -> None:
    def way(filter_: TestFilter) -> TestFilter:
        return fault(filter_.score, filter_.threshold, filter_.guard_band)

    assert first_violation(trials(way, load_mode)) is not None


@pytest.mark.parametrize("fault", [NoLastStart, ShortPrompts, FirstStartOnly, TooMuchLeft])
def test_a_fault_in_the_mode_is_caught(fault: type[Wrap]) -> None:
    assert first_violation(trials(one_pass, with_wrap(fault))) is not None


# Cost, limits, contracts


def test_one_pass_has_no_limit_of_checks_but_one_of_work() -> None:
    long = " ".join(["word"] * 1000)
    wrap = EraseAndCheck(one_pass(keyword("bomb", "!")), Wrap(math.inf, 1, 40), Words(), max_checks=10)
    cost = wrap.cost(long)
    assert cost.checks == wrap.mode.count(1000) == sum(min(40, 1000 - start) for start in range(1000))
    assert 40 * 5 * 900 < cost.characters < 40 * 5 * 1000
    assert wrap.certify(long).checks == cost.checks
    with pytest.raises(TextTooLong, match="max_work"):
        EraseAndCheck(one_pass(exact("a")), Wrap(math.inf, 1, 40), Words(), max_work=1000).certify(long)
    with pytest.raises(BudgetExceeded):
        EraseAndCheck(exact("a"), Wrap(math.inf, 1, 40), Words()).certify(long)


def test_long_texts_are_scored_in_parts_with_progress() -> None:
    seen: list[tuple[int, int]] = []
    sizes: list[int] = []

    @dataclass(frozen=True)
    class Watched(InOnePass):
        def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
            sizes.append(sum(map(len, texts)))
            return super().prefix_scores(texts, ends)

    certifier = EraseAndCheck(
        Watched(keyword("bomb", "!").score), Wrap(), Words(), progress=lambda a, b: seen.append((a, b))
    )
    certifier.certify(" ".join(["word"] * 400))
    assert len(seen) > 3
    assert seen[-1][0] == seen[-1][1] == certifier.mode.count(400)
    assert max(sizes) < 10_000


@pytest.mark.parametrize("rows", [[], [[0.1]], [[0.1, math.nan]], [["0.1", 0.2]], None])
def test_a_broken_pass_is_a_filter_error(rows: Any) -> None:
    @dataclass(frozen=True)
    class Broken(InOnePass):
        def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
            return rows  # type: ignore[no-any-return]

    with pytest.raises(FilterError):
        EraseAndCheck(Broken(exact("a").score), Suffix(3), Words()).certify("a b")


@dataclass(frozen=True)
class Counts(TestFilter):
    """The number of the letter a: dropping pieces never raises it."""

    def monotone(self, kind: str, unit: str) -> bool:
        return kind != "insertion"

    def infusion_scores(self, words_: Sequence[str], budget: int) -> list[float]:
        return [self.score(" ".join(words_))] * (budget + 1)


def counting() -> Counts:
    return Counts(lambda text: text.count("a") / 10, threshold=0.2)


@pytest.mark.parametrize("kind", ["suffix", "infusion", "wrap"])
def test_a_monotone_filter_is_asked_once_for_any_budget(kind: str) -> None:
    certifier = EraseAndCheck(counting(), load_mode(kind, math.inf), Words())
    assert isinstance(certifier._way, Monotone)
    verdict = certifier.certify("a b a " + "x " * 3000)
    assert (verdict.calls, verdict.checks, verdict.label) == (1, 1, Label.HARMFUL)
    assert verdict.certificate is not None
    assert verdict.certificate.threat.budget == math.inf
    trial = Trial(certifier, counting(), threat(kind, math.inf), "ab")
    assert first_violation([(trial, words("ab", 3, 1))]) is None
    assert not isinstance(EraseAndCheck(counting(), load_mode("insertion", 1), Words())._way, Monotone)


@dataclass(frozen=True)
class Bounds(TestFilter):
    """Bounds over infusions that were computed by a table."""

    bounds: tuple[float, ...] = ()

    def infusion_scores(self, words_: Sequence[str], budget: int) -> list[float]:
        return list(self.bounds[: budget + 1])


def test_bounds_over_infusions_certify_what_is_left() -> None:
    filter_ = Bounds(lambda text: 0.0, guard_band=0.05, bounds=(0.1, 0.52, 0.6, 0.6))
    certifier = EraseAndCheck(filter_, load_mode("infusion", 3), Words())
    assert isinstance(certifier._way, Infusions)
    verdict = certifier.certify("a b c d")
    assert (verdict.label, verdict.score) == (Label.HARMFUL, 0.6)
    assert verdict.certificate is not None
    assert verdict.certificate.threat.budget == 1  # 0.52 is within the guard band: two words were spent
    assert not isinstance(EraseAndCheck(filter_, load_mode("infusion", 3), Chars())._way, Infusions)
    with pytest.raises(FilterError, match="lower"):
        EraseAndCheck(Bounds(filter_.score, bounds=(0.5, 0.4)), load_mode("infusion", 1), Words()).certify("a b")
    with pytest.raises(FilterError):
        EraseAndCheck(Bounds(filter_.score, bounds=(0.5,)), load_mode("infusion", 1), Words()).certify("a b")


# The view of prefixes


@settings(max_examples=150)
@given(st.lists(st.text(alphabet="ab \t\u200b\u00a0\u00a8!\u2028ﷺ①", min_size=1, max_size=4), max_size=6))
def test_the_view_of_a_prefix_is_a_prefix_of_the_view(pieces: list[str]) -> None:
    view, ends = prefix_views(pieces)
    assert view == canonical("".join(pieces))
    assert [view[:end] for end in ends] == [canonical("".join(pieces[: i + 1])) for i in range(len(pieces))]
