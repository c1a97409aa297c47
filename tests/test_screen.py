"""Screening: what bounds the scores may be as wrong as it likes, the promise holds and nothing is missed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
from attacks import Pieces, threat, words
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import TestFilter, Trial, Violation, arbitrary, exact, first_violation, keyword

import promptguard.certify.enumeration as enumeration
from promptguard.capabilities import BoundedFilter
from promptguard.certify.enumeration import Enumerate, Screen
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.found import Found, Settings
from promptguard.certify.pieces import Pieces as Cut
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument
from promptguard.score import load_filter
from promptguard.score.hf import HFFilter
from promptguard.score.screen import ScreenedFilter
from promptguard.types import Filter, Verdict
from promptguard.units import Chars, Words, load_units


def log_odds(probability: float) -> float:
    if probability in {0.0, 1.0}:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))


@dataclass
class Screening:
    """A screen from a function of one text; in a batch of many, the log-odds are `sway` lower. It counts its texts."""

    score: Callable[[str], float]
    sway: float = 0.0
    guard_band: float = 0.0
    threshold: float = 0.5
    name: str = "screen"
    digest: str = "screen"
    seen: list[str] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.seen += texts
        low = math.exp(-self.sway if len(texts) > 1 else 0.0)
        scores = map(self.score, texts)
        return [score * low / (1 - score + score * low) for score in scores]


def noise(seed: int) -> Callable[[str], float]:
    """No relation to the exact scores at all: as bad as a screen can be."""
    return lambda text: hashlib.sha256(f"noise {seed}:{text}".encode()).digest()[0] / 255


def screened(filter_: Filter, seed: int = 0, *, sway: float = 0.0, **options: Any) -> ScreenedFilter:
    return ScreenedFilter(filter_, Screening(noise(seed), sway), sway=sway, **options)


# The score and its parts


def test_the_score_is_what_the_docstring_says() -> None:
    filter_ = ScreenedFilter(
        TestFilter(lambda text: {"low": 0.0, "mid": 0.4, "high": 0.9}[text]),
        Screening(lambda text: 0.5),
        margin=math.log(3),
        floor=0.1,
    )
    assert filter_.upper_bounds(["low"]) == pytest.approx([0.75])
    assert filter_(["low", "mid", "high"]) == pytest.approx([0.1, 0.4, 0.75])
    assert isinstance(filter_, BoundedFilter)
    assert not isinstance(filter_.exact, BoundedFilter)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 5), st.floats(0, 5), st.floats(0, 0.99))
def test_laws_of_the_bound(one: float, other: float, margin: float, sway: float, floor: float) -> None:
    texts = {"one": one, "other": other}
    filter_ = ScreenedFilter(
        TestFilter(lambda text: 1.0 - texts[text]), Screening(texts.__getitem__), margin=margin, sway=sway, floor=floor
    )
    bounds, scores = filter_.upper_bounds(list(texts)), filter_(list(texts))
    for bound, score, raw in zip(bounds, scores, texts.values(), strict=True):
        assert raw * (1 - 1e-9) <= bound <= 1
        assert score <= bound
        assert score == bound or bound > floor
        assert filter_.least_bound(bound) <= bound * (1 + 1e-9)
        # In a batch of many the screen's log-odds are lower by the sway: the least that the bound can be.
        moved = ScreenedFilter(filter_.exact, Screening(texts.__getitem__, sway), margin=margin, sway=sway, floor=floor)
        assert moved.upper_bounds(list(texts)) == pytest.approx([*map(filter_.least_bound, bounds)], abs=1e-9)
        if 1e-3 < raw < 1 - 1e-3:
            assert log_odds(bound) - log_odds(raw) == pytest.approx(margin, abs=1e-6)
    assert (bounds[0] <= bounds[1]) == (one <= other) or bounds[0] == pytest.approx(bounds[1])


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 3), st.floats(0, 0.99))
def test_the_guard_band_holds_for_the_whole(score: float, raw: float, sway: float, floor: float) -> None:
    """Both parts move at once, each by all it may."""
    low = TestFilter(lambda text: score, guard_band=0.02, wobble=0.02)
    filter_ = ScreenedFilter(low, Screening(lambda text: raw, sway), sway=sway, floor=floor)
    alone, together = filter_(["a"])[0], filter_(["a", "b"])[0]
    assert alone - together <= filter_.guard_band + 1e-9


@pytest.mark.parametrize(
    "options",
    [{"margin": -0.1}, {"margin": math.nan}, {"margin": 1e3}, {"sway": -1}, {"sway": math.inf}, {"floor": 1.0}],
)
def test_numbers_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        screened(exact("a"), **options)


def test_the_digest_names_both_filters_and_the_numbers() -> None:
    def digest(one: str = "e", other: str = "s", **options: float) -> str:
        return ScreenedFilter(TestFilter(len, digest=one), Screening(len, digest=other), **options).digest

    all_ = [digest(), digest("x"), digest(other="x"), digest("s", "e"), digest(margin=0.4), digest(floor=0.01)]
    assert len({*all_, "e", "s"}) == len(all_) + 2
    assert digest() == digest(sway=0.3), "the sway is what is known of the function, not part of it"


# Soundness, as for every other filter

MODES = [("suffix", 1, 2), ("suffix", 1, math.inf), ("insertion", 1, 2), ("insertion", 2, 1), ("infusion", 1, 2)]
EXACT: dict[str, Callable[[int, str], Filter]] = {
    "arbitrary": lambda seed, prompt: arbitrary(seed),
    "exact": lambda seed, prompt: exact(prompt),
    "keyword": lambda seed, prompt: keyword("a", "b"),
}


def prompts(longest: int) -> list[Pieces]:
    return list(words("ab", longest, 1))


def trial(filter_: Filter, mode: tuple[str, int, float], way: type[Screen] = Screen, **options: Any) -> Trial:
    kind, blocks, budget = mode
    certifier = EraseAndCheck(filter_, load_mode(kind, budget, blocks), Chars(), max_checks=None, **options)
    assert isinstance(certifier._way, Screen)
    certifier._way.__class__ = way
    return Trial(certifier, filter_, threat(kind, budget, blocks), "ab")


def broken(trial_: Trial, texts: Sequence[Pieces]) -> list[Violation]:
    return [violation for text in texts for violation in trial_.violations(text)]


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_screen_that_knows_nothing_breaks_no_promise(
    mode: tuple[str, int, float], kind: str, early_stop: bool
) -> None:
    for seed in range(3):
        for prompt in prompts(2):
            filter_ = screened(EXACT[kind](seed, "".join(prompt)), seed, margin=0.5 * seed, floor=0.3 * seed)
            assert broken(trial(filter_, mode, early_stop=early_stop, batch_size=3), [prompt]) == []


def on_the_edge(above: float, odds: float, sway: float = 0.2) -> ScreenedFilter:
    """Flags "ab" by so much in the exact score, and so much in the log-odds of the bound; both move with the batch."""
    low = TestFilter(lambda text: 0.5 + above if text == "ab" else 0.0, guard_band=0.05, wobble=0.05)
    bound = Screening(lambda text: 1 / (1 + math.exp(-odds)), sway)
    return ScreenedFilter(low, bound, margin=0.0, sway=sway)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_parts_that_move_with_the_batch_break_no_promise(mode: tuple[str, int, float]) -> None:
    for above in (0.0, 0.049, 0.051, 0.4):
        for odds in (-0.1, 0.0, 0.19, 0.21, 2.0):
            assert broken(trial(on_the_edge(above, odds), mode), [("a", "b")]) == []


def test_either_part_decides_what_is_certain() -> None:
    def certified(above: float, odds: float) -> bool:
        certifier = EraseAndCheck(on_the_edge(above, odds), load_mode("suffix", 2), Chars())
        return certifier.certify("ab").certificate is not None

    assert certified(0.051, 0.21)
    assert not certified(0.049, 0.21)
    assert not certified(0.051, 0.19)


def test_what_the_floor_alone_flags_is_certain() -> None:
    low = TestFilter(lambda text: 0.0, threshold=0.05, guard_band=0.2, wobble=0.2)
    filter_ = ScreenedFilter(low, Screening(lambda text: 0.9), sway=0.0, floor=0.2)
    assert broken(trial(filter_, ("suffix", 1, 2)), [("a", "b")]) == []
    certificate = EraseAndCheck(filter_, load_mode("suffix", 2), Chars()).certify("ab").certificate
    assert certificate is not None
    assert certificate.threat.budget == 2


# Nothing is missed


def verdicts(filter_: Filter, kind: str, budget: float, text: str, **options: Any) -> list[Verdict]:
    """By screening, and by enumerating the same function."""
    both = []
    for way in (Screen, Enumerate):
        certifier = EraseAndCheck(filter_, load_mode(kind, budget), Chars(), **options)
        certifier._way.__class__ = way
        both.append(certifier.certify(text))
    return both


@given(st.data())
@settings(max_examples=150)
def test_screening_finds_what_enumeration_finds(data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from("abc "), min_size=1, max_size=9).filter("".join)))
    if not text.strip():
        text += "a"
    raw = data.draw(st.sampled_from([arbitrary(0), arbitrary(1), keyword("a", "b"), exact(text)]))
    band = data.draw(st.sampled_from([0.0, 0.2]))
    low = TestFilter(raw.score, threshold=data.draw(st.sampled_from([0.05, 0.5, 0.95])), guard_band=band)
    loose: Callable[[str], float] = lambda text: 1.0  # noqa: E731 - certificates differ only where the bound is near
    bound = loose if band else data.draw(st.sampled_from([noise(0), noise(1), raw.score, lambda text: 0.0, loose]))
    filter_ = ScreenedFilter(
        low,
        Screening(bound),
        margin=data.draw(st.sampled_from([0.0, 0.5, 3.0])),
        sway=0.0,
        floor=data.draw(st.sampled_from([0.0, 0.001, 0.2, 0.7])),
    )
    # What the floor alone flags is certain, whatever the band: there screening certifies more.
    assume(not band or filter_.floor < filter_.threshold)
    kind, budget = data.draw(st.sampled_from([("suffix", 3), ("suffix", math.inf), ("insertion", 3), ("infusion", 3)]))
    options = {"early_stop": False, "batch_size": data.draw(st.sampled_from([1, 2, 7, 64]))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enumeration, "_OPEN", data.draw(st.sampled_from([1, 5, 4096])))
        mine, plain = verdicts(filter_, kind, budget, text, **options)
    assert (mine.label, mine.score, mine.witness) == (plain.label, plain.score, plain.witness)
    assert (mine.certificate is None) == (plain.certificate is None)
    assert (mine.calls, mine.checks) == (plain.calls, plain.checks)


@dataclass
class Counted:
    """A filter that remembers what it was asked."""

    inner: TestFilter
    threshold: float = 0.5
    guard_band: float = 0.0
    name: str = "counted"
    digest: str = "counted"
    seen: list[str] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.seen += texts
        return self.inner(texts)


def test_a_good_screen_spares_nearly_all_exact_scores() -> None:
    text = "abcdefghijkl"
    for score, most in ((lambda text: 1e-5, 0), (lambda text: 0.4 if text == "abcdefghi" else 0.1, 9), (noise(5), 20)):
        counted = Counted(TestFilter(score))
        screen = Screening(score)
        filter_ = ScreenedFilter(counted, screen, margin=0.01, sway=0.0)
        verdict = EraseAndCheck(filter_, load_mode("infusion", 3), Chars(), early_stop=False).certify(text)
        assert verdict.calls == len(set(screen.seen)) == 299
        assert verdict.score == pytest.approx(max(map(score, screen.seen)), rel=0.02)
        assert len(counted.seen) <= most


def test_a_harmful_text_is_settled_by_itself() -> None:
    counted = Counted(TestFilter(lambda text: 0.9))
    filter_ = ScreenedFilter(counted, Screening(lambda text: 0.8))
    verdict = EraseAndCheck(filter_, load_mode("infusion", 3), Chars()).certify("abcdef")
    assert (verdict.calls, counted.seen) == (1, ["abcdef"])
    assert verdict.certificate is not None


def test_certificates_say_how_the_scores_were_made() -> None:
    filter_ = ScreenedFilter(exact("ab"), Screening(lambda text: 0.9), margin=0.25)
    verdict = EraseAndCheck(filter_, load_mode("suffix", 2), Chars()).certify("ab")
    assert verdict.certificate is not None
    assert verdict.certificate.filter == filter_.digest
    said = " ".join(verdict.certificate.assumes)
    assert "bounded from above" in said
    assert "0.25 added to its log-odds" in said


def test_progress_and_other_ways() -> None:
    seen: list[tuple[int, int]] = []
    filter_ = screened(arbitrary(0))
    way = cheapest(filter_, load_mode("infusion", 2), Words(), Settings(False, 4, lambda *at: seen.append(at)))
    assert isinstance(way, Screen)
    assert isinstance(cheapest(arbitrary(0), load_mode("infusion", 2), Words()), Enumerate)
    way.search(Cut.of("a b c d", Words()), load_mode("infusion", 2))
    assert seen == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize("way", [Screen, Enumerate])
def test_duplicates_that_are_forgotten_cost_time_only(way: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    filter_, mode, pieces = screened(arbitrary(0)), load_mode("infusion", 4), Cut.of("aabbaabb", Chars())
    found = []
    for remembered in (100_000, 0):
        monkeypatch.setattr(enumeration, "_REMEMBERED", remembered)
        found.append(way(filter_, Settings(early_stop=False, batch_size=4)).search(pieces, mode))
    assert (found[0].best, found[0].flagged, found[0].sure) == (found[1].best, found[1].flagged, found[1].sure)
    assert found[0].calls < found[1].calls <= found[1].checks == found[0].checks


# Planted faults


class IgnoresTheSway(Screen):
    """Certifies bounds that another batch may move below the threshold."""

    def _score(self, pieces: Cut, batch: Sequence[Any], found: Found) -> None:
        filter_: Any = self._filter
        self._filter = ScreenedFilter(
            filter_.exact, filter_.screen, margin=filter_.margin, sway=0.0, floor=filter_.floor
        )
        super()._score(pieces, batch, found)
        self._filter = filter_


class IgnoresTheExactBand(Screen):
    """Certifies exact scores inside their guard band."""

    def _score(self, pieces: Cut, batch: Sequence[Any], found: Found) -> None:
        filter_: Any = self._filter
        filter_.exact_band, band = 0.0, filter_.exact_band
        super()._score(pieces, batch, found)
        filter_.exact_band = band


class TrustsTheBound(Screen):
    """Takes the bound for the score: flags what F does not flag."""

    def _score(self, pieces: Cut, batch: Sequence[Any], found: Found) -> None:
        for one in batch:
            found.judge(one.erasure, one.bound, is_flagged=True, is_sure=True)


class DropsWhatIsNearTheThreshold(Screen):
    """Takes the bounds of one batch to be those of every batch, and prunes by the threshold and the guard band."""

    def _flag(self, pieces: Cut, batch: list[Any], found: Found) -> list[Any]:
        low = self._filter.threshold + self._filter.guard_band
        kept = [one for one in batch if one.bound >= low]
        super()._flag(pieces, kept, found)
        return []


class ScoresTheFirstFewOnly(Screen):
    """Gives up after one batch of exact scores."""

    def _flag(self, pieces: Cut, batch: list[Any], found: Found) -> list[Any]:
        return super()._flag(pieces, batch[:1], found)


class ForgetsWhatWaits(Screen):
    """Looks for the maximum among the last erasures only."""

    def _raise(self, pieces: Cut, waiting: list[Any], found: Found) -> None:
        super()._raise(pieces, waiting[-2:], found)


class WrongOrder(Screen):
    """Stops at the first bound that is no larger than the best score, in whatever order they come."""

    def _raise(self, pieces: Cut, waiting: list[Any], found: Found) -> None:
        for one in waiting:
            if one.bound <= found.best:
                return
            self._score(pieces, [one], found)


class ForgetsTheFloor(Screen):
    """Texts below the floor count for nothing."""

    def _bound(self, pieces: Cut, batch: list[Any], seen: set[str], found: Found) -> list[Any]:
        best = found.best
        bounded = super()._bound(pieces, batch, seen, found)
        found.best = best
        return [one for one in bounded if one.bound > self._filter.floor]


SOUNDNESS = [IgnoresTheSway, IgnoresTheExactBand, DropsWhatIsNearTheThreshold, ScoresTheFirstFewOnly]
SAMENESS = [TrustsTheBound, ForgetsWhatWaits, WrongOrder, ForgetsTheFloor]


def oracle(way: type[Screen]) -> Violation | None:
    def edges() -> Any:
        for mode in MODES[:3]:
            for above, odds in ((0.02, 2.0), (0.051, 0.1), (0.051, 0.21), (0.4, 0.0), (0.4, 0.1), (0.4, 2.0)):
                yield trial(on_the_edge(above, odds), mode, way), [("a", "b"), ("a", "b", "a")]
            for seed in (0, 1):
                yield trial(screened(arbitrary(seed), seed, floor=0.1), mode, way), prompts(3)
            # Silent about the bound: the exact score alone decides.
            loud = ScreenedFilter(exact("ab"), Screening(lambda text: 1.0))
            yield trial(loud, mode, way), [("a", "b")]

    return first_violation(edges())


def differs(way: type[Screen]) -> bool:
    for seed in range(4):
        for text in ("abcab", "bbacab"):
            filter_ = screened(TestFilter(arbitrary(seed).score, threshold=2.0), seed, floor=0.2 if seed % 2 else 0.999)
            certifier = EraseAndCheck(filter_, load_mode("infusion", 3), Chars(), early_stop=False, batch_size=4)
            certifier._way.__class__ = way
            if certifier.certify(text).score != verdicts(filter_, "infusion", 3, text, early_stop=False)[1].score:
                return True
    return False


def test_the_code_as_it_is_passes() -> None:
    assert oracle(Screen) is None
    assert not differs(Screen)


@pytest.mark.parametrize("way", SOUNDNESS)
def test_a_planted_fault_is_caught(way: type[Screen]) -> None:
    assert oracle(way) is not None


@pytest.mark.parametrize("way", SAMENESS)
def test_a_planted_fault_in_the_maximum_is_caught(way: type[Screen]) -> None:
    assert differs(way)


# Broken filters, real models


@pytest.mark.parametrize("score", [math.nan, 1.5, -0.1])
def test_a_screen_out_of_range_is_a_filter_error(score: float) -> None:
    filter_ = ScreenedFilter(exact("ab"), Screening(lambda text: 0.5))
    filter_.screen = TestFilter(lambda text: score)
    with pytest.raises(FilterError) as caught:
        EraseAndCheck(filter_, load_mode("suffix", 2), Chars()).certify("canary")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("broken_", [{"exact_band": math.nan}, {"exact_band": -0.1}, {"floor": math.nan}], ids=str)
def test_bands_and_floors_that_mean_nothing_are_refused(broken_: dict[str, float]) -> None:
    """min and max pass over a NaN, and a negative band certifies what is below the threshold."""
    filter_ = screened(exact("ab"))
    for name, value in broken_.items():
        setattr(filter_, name, value)
    with pytest.raises(InvalidArgument):
        EraseAndCheck(filter_, load_mode("suffix", 2), Chars())


@pytest.mark.parametrize("part", ["upper_bounds", "exact_scores"])
@pytest.mark.parametrize("answer", [[], [math.inf], [0.1, 0.2]])
def test_a_bounded_filter_that_breaks_its_contract_is_a_filter_error(part: str, answer: list[float]) -> None:
    class Breaks(ScreenedFilter):
        pass

    setattr(Breaks, part, lambda self, texts: answer)
    filter_ = Breaks(exact("ab"), Screening(lambda text: 0.9))
    with pytest.raises(FilterError):
        EraseAndCheck(filter_, load_mode("suffix", 2), Chars()).certify("ab")


def test_a_classifier_screened_by_itself_is_the_classifier_in_practice() -> None:
    plain = HFFilter(tiny.bert(), tiny.wordpiece())
    filter_ = ScreenedFilter.of(plain, margin=1.5)  # The tiny model's weights are large, and so are its errors.
    assert filter_.digest != plain.digest
    for text in tiny.CORPUS[:3]:
        verdicts_ = [
            EraseAndCheck(each, load_mode("infusion", 2), Words(), early_stop=False).certify(text)
            for each in (plain, filter_)
        ]
        assert verdicts_[0].score == pytest.approx(verdicts_[1].score, abs=1e-5)
        assert verdicts_[0].label == verdicts_[1].label
        assert verdicts_[0].witness == verdicts_[1].witness


def test_only_classifiers_whose_scores_keep_still_can_screen_themselves() -> None:
    deberta = HFFilter(tiny.deberta(), tiny.unigram())
    for filter_ in (deberta, exact("a")):
        with pytest.raises(InvalidArgument, match="cannot be screened"):
            ScreenedFilter.of(filter_)
    with pytest.raises(InvalidArgument):
        ScreenedFilter.of(HFFilter(tiny.bert(), tiny.wordpiece()), "int3")


def test_loading_by_name(tmp_path: Path) -> None:
    folder = str(tiny.save(tmp_path / "tiny", tiny.distilbert(), tiny.wordpiece()))
    plain, filter_ = load_filter(folder), load_filter(folder, screen="bfloat16", threshold=0.25)
    assert isinstance(filter_, ScreenedFilter)
    assert (filter_.threshold, filter_.exact.digest) == (0.25, plain.digest)
    assert load_units("token", filter_.tokenizer)("how to") == ["how", " to"]
    with pytest.raises(InvalidArgument, match="cannot be screened"):
        load_filter("keyword:bomb", screen="bfloat16")
