"""`AnyOf`: what one member certifies stays true of the whole, and nothing is lost on the way to "safe"."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from attacks import Pieces, attacks, words
from doubles import CANARY, SAFE, THREAT, Does
from doubles import Words as FlagsWord
from hypothesis import given
from hypothesis import strategies as st
from oracle import TestFilter, arbitrary, exact, keyword

from promptguard.certify.any_of import AnyOf, furthest
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.cli.check import _show_certificate
from promptguard.erase import load_mode
from promptguard.errors import BudgetExceeded, EmptyText, FilterError, InvalidArgument, InvalidText, TextTooLong
from promptguard.guard import Guard, Policy, Reason
from promptguard.guard.policy import Action
from promptguard.threat import Threat
from promptguard.types import Certificate, Certifier, Filter, Label, Units, Verdict
from promptguard.units import Chars, Words

ABSTAINS = Verdict(Label.ABSTAIN, math.nan, 0.5, calls=1, checks=1)
HARMFUL = FlagsWord("x").certify("x")
ALPHABETS: dict[str, Sequence[str]] = {"char": "ab", "word": [" a", " b"]}
UNITS: dict[str, Units] = {"char": Chars(), "word": Words()}


def erase(filter_: Filter, kind: str, budget: float, unit: str = "char", blocks: int = 1, **options: Any) -> Certifier:
    options = {"max_checks": None} | options
    return EraseAndCheck(filter_, load_mode(kind, budget, blocks), UNITS[unit], **options)


@dataclass(frozen=True)
class Moody:
    """Asks another certifier, and breaks, abstains or lies about texts that are longer than `length`."""

    inner: Certifier
    length: int
    outcome: Any

    def certify(self, x: str) -> Verdict:
        return (Does(self.outcome) if len(x) > self.length else self.inner).certify(x)


def escapes(certifier: Certifier, prompt: Pieces, unit: str) -> list[tuple[Certificate, str, str]]:
    """Attacks within a kept certificate that are not flagged, over every attack on a small alphabet."""
    found = []
    for certificate in certifier.certify("".join(prompt)).certificates:
        if certificate.threat.unit != unit:
            continue
        for pieces in attacks(certificate.threat, prompt, ALPHABETS[unit], cap=2):
            attacked = "".join(pieces)
            if UNITS[unit](attacked) != list(pieces):
                continue  # glued words are no attack in this unit
            label = certifier.certify(attacked).label
            if label is not Label.HARMFUL:
                found.append((certificate, attacked, str(label)))
    return found


MEMBERS: list[Callable[[str], Certifier]] = [
    lambda prompt: erase(exact(prompt), "suffix", 2),
    lambda prompt: erase(exact(prompt), "infusion", 2, "word"),
    lambda prompt: erase(exact(prompt[:-1] or "a"), "infusion", 2),
    lambda prompt: erase(keyword("a", "b"), "insertion", 1, "word"),
    lambda prompt: erase(arbitrary(0), "insertion", 2),
    lambda prompt: erase(arbitrary(1), "suffix", math.inf, "word", max_checks=5, anytime=True),
]


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("unit", ALPHABETS)
def test_every_kept_certificate_holds_under_every_attack_that_it_names(unit: str, stop_early: bool) -> None:
    kept = 0
    for prompt, pair in product(words(ALPHABETS[unit], 2, 1), product(MEMBERS, repeat=2)):
        certifier = AnyOf([member("".join(prompt)) for member in pair], stop_early=stop_early)
        kept += len(certifier.certify("".join(prompt)).certificates)
        assert escapes(certifier, prompt, unit) == []
    assert kept > 100


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "outcome",
    [
        *(BudgetExceeded(1), TextTooLong(9, 1), FilterError("broken"), ValueError(CANARY), MemoryError()),
        *(SAFE, ABSTAINS, replace(SAFE, score=math.nan), "no verdict", None),
    ],
    ids=repr,
)
def test_an_attack_that_breaks_one_member_does_not_silence_another(outcome: Any, last: bool, stop_early: bool) -> None:
    """The other member fails on every text that is longer than the prompt, as an attacker would make it."""
    for prompt in words("ab", 2, 1):
        steady = erase(exact("".join(prompt)), "infusion", 2)
        moody = Moody(erase(arbitrary(0), "suffix", 1), len(prompt), outcome)
        certifier = AnyOf([steady, moody] if last else [moody, steady], stop_early=stop_early)
        own = steady.certify("".join(prompt)).certificate
        assert own is not None
        for pieces in attacks(own.threat, prompt, "ab"):
            assert certifier.certify("".join(pieces)).label is Label.HARMFUL


def test_a_refusal_that_a_certificate_foresees_is_seen_as_one() -> None:
    """Too long for the member that certified: refused as `InvalidText`, however the others fail."""
    short = erase(exact("ab"), "suffix", 5, max_chars=3)
    assert short.certify("ab").certificate is not None
    for other in (Does(BudgetExceeded(1)), Does(ABSTAINS), Does(FilterError("broken")), FlagsWord()):
        for members in ([short, other], [other, short]):
            with pytest.raises(TextTooLong):
                AnyOf(members).certify("abbb")


def test_batches_that_move_scores_break_no_kept_certificate() -> None:
    for margin in (0.0, 0.049, 0.05, 0.2):
        unsure = TestFilter(lambda text, m=margin: 0.5 + m if text == "ab" else 0.0, guard_band=0.05, wobble=0.05)  # type: ignore[misc]
        certifier = AnyOf([erase(unsure, "infusion", 2), erase(keyword("b", "a"), "suffix", 1)])
        assert escapes(certifier, ("a", "b"), "char") == []


# What is composed


def test_harmful_wins_then_errors_then_abstentions_and_safe_is_unanimous() -> None:
    assert AnyOf([Does(ABSTAINS), Does(FilterError("broken")), FlagsWord()]).certify("bomb").label is Label.HARMFUL
    with pytest.raises(FilterError):
        AnyOf([Does(ABSTAINS), Does(FilterError("broken")), FlagsWord()]).certify("cake")
    assert AnyOf([Does(ABSTAINS), FlagsWord()]).certify("cake").label is Label.ABSTAIN
    assert AnyOf([FlagsWord("gun"), FlagsWord()]).certify("cake").label is Label.SAFE


@given(st.lists(st.sampled_from([SAFE, HARMFUL, ABSTAINS, FilterError("x"), EmptyText("x")]), min_size=1, max_size=5))
def test_safe_is_never_said_of_what_one_member_did_not_call_safe(outcomes: list[Any]) -> None:
    try:
        label = AnyOf([Does(outcome) for outcome in outcomes]).certify("x").label
    except FilterError:
        assert HARMFUL not in outcomes
        assert any(isinstance(outcome, FilterError) for outcome in outcomes)
    except InvalidText:
        assert HARMFUL not in outcomes
        assert any(isinstance(outcome, InvalidText) for outcome in outcomes)
    else:
        assert (label is Label.HARMFUL) == (HARMFUL in outcomes)
        assert (label is Label.SAFE) == (set(map(id, outcomes)) == {id(SAFE)})


@pytest.mark.parametrize("answer", ["safe", None, replace(SAFE, score=math.nan)])
def test_an_answer_that_means_nothing_is_an_error_of_that_member(answer: Any) -> None:
    with pytest.raises(FilterError):
        AnyOf([FlagsWord(), Does(answer)]).certify("cake")


def test_foreign_errors_become_ours_without_the_text() -> None:
    with pytest.raises(FilterError) as caught:
        AnyOf([FlagsWord(), Does(ValueError(CANARY))]).certify("cake")
    assert CANARY not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    with pytest.raises(KeyboardInterrupt):
        AnyOf([FlagsWord(), Does(KeyboardInterrupt())]).certify("bomb")


def test_counts_add_up_and_parts_keep_the_order() -> None:
    first, second = FlagsWord("gun"), FlagsWord("bomb")
    verdict = AnyOf([first, second]).certify("bomb")
    assert verdict.parts == (first.certify("bomb"), second.certify("bomb"))
    assert (verdict.calls, verdict.checks) == (3, 4)
    assert not verdict.degraded
    assert AnyOf([first, Does(replace(SAFE, degraded=True))]).certify("x").degraded


def test_the_score_is_that_of_the_deciding_member() -> None:
    near = replace(SAFE, score=0.4, threshold=0.5)
    far = replace(SAFE, score=3.0, threshold=7.0)
    assert AnyOf([Does(far), Does(near)]).certify("x").score == 0.4
    uncertified = replace(HARMFUL, score=0.99, certificate=None)
    assert AnyOf([Does(uncertified), Does(near)]).certify("x").score == 0.99
    verdict = AnyOf([Does(uncertified), FlagsWord("x"), Does(near)]).certify("x")
    assert (verdict.score, verdict.certificate) == (HARMFUL.score, HARMFUL.certificate)


def proof(
    kind: str = "suffix", budget: float = 3, *, unit: str = "word", blocks: int = 1, sure: float = 1.0
) -> Certificate:
    return Certificate(Label.HARMFUL, Threat(kind, budget, unit, blocks), "double", sure, "digest")


@pytest.mark.parametrize(
    ("certificates", "chosen"),
    [
        ([proof(budget=3), proof(budget=math.inf)], 1),
        ([proof(budget=0), proof("infusion", 1)], 1),
        ([proof(budget=math.inf, sure=0.99), proof(budget=0)], 1),
        ([proof(budget=3), proof(budget=9, unit="char")], 0),
        ([proof(budget=3), proof("infusion", 9), proof(budget=5)], 2),
        ([proof(budget=3), proof(budget=3)], 0),
        ([proof("insertion", 3, blocks=2), proof("insertion", 5, blocks=1)], 0),
        ([proof("insertion", 3, blocks=2), proof("insertion", 3, blocks=3)], 1),
    ],
)
def test_the_largest_reach_comes_first(certificates: list[Certificate], chosen: int) -> None:
    assert furthest(certificates) is certificates[chosen]
    verdict = AnyOf([Does(replace(HARMFUL, certificate=each)) for each in certificates]).certify("x")
    assert verdict.certificate == certificates[chosen]
    assert verdict.certificates[0] == certificates[chosen]
    assert set(verdict.certificates) == set(certificates)


def test_only_harmful_is_kept() -> None:
    odd = replace(SAFE, certificate=replace(proof(), label=Label.SAFE))
    assert AnyOf([Does(odd), FlagsWord()]).certify("cake").certificates == ()
    assert AnyOf([Does(odd), FlagsWord()]).certify("bomb").certificates == (HARMFUL.certificate,)


def test_stop_early_asks_no_further_once_there_is_a_certificate() -> None:
    cheap, costly = FlagsWord(), FlagsWord()
    AnyOf([cheap, costly], stop_early=True).certify("bomb")
    assert (cheap.seen, costly.seen) == (["bomb"], [])
    AnyOf([cheap, costly], stop_early=True).certify("cake")
    assert costly.seen == ["cake"]
    AnyOf([Does(replace(HARMFUL, certificate=None)), costly], stop_early=True).certify("bomb")
    assert costly.seen == ["cake", "bomb"]  # flagged is not certified


def test_any_of_nests() -> None:
    inner = AnyOf([erase(exact("ab"), "suffix", 2), erase(exact("ab"), "infusion", 1)])
    outer = AnyOf([inner, erase(keyword("a", "z"), "insertion", 1)])
    kinds = [certificate.threat.kind for certificate in outer.certify("ab").certificates]
    assert sorted(kinds) == ["infusion", "insertion", "suffix"]
    assert escapes(outer, ("a", "b"), "char") == []


@pytest.mark.parametrize("members", [[], [None], [FlagsWord(), "certify"]])
def test_nothing_to_ask_is_refused(members: list[Any]) -> None:
    with pytest.raises(InvalidArgument):
        AnyOf(members)


# At the edge


def two_members() -> AnyOf:
    return AnyOf([erase(exact("build a bomb"), "suffix", 2, "word"), erase(keyword("bomb", "cake"), "infusion", 1)])


def test_the_guard_shows_every_certificate() -> None:
    decision = Guard(two_members()).check("build a bomb")
    assert decision.reason is Reason.HARMFUL
    assert decision.certificate == decision.certificates[0]
    assert [certificate.threat.kind for certificate in decision.certificates] == ["suffix", "infusion"]
    written = json.loads(json.dumps(decision.to_dict()))
    assert [certificate["threat"]["kind"] for certificate in written["certificates"]] == ["suffix", "infusion"]
    (part,) = written["parts"]
    assert [member["label"] for member in part["verdict"]["parts"]] == ["harmful", "harmful"]
    assert "bomb" not in json.dumps(decision.to_dict())
    assert Guard(two_members()).check("bake a cake").certificates == ()
    assert Guard(two_members(), Policy(on_harmful=Action.ALLOW)).check("build a bomb").certificates == ()


def test_the_guard_blocks_what_a_member_could_not_check() -> None:
    assert Guard(AnyOf([FlagsWord(), Does(BudgetExceeded(1))])).check("cake").reason is Reason.OVER_BUDGET
    assert Guard(AnyOf([FlagsWord(), Does(ValueError())])).check("cake").reason is Reason.ERROR
    assert Guard(AnyOf([FlagsWord(), Does(ABSTAINS)])).check("cake").reason is Reason.ABSTAIN


def test_the_command_prints_a_sentence_for_each_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    decision = Guard(two_members()).check("build a bomb")
    _show_certificate(decision, True)
    shown = json.loads(capsys.readouterr().out)
    for certificate in decision.certificates:
        assert certificate.sentence() in shown["meaning"]
        assert certificate.to_dict() in shown["certificates"]
    _show_certificate(decision, False)
    printed = " ".join(capsys.readouterr().out.split())
    for certificate in decision.certificates:
        assert certificate.sentence() in printed
    _show_certificate(Guard(two_members()).check("bake a cake"), False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "up to 2 whole words appended or up to 1 character inserted anywhere" in printed


def test_a_single_certifier_lists_its_own_certificate_once() -> None:
    verdict = FlagsWord().certify("bomb")
    assert verdict.certificates == (verdict.certificate,)
    assert verdict.to_dict()["parts"] == []
    assert verdict.threat == THREAT
