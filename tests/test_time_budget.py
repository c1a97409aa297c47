"""A time budget decides how far a text is checked, and nothing else: no clock makes a certified text pass as safe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, cycle, product
from typing import Any

import pytest
from attacks import attacked, attacks, words
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import arbitrary, exact
from typer.testing import CliRunner

from promptguard.certify import pace as pace_module
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.found import Batching, Found, T
from promptguard.certify.pace import OutOfTime, Speed, Timed
from promptguard.cli import app
from promptguard.erase import load_mode
from promptguard.errors import BudgetExceeded, FilterError, InvalidArgument, InvalidText
from promptguard.guard import Guard, Reason
from promptguard.score.screen import ScreenedFilter
from promptguard.types import Filter, Label, Verdict
from promptguard.units import Chars, Words

Score = Callable[[str], float]


@dataclass
class Clock:
    """Time that passes only when told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Slow:
    """A filter that takes `fixed` seconds per call and `each` per code point, times the next of some factors."""

    score: Score
    clock: Clock
    fixed: float = 0.0
    each: float = 1.0
    factors: Sequence[float] = (1.0,)
    threshold: float = 0.5
    guard_band: float = 0.0
    name: str = "slow"
    digest: str = "slow"
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._factors = cycle(self.factors)

    def spend(self, texts: Sequence[str]) -> None:
        self.clock.now += (self.fixed + self.each * sum(map(len, texts))) * next(self._factors)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.spend(texts)
        self.seen += texts
        return [self.score(text) for text in texts]


class SlowPrefixes(Slow):
    """All prefixes at the price of the text."""

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        self.spend(texts)
        self.seen += [text[:cut] for text, cuts in zip(texts, ends, strict=True) for cut in cuts]
        return [[self.score(text[:cut]) for cut in cuts] for text, cuts in zip(texts, ends, strict=True)]


class SlowInfusions(Slow):
    """The maximum over the infusion erasures, by listing them."""

    def infusion_scores(self, words: Sequence[str], budget: int) -> list[float]:
        self.spend(words)
        if len(words) > 12:  # too many to list; tests look at shorter texts
            return [0.0] * (budget + 1)
        best, bounds = -math.inf, []
        for kept in range(len(words), len(words) - budget - 1, -1):
            texts = (" ".join(words[i] for i in chosen) for chosen in combinations(range(len(words)), kept))
            best = max([best, *(self.score(text) for text in texts if text)], default=0.0)
            bounds.append(max(best, 0.0))
        return bounds


def screened(score: Score, clock: Clock, **options: Any) -> Filter:
    return ScreenedFilter(Slow(score, clock, **options), Slow(lambda text: 0.5, clock, **options), margin=1)


FILTERS: dict[str, Callable[..., Any]] = {
    "plain": Slow,
    "prefixes": SlowPrefixes,
    "infusions": SlowInfusions,
    "screened": screened,
}
MODES = [("suffix", 2, 1), ("insertion", 2, 1), ("insertion", 1, 2), ("infusion", 2, 1), ("wrap", 2, 1)]


def certifier(
    kind: str, mode: tuple[str, float, int], score: Score, seconds: float, *, anytime: bool = False, **speed: Any
) -> EraseAndCheck:
    clock = Clock()
    return EraseAndCheck(
        FILTERS[kind](score, clock, **speed), load_mode(*mode), Words(), anytime=anytime, max_seconds=seconds,
        max_checks=None, max_work=None, batch_size=5, clock=clock,
    )  # fmt: skip


def outcome(certifier: EraseAndCheck, text: str) -> Label:
    try:
        label = certifier.certify(text).label
    except (OutOfTime, InvalidText):  # a refusal lets nothing pass
        return Label.ABSTAIN
    assert isinstance(label, Label)
    return label


# The promise, under any clock

SCORES = [exact("a"), exact("a b"), exact("b a"), arbitrary(0), arbitrary(1)]
PROMPTS = [" ".join(prompt) for prompt in words("ab", 2, 1)]
SPEEDS: list[dict[str, Any]] = [
    {"each": 0.0},  # never out of time
    {"fixed": 0.3},
    {"fixed": 1.0, "factors": (1.0, 0.1, 4.0, 0.0, 30.0)},
    {"fixed": 0.01, "factors": (0.0, 0.0, 0.0, 100.0)},
    {"each": 1.0, "factors": (0.5, 3.0, 0.0)},
]


def escapes(anytime: bool, timed: type[Timed] = Timed, make: type[EraseAndCheck] = EraseAndCheck) -> Iterator[str]:
    """Attacked texts that pass as safe although they should not, over filters, modes, prompts and clocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace_module, "Timed", timed)
        patch.setitem(globals(), "EraseAndCheck", make)
        patch.setattr(pace_module, "_LONG", 2)
        for kind, mode, filter_ in product(FILTERS, MODES, SCORES):
            yield from _escapes_from(kind, mode, filter_.score, anytime)


def _escapes_from(kind: str, mode: tuple[str, float, int], score: Score, anytime: bool) -> Iterator[str]:
    quick, *slow = (certifier(kind, mode, score, 9.0, anytime=anytime, **speed) for speed in SPEEDS)
    for prompt in PROMPTS:
        certificate = quick.certify(prompt).certificate
        if certificate is None:
            continue
        for pieces in sorted(attacks(certificate.threat, [f" {p}" for p in prompt.split()], [" a", " b"])):
            for at, certifier_ in enumerate(slow, 1):
                if outcome(certifier_, "".join(pieces)) is Label.SAFE:
                    yield f"{kind} {mode} {prompt!r} {pieces!r} {SPEEDS[at]}"


@pytest.mark.parametrize("anytime", [False, True])
def test_no_clock_lets_a_certified_text_pass(anytime: bool) -> None:
    assert next(escapes(anytime), None) is None


@given(st.data())
@settings(max_examples=150)
def test_sampled_attacks_under_sampled_clocks_escape_no_certificate(data: st.DataObject) -> None:
    letters = st.sampled_from([" a", " b"])
    prompt = "".join(data.draw(st.lists(letters, min_size=1, max_size=6)))
    kind, mode = data.draw(st.sampled_from(list(FILTERS))), data.draw(st.sampled_from(MODES))
    score = data.draw(st.sampled_from([exact(prompt.strip()), exact("a b"), arbitrary(2)])).score
    anytime = data.draw(st.booleans())
    times = st.floats(0, 3)
    clocks = st.fixed_dictionaries(
        {"fixed": times, "each": times, "factors": st.lists(st.floats(0, 50), min_size=1, max_size=6)}
    )
    try:
        first = certifier(kind, mode, score, 10.0, anytime=anytime, **data.draw(clocks)).certify(prompt)
    except OutOfTime:
        return
    if first.certificate is not None:
        assert first.label is Label.HARMFUL
        assert not anytime or first.certificate.threat.budget == 0
        pieces = data.draw(attacked(first.certificate.threat, [f" {p}" for p in prompt.split()], letters))
        slow = certifier(kind, mode, score, 10.0, anytime=anytime, **data.draw(clocks))
        assert outcome(slow, "".join(pieces)) is not Label.SAFE


class ForgetsTheCut(Timed):
    """Takes what was checked for everything."""

    def batches(self, found: Found, items: Iterator[T], how: Batching[T]) -> Iterator[list[T]]:
        yield from super().batches(found, items, how)
        self.cut = math.inf


class StopsUnnoticed(Timed):
    """Ends after two batches, as if there were no more."""

    def batches(self, found: Found, items: Iterator[T], how: Batching[T]) -> Iterator[list[T]]:
        for number, batch in enumerate(super().batches(found, items, how)):
            if number < 2:
                yield batch


class CertifiesWhatItDoesWithoutAClock(EraseAndCheck):
    """Certifies the budget that is left although the owner lets pass what was not checked."""

    def _certificate(self, n: int, witness: Any) -> Any:
        certificate = super()._certificate(n, witness)
        return certificate and replace(certificate, threat=self.threat(self.mode.left(witness.cost)))


@pytest.mark.parametrize(
    ("anytime", "timed", "make"),
    [
        (False, ForgetsTheCut, EraseAndCheck),
        (False, StopsUnnoticed, EraseAndCheck),
        (True, Timed, CertifiesWhatItDoesWithoutAClock),
    ],
)
def test_a_planted_fault_is_caught(anytime: bool, timed: type[Timed], make: type[EraseAndCheck]) -> None:
    assert next(escapes(anytime, timed, make), None) is not None


# What a verdict says


def never(text: str) -> float:
    return 0.0


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("mode", [*MODES, ("wrap", 7, 1)], ids=str)
@pytest.mark.parametrize("seconds", [30.0, 60.0, 70.0, 80.0, 100.0, 200.0, 400.0])
def test_a_cut_check_says_how_far_it_went(kind: str, mode: tuple[str, float, int], seconds: float) -> None:
    text = "a b c d e f g h"
    try:
        timed = certifier(kind, mode, never, seconds, each=1.0)
        scored: Any = getattr(timed.filter, "screen", timed.filter)
        seen = scored.seen
        seen.clear()
        verdict = timed.certify(text)
    except OutOfTime:
        return
    assert verdict.threat is not None
    assert verdict.certificate is None
    if verdict.label is Label.SAFE:
        assert not verdict.degraded
        return
    assert verdict.label is Label.ABSTAIN
    assert verdict.degraded
    assert 0 <= verdict.threat.budget < mode[1]
    for erasure in load_mode(*mode).with_budget(verdict.threat.budget).erasures(8):
        kept = [p for i, p in enumerate(text.split()) if not any(a <= i < b for a, b in erasure.runs)]
        assert " ".join(kept) in seen


def test_more_time_goes_further() -> None:
    reached: list[float] = []
    for seconds in (70.0, 120.0, 400.0, 4000.0):
        verdict = certifier("plain", ("infusion", 3, 1), never, seconds, each=1.0).certify("a b c d e f")
        reached.append(verdict.threat.budget if verdict.threat else -1)
    assert reached == sorted(reached)
    assert reached[0] < 2
    assert reached[-1] == 3


def test_the_owner_may_take_a_partial_check_for_safe() -> None:
    strict = certifier("plain", ("infusion", 3, 1), never, 60.0, each=1.0).certify("a b c d e f")
    lenient = certifier("plain", ("infusion", 3, 1), never, 60.0, each=1.0, anytime=True).certify("a b c d e f")
    assert (strict.label, lenient.label) == (Label.ABSTAIN, Label.SAFE)
    assert strict.threat == lenient.threat
    assert lenient.degraded


def test_a_flagged_text_is_certified_in_full_where_unfinished_checks_abstain() -> None:
    strict = certifier("plain", ("infusion", 3, 1), exact("a b").score, 60.0, each=0.1).certify("a b")
    lenient = certifier("plain", ("infusion", 3, 1), exact("a b").score, 60.0, each=0.1, anytime=True).certify("a b")
    assert strict.certificate is not None
    assert lenient.certificate is not None
    assert (strict.certificate.threat.budget, lenient.certificate.threat.budget) == (3, 0)
    assert any("never called safe" in line for line in strict.certificate.assumes)
    assert any("passes" in line for line in lenient.certificate.assumes)
    assert lenient.certificate.degraded
    spent = certifier("plain", ("infusion", 3, 1), exact("a b").score, 900.0, each=0.1, anytime=True).certify("a b c")
    assert (spent.label, spent.certificate) == (Label.HARMFUL, None)


@pytest.mark.parametrize("kind", FILTERS)
def test_a_text_that_does_not_fit_is_refused_before_it_is_scored(kind: str) -> None:
    mode = ("infusion" if kind == "infusions" else "suffix", 2, 1)
    timed = certifier(kind, mode, never, 100.0, each=1.0)
    clock = timed._timer._clock if timed._timer else None
    assert isinstance(clock, Clock)
    before = clock.now
    with pytest.raises(OutOfTime, match="max_seconds") as caught:
        timed.certify("word " * 50)
    assert isinstance(caught.value, BudgetExceeded)
    assert (caught.value.seconds, caught.value.limit, clock.now) == (100.0, 0, before)


def test_one_slow_call_does_not_refuse_a_size_for_ever() -> None:
    timed = certifier("plain", ("suffix", 2, 1), never, 10.0, each=0.0)
    speed = Speed()
    speed.note(27, 20.0)
    assert timed._timer is not None
    timed._timer._speed = speed
    labels = [outcome(timed, "a b c d e f") for _ in range(20)]
    assert labels[0] is Label.ABSTAIN
    assert labels[-1] is Label.SAFE


def test_without_a_budget_no_clock_is_read() -> None:
    def broken() -> float:
        raise AssertionError

    assert EraseAndCheck(exact("a"), load_mode("suffix", 2), Chars(), clock=broken).certify("ab").label is Label.HARMFUL


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_is_a_positive_number(seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="max_seconds"):
        EraseAndCheck(exact("a"), load_mode("suffix", 2), Chars(), max_seconds=seconds)


def test_a_broken_filter_is_noticed_when_it_is_timed() -> None:
    with pytest.raises(FilterError):
        EraseAndCheck(Slow(lambda text: math.nan, Clock()), load_mode("suffix", 2), Chars(), max_seconds=1.0)


# The time itself


@pytest.mark.parametrize("kind", ["plain", "prefixes", "screened"])
@pytest.mark.parametrize("mode", [("suffix", 20, 1), ("insertion", 10, 1), ("insertion", 3, 2), ("infusion", 3, 1),
                                  ("wrap", 20, 1)], ids=str)  # fmt: skip
@pytest.mark.parametrize("n", [5, 25, 200, 2000])
def test_the_budget_is_kept_where_calls_cost_what_they_did(kind: str, mode: tuple[str, float, int], n: int) -> None:
    """Seconds as a small model has them: a millisecond per call and ten microseconds per code point."""
    for seconds in (0.03, 0.1, 0.5):
        clock = Clock()
        filter_ = FILTERS[kind](never, clock, fixed=1e-3, each=1e-5)
        timed = EraseAndCheck(
            filter_, load_mode(*mode), Words(), max_checks=None, max_work=None, max_seconds=seconds, clock=clock
        )
        start = clock.now
        label = outcome(timed, " ".join(f"w{i}" for i in range(n)))
        assert clock.now - start <= 1.1 * seconds
        if label is Label.ABSTAIN and clock.now > start:  # the time was used
            assert clock.now - start >= 0.6 * seconds


@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0])
def test_duplicates_do_not_hide_what_a_batch_costs(seconds: float) -> None:
    """Erasing one of ten equal words in a row gives the same text ten times; behind them no two texts are equal."""
    clock = Clock()
    timed = EraseAndCheck(
        Slow(never, clock, each=1e-3), load_mode("infusion", 1), Words(), max_checks=None, max_work=None,
        max_seconds=seconds, clock=clock,
    )  # fmt: skip
    start = clock.now
    outcome(timed, " ".join([f"v{i}" for i in range(20) for _ in range(10)] + [f"w{i}" for i in range(200)]))
    assert clock.now - start <= seconds


def test_a_guess_for_a_new_size_comes_from_its_neighbours() -> None:
    speed = Speed()
    assert speed.predict(1000) == 0.0
    speed.note(100, 1.0)
    assert speed.predict(1000) == pytest.approx(10.0)
    speed.note(2000, 4.0)
    assert speed.predict(1000) == pytest.approx(4.0 * 1024 / 2000)


# The guard and the command


def test_the_guard_blocks_what_was_not_finished() -> None:
    unfinished = Guard(certifier("plain", ("infusion", 3, 1), never, 60.0, each=1.0)).check("a b c d e f")
    assert (unfinished.allowed, unfinished.reason, unfinished.error) == (False, Reason.ABSTAIN, None)
    refused = Guard(certifier("plain", ("infusion", 3, 1), never, 60.0, each=1.0)).check("word " * 90)
    assert (refused.allowed, refused.reason, refused.error) == (False, Reason.OVER_BUDGET, "OutOfTime")
    lenient = Guard(certifier("plain", ("infusion", 3, 1), never, 60.0, each=1.0, anytime=True)).check("a b c d e f")
    assert lenient.allowed


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--filter", "keyword:bomb"])


def test_the_command_takes_seconds() -> None:
    assert command("check", "bake a cake", "--max-seconds", "60").exit_code == 0
    assert command("check", "bake a cake", "--max-seconds", "0").exit_code == 2
    slow = ["--mode", "infusion", "--max-erase", "4", "--max-checks", "100000000", "--max-seconds", "0.05"]
    text = " ".join(f"w{i}" for i in range(120))
    blocked = command("certify", text, *slow, "--json")
    assert blocked.exit_code == 1
    assert json.loads(blocked.output)["reason"] in {"abstain", "over_budget"}
    assert "--max-seconds" in json.loads(blocked.output)["meaning"]
    flagged: Verdict = certifier("plain", ("suffix", 2, 1), exact("a").score, 60.0, each=0.1).certify("a b")
    assert flagged.label is Label.HARMFUL
