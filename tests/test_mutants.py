"""Planted faults: each must be caught by the soundness oracle, and the code as it is must pass it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
from attacks import Pieces, threat, words
from oracle import TestFilter, Trial, Violation, arbitrary, exact, first_violation

import promptguard.certify.enumeration as enumeration_module
from promptguard.certify.enumeration import Enumerate
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.found import Found
from promptguard.certify.pieces import Pieces as Cut
from promptguard.erase import load_mode
from promptguard.erase.infusion import Infusion
from promptguard.erase.insertion import Insertion
from promptguard.erase.suffix import Suffix
from promptguard.types import Certificate, EraseMode, Erasure, Filter, Units
from promptguard.units import Chars, Words
from promptguard.view import canonical

Maker = Callable[[str, float, int], EraseMode]


@dataclass(frozen=True)
class Build:
    """What a mutant replaces: modes, certifier, its way to the maximum, units; None is the real part."""

    mode: Maker = load_mode
    certifier: type[EraseAndCheck] = EraseAndCheck
    units: Units | None = None
    way: type[Enumerate] = Enumerate

    def trial(self, filter_: Filter, kind: str, budget: float, blocks: int = 1, **options: Any) -> Trial:
        """Attacks in letters of "ab"."""
        certifier = self.certifier(filter_, self.mode(kind, budget, blocks), self.units or Chars(), **options)
        certifier._way.__class__ = self.way
        limited = options.get("max_checks") is not None
        return Trial(certifier, filter_, None if limited else threat(kind, budget, blocks), "ab")


LETTERS = [p for p in words("ab", 2, 1) if "".join(p) != "bb"]
KINDS = [("suffix", 2, 1), ("insertion", 2, 1), ("insertion", 1, 2), ("infusion", 2, 1)]


def small_batches(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    for kind, budget, blocks in KINDS:
        for prompt in LETTERS:
            yield build.trial(exact("".join(prompt)), kind, budget, blocks, max_checks=None, batch_size=3), [prompt]


def arbitrary_filters(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    for kind, budget, blocks in KINDS:
        for seed in (0, 1):
            yield build.trial(arbitrary(seed), kind, budget, blocks, max_checks=None), [*LETTERS, ("a", "b", "a")]


def already_attacked(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    for kind, budget, blocks in KINDS:
        trial = build.trial(exact("aa"), kind, budget, blocks, max_checks=None)
        yield replace(trial, alphabet="b"), [tuple("aba"), tuple("aab"), tuple("abba"), tuple("aabb")]


def limits(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    for kind, budget, blocks in [*KINDS[:-1], ("infusion", 3, 1), ("suffix", math.inf, 1)]:
        for limit in (3, 5, 8, 12):
            options = {"max_checks": limit, "anytime": True}
            trial = build.trial(exact("ab"), kind, budget, blocks, **options)
            yield replace(trial, alphabet="a"), [("a", "b")]
            trial = build.trial(exact("ab"), kind, budget, blocks, max_checks=limit)
            yield replace(trial, alphabet="a"), [("a", "b")]


def batch_noise(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    for margin in (0.0, 0.04, 0.06):
        filter_ = TestFilter(
            lambda text, margin=margin: 0.5 + margin if text == "ab" else 0.0,  # type: ignore[misc]
            guard_band=0.05,
            wobble=0.05,
        )
        yield build.trial(filter_, "suffix", 2, max_checks=None), [("a", "b")]


def strings(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    """Glued marks, look-alikes, white space and case in what is scored."""
    for prompt in ("a=", "a b", "\uff41b", "a.b"):
        trial = build.trial(exact(prompt), "suffix", 2, max_checks=None)
        yield replace(trial, alphabet=["\u0338", " ", "\u200bb", "\t"]), [tuple(prompt)]


def words_glued(build: Build) -> Iterator[tuple[Trial, Sequence[Pieces]]]:
    units = build.units or Words()
    for kind, budget, blocks in KINDS[:2]:
        trial = replace(build, units=units).trial(exact("a, b"), kind, budget, blocks, max_checks=None)
        yield (
            replace(trial, alphabet=[" c", " !"], is_attack=lambda p: Words()("".join(p)) == list(p)),
            [("a", ",", " b")],
        )


PARTS = [small_batches, arbitrary_filters, already_attacked, limits, batch_noise, strings, words_glued]


def oracle(build: Build) -> Violation | None:
    return first_violation(trial for part in PARTS for trial in part(build))


# Mutants of modes


def only(kind: str, mutant: type[Any]) -> Build:
    def make(name: str, budget: float, blocks: int = 1) -> EraseMode:
        mode: EraseMode = mutant(budget, blocks) if name == kind else load_mode(name, budget, blocks)
        return mode

    return Build(mode=make)


class SuffixOneShort(Suffix):
    """Drops at most d - 1 units."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if e.cost < max(self.budget, 1))


class SuffixStartsAtOne(Suffix):
    """The text itself is not checked."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if e.cost > 0)


class SuffixFromTheFront(Suffix):
    """Drops units from the wrong end."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (Erasure(e.cost, ((0, e.cost),) if e.cost else ()) for e in super().erasures(n))


class SuffixKeepsOneUnit(Suffix):
    """Never erases down to a single unit."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if e.cost < max(1, n - 1))


class SuffixForgetsWhatIsSpent(Suffix):
    """Certifies the whole budget after a witness that spent some."""

    def left(self, spent: int) -> float:
        return self.budget


class InsertionBlocksApart(Insertion):
    """Blocks must not touch: no erased run is longer than d."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if all(b - a <= self.budget for a, b in e.runs))


class InsertionOneShort(Insertion):
    """Blocks of at most d - 1 units."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if e.cost < max(self.budget, 1))


class InsertionMissesTheEnd(Insertion):
    """No block at the last position."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if not e.runs or e.runs[-1][1] < n)


class InsertionMissesTheFront(Insertion):
    """No block at the first position."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if not e.runs or e.runs[0][0] > 0)


class InsertionOneBlock(Insertion):
    """One run, however many blocks were asked for."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if len(e.runs) <= 1)


class InsertionLeavesTheRest(Insertion):
    """Certifies d - spent, as for a suffix."""

    def left(self, spent: int) -> float | None:
        return self.budget - spent


class InfusionMissesTheLastUnit(Infusion):
    """The last unit is never erased."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if not e.runs or e.runs[-1][1] < n)


class InfusionOneRun(Infusion):
    """Erased units must stand together."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if len(e.runs) <= 1)


class InfusionExactly(Infusion):
    """Erases d units and no fewer."""

    def erasures(self, n: int) -> Iterator[Erasure]:
        return (e for e in super().erasures(n) if e.cost == min(self.budget, n))


class InfusionLeavesOneMore(Infusion):
    """Certifies one unit too many."""

    def left(self, spent: int) -> float:
        return min(self.budget, self.budget - spent + 1)


class LongestIgnoresTheAttack(Suffix):
    """The attacked text is taken to be no longer than the checked one."""

    def longest(self, n: int, budget: int) -> int:
        return n


# Mutants of the certifier


class NoGuardBand(EraseAndCheck):
    """Certifies scores inside the guard band."""

    def __init__(self, filter_: Filter, *args: Any, **options: Any) -> None:
        super().__init__(replace(filter_, guard_band=0.0), *args, **options)  # type: ignore[type-var]


class IgnoresMaxChecks(EraseAndCheck):
    """Certifies what is left of the budget, whether or not a longer text can be checked to it."""

    def _certified_budget(self, n: int, spent: int, left: float) -> float:
        return left


class IgnoresThatTheTextGrows(EraseAndCheck):
    """Certifies the budget to which the checked text, not the attacked one, is checked."""

    def _certified_budget(self, n: int, spent: int, left: float) -> float:
        return min(left, self._budget_within_limit(n) - spent)


class FirstBatchOnly(Enumerate):
    """Scores one batch and the text itself."""

    def search(self, pieces: Cut, mode: EraseMode) -> Found:
        class Short:
            def count(self, n: int) -> int:
                return mode.count(n)

            def erasures(self, n: int) -> Iterator[Erasure]:
                return (e for i, e in enumerate(mode.erasures(n)) if i < 4)

        short: Any = Short()
        return super().search(pieces, short)


class StopsAtTheFirstSafe(Enumerate):
    """Answers after the first text that looks safe."""

    def search(self, pieces: Cut, mode: EraseMode) -> Found:
        return super().search(pieces, mode.with_budget(0))


class CertifiesTheWholeMode(EraseAndCheck):
    """Certifies the mode's budget always."""

    def _certificate(self, n: int, witness: Erasure) -> Certificate | None:
        certificate = super()._certificate(n, witness)
        return certificate and replace(certificate, threat=self.threat())


@dataclass(frozen=True)
class View:
    """A mutant of the view that candidates pass, in the certifier only."""

    fault: Callable[[str], str]


def joined_by_spaces(text: str) -> str:
    """As decoding does: marks and words set apart by single spaces."""
    return " ".join(piece.strip() for piece in Words()(canonical(text)))


def colliding(text: str) -> str:
    """Candidates of one length are taken for duplicates."""
    return canonical(text)[:1] * len(canonical(text))


def shortened(text: str) -> str:
    """The filter sees the first character only."""
    return canonical(text)[:1]


@dataclass(frozen=True)
class Whole:
    """Characters of the NFKC form of the whole text: an attacker's mark changes the last one."""

    name: str = "char"
    covers: str = "whole NFKC"

    def __call__(self, text: str) -> list[str]:
        import unicodedata

        pieces: list[str] = []
        for char in text:
            if pieces and unicodedata.normalize("NFC", pieces[-1] + char) != pieces[-1] + char:
                pieces[-1] += char
            else:
                pieces.append(char)
        return pieces


@dataclass(frozen=True)
class Pairs:
    """Two code points to a unit: what is added is glued to the prompt."""

    name: str = "char"
    covers: str = "pairs"

    def __call__(self, text: str) -> list[str]:
        return [text[i : i + 2] for i in range(0, len(text), 2)]


@dataclass(frozen=True)
class SplitWords:
    """Words between spaces, marks glued to them: a mark behind a word is part of it."""

    name: str = "word"
    covers: str = "split"

    def __call__(self, text: str) -> list[str]:
        pieces = text.split(" ")
        return [p for p in (pieces[0], *(f" {p}" for p in pieces[1:])) if p]


class ScoresLessOften(Enumerate):
    """Duplicates are found by a key on which different texts collide: their number of characters."""

    def _score(self, pieces: Cut, batch: list[Erasure], seen: set[str], found: Found) -> None:
        fresh = {len(pieces.without(e.runs)): e for e in reversed(batch)}
        kept = [e for length, e in sorted(fresh.items(), reverse=True) if str(length) not in seen]
        seen.update(str(length) for length in fresh)
        super()._score(pieces, kept, seen, found)


MUTANTS: dict[str, Build] = {
    **{m.__name__: only("suffix", m) for m in (SuffixOneShort, SuffixStartsAtOne, SuffixFromTheFront)},
    **{m.__name__: only("suffix", m) for m in (SuffixKeepsOneUnit, SuffixForgetsWhatIsSpent, LongestIgnoresTheAttack)},
    **{m.__name__: only("insertion", m) for m in (InsertionBlocksApart, InsertionOneShort, InsertionOneBlock)},
    **{m.__name__: only("insertion", m) for m in (InsertionMissesTheEnd, InsertionMissesTheFront)},
    **{m.__name__: only("insertion", m) for m in (InsertionLeavesTheRest,)},
    **{m.__name__: only("infusion", m) for m in (InfusionMissesTheLastUnit, InfusionOneRun, InfusionExactly)},
    **{m.__name__: only("infusion", m) for m in (InfusionLeavesOneMore,)},
    **{m.__name__: Build(certifier=m) for m in (NoGuardBand, IgnoresMaxChecks, IgnoresThatTheTextGrows)},
    **{m.__name__: Build(certifier=m) for m in (CertifiesTheWholeMode,)},
    **{m.__name__: Build(way=m) for m in (FirstBatchOnly, StopsAtTheFirstSafe, ScoresLessOften)},
    **{m.__name__: Build(units=m()) for m in (Whole, Pairs, SplitWords)},
}
VIEWS = {fault.__name__: fault for fault in (joined_by_spaces, colliding, shortened)}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_code_as_it_is_passes_the_oracle(part: Callable[[Build], Iterator[tuple[Trial, Sequence[Pieces]]]]) -> None:
    assert first_violation(part(Build())) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    assert oracle(MUTANTS[name]) is not None


@pytest.mark.parametrize("name", VIEWS)
def test_a_planted_fault_in_the_view_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration_module, "canonical", VIEWS[name])
    assert oracle(Build()) is not None


def test_a_mutant_differs_from_the_code_it_is_planted_in() -> None:
    """Guards against mutants that a change of the package has made harmless by renaming what they override."""
    for build in MUTANTS.values():
        for mutant, real in ((build.certifier, EraseAndCheck), (build.way, Enumerate)):
            own = {name for name in vars(mutant) if not name.startswith("__") or name == "__init__"}
            assert mutant is real or own
            assert all(hasattr(real, name) for name in own)


class Unchanged(Suffix):
    """No fault at all."""

    def with_budget(self, budget: float) -> Self:
        return super().with_budget(budget)


def test_a_subclass_without_a_fault_is_not_reported() -> None:
    assert oracle(only("suffix", Unchanged)) is None
