"""One law for the certifier: what it certified stays "harmful" under every attack that the certificate names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from attacks import BLANK_BRAILLE, NASTY, ZERO_WIDTH, Pieces, attacked, attacks, threat, threats, words
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import TestFilter, Trial, Violation, arbitrary, exact, keyword
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import BudgetExceeded
from promptguard.threat import Threat
from promptguard.types import Filter, Label, Units
from promptguard.units import Chars, Tokens, Words
from promptguard.view import canonical

# Kind, blocks, budget, longest prompt tried by brute force.
MODES = [
    *(("suffix", 1, 1, 3), ("suffix", 1, 3, 3), ("suffix", 1, math.inf, 3)),
    *(("insertion", 1, 1, 3), ("insertion", 1, 2, 3), ("insertion", 2, 1, 3), ("insertion", 2, 2, 2)),
    *(("insertion", 3, 1, 2), ("insertion", 1, math.inf, 2)),
    *(("infusion", 1, 1, 3), ("infusion", 1, 2, 3), ("infusion", 1, 3, 2), ("infusion", 1, math.inf, 2)),
    *(("wrap", 1, 1, 3), ("wrap", 1, 2, 3), ("wrap", 1, math.inf, 2)),
]
UNITS: dict[str, tuple[Units, Sequence[str]]] = {"char": (Chars(), "ab"), "word": (Words(), [" a", " b"])}


def trial(filter_: Filter, mode: tuple[str, int, float, int], unit: str, letters: int = 2, **options: Any) -> Trial:
    kind, blocks, budget, _ = mode
    units, alphabet = UNITS[unit][0], UNITS[unit][1][:letters]
    certifier = EraseAndCheck(filter_, load_mode(kind, budget, blocks), units, **options)
    undone = threat(kind, budget, blocks) if options.get("max_checks", 1) is None else None
    return Trial(certifier, filter_, undone, alphabet, lambda pieces: units("".join(pieces)) == list(pieces))


def violations(trial: Trial, prompts: Sequence[Pieces]) -> list[Violation]:
    return [v for prompt in prompts for v in islice(trial.violations(prompt), 3)]


def prompts(alphabet: Sequence[str], longest: int) -> list[Pieces]:
    return list(words(alphabet, longest, 1))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_only_exact_recovery_is_enough(mode: tuple[str, int, float, int], unit: str) -> None:
    """The filter flags one text only, and the attacker's letters are the prompt's own."""
    for prompt in prompts(UNITS[unit][1], mode[3]):
        filter_ = exact("".join(prompt))
        assert violations(trial(filter_, mode, unit, max_checks=None), [prompt]) == []


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_trigger_that_silences_a_keyword_is_erased(mode: tuple[str, int, float, int]) -> None:
    filter_ = keyword("a", "b")
    assert violations(trial(filter_, mode, "char", max_checks=None), prompts("ab", mode[3])) == []


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_arbitrary_functions_are_defended(mode: tuple[str, int, float, int], unit: str, early_stop: bool) -> None:
    """Prompts that are flagged only after some erasures have certificates too: the `left` rule."""
    for seed in range(2):
        some = trial(arbitrary(seed), mode, unit, max_checks=None, early_stop=early_stop, batch_size=3)
        assert violations(some, prompts(UNITS[unit][1], min(2, mode[3]))) == []


@pytest.mark.parametrize("anytime", [True, False])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_certificates_under_a_limit_of_checks_hold_for_the_longer_attacked_text(
    mode: tuple[str, int, float, int], anytime: bool
) -> None:
    for limit in (1, 2, 3, 4, 5, 6, 8, 11, 16, 22, 30):
        for prompt in (("a",), ("a", "b"), ("b", "a", "a")):
            for flagged in {"".join(prompt), "".join(prompt[:-1]) or "a"}:
                limited = trial(exact(flagged), mode, "char", 1, max_checks=limit, anytime=anytime)
                assert violations(limited, [prompt]) == []


@pytest.mark.parametrize("mode", [m for m in MODES if m[2] <= 2], ids=str)
def test_scores_that_move_with_the_batch_break_no_certificate(mode: tuple[str, int, float, int]) -> None:
    """Prompts of every margin, around the guard band."""
    for margin in (0.0, 0.049, 0.05, 0.051, 0.2):
        for prompt in prompts("ab", 2):
            view = "".join(prompt)
            filter_ = TestFilter(
                lambda text, view=view, margin=margin: 0.5 + margin if text == view else 0.0,  # type: ignore[misc]
                guard_band=0.05,
                wobble=0.05,
            )
            assert violations(trial(filter_, mode, "char", max_checks=None), [prompt]) == []


# String level: a certificate in characters is a promise about strings.
CLEAN = ["ab", "a b", "b\u200ba", "\u0430b."]
RAGGED = ["ab ", " ab", "a  b", "a\u2800 b", "\u200b ab\u200b "]
FEW = ["b", " ", ZERO_WIDTH + "b", BLANK_BRAILLE]


def string_trial(flagged: str, kind: str, budget: int, **options: Any) -> Trial:
    certifier = EraseAndCheck(exact(flagged), load_mode(kind, budget), Chars(), **options)
    return Trial(certifier, exact(flagged), None, NASTY if kind == "suffix" else FEW)


@pytest.mark.parametrize("kind", ["suffix", "insertion", "infusion"])
@pytest.mark.parametrize("prompt", [*CLEAN, *RAGGED])
def test_chars_certify_strings_glued_blank_or_invisible(prompt: str, kind: str) -> None:
    assert violations(string_trial(prompt, kind, 2), [tuple(prompt)]) == []


@pytest.mark.parametrize("kind", ["suffix", "infusion"])
@pytest.mark.parametrize("prompt", [*CLEAN, *RAGGED])
def test_chars_certify_strings_from_a_text_that_was_attacked_already(prompt: str, kind: str) -> None:
    for flagged in ("a", "b", "ab"):
        assert violations(string_trial(flagged, kind, 2), [tuple(prompt)]) == []


@pytest.mark.parametrize("anytime", [True, False])
@pytest.mark.parametrize("kind", ["suffix", "insertion", "infusion"])
@pytest.mark.parametrize("prompt", ["ab", *RAGGED])
def test_chars_certify_strings_under_a_limit_of_checks(prompt: str, kind: str, anytime: bool) -> None:
    for limit in (4, 6, 11, 15, 16):
        for budget in (1, 2):
            few = string_trial(prompt, kind, budget, max_checks=limit, anytime=anytime)
            again = Trial(few.certifier, few.filter, None, ["x", " "])
            assert violations(again, [tuple(prompt)]) == [], (limit, budget)


@given(st.data())
@settings(max_examples=60)
def test_sampled_string_attacks_escape_no_certificate(data: st.DataObject) -> None:
    """Longer prompts and budgets than brute force can list."""
    prompt = "".join(data.draw(st.lists(st.sampled_from(["a", "b", *NASTY]), min_size=1, max_size=8)))
    assume(canonical(prompt))
    wanted = data.draw(threats(3, 2))
    limit = data.draw(st.sampled_from([None, 20, 100, 400]))
    certifier = EraseAndCheck(
        data.draw(st.sampled_from([exact(prompt), arbitrary(0), keyword("a", "b")])),
        load_mode(wanted.kind, wanted.budget, wanted.blocks),
        Chars(),
        max_checks=limit,
        anytime=True,
    )
    certificate = certifier.certify(prompt).certificate
    assume(certificate is not None)
    assert certificate is not None
    pieces = data.draw(attacked(certificate.threat, list(prompt), st.sampled_from(NASTY)))
    assert certifier.certify("".join(pieces)).label == Label.HARMFUL


@given(st.data())
@settings(max_examples=60)
def test_sampled_unit_attacks_escape_no_certificate(data: st.DataObject) -> None:
    letters = st.sampled_from("ab")
    prompt = "".join(data.draw(st.lists(letters, min_size=1, max_size=9)))
    wanted = data.draw(threats(3, 2))
    limit, anytime = data.draw(st.sampled_from([None, 9, 40, 200, 1000])), data.draw(st.booleans())
    filter_ = data.draw(st.sampled_from([exact(prompt), exact(prompt[:-1] or "b"), arbitrary(1)]))
    certifier = EraseAndCheck(
        filter_,
        load_mode(wanted.kind, wanted.budget, wanted.blocks),
        Chars(),
        max_checks=limit,
        anytime=anytime,
        early_stop=data.draw(st.booleans()),
        batch_size=data.draw(st.sampled_from([1, 2, 7, 64])),
    )
    try:
        certificate = certifier.certify(prompt).certificate
    except BudgetExceeded:
        certificate = None
    assume(certificate is not None)
    assert certificate is not None
    pieces = data.draw(attacked(certificate.threat, list(prompt), letters))
    assert certifier.certify("".join(pieces)).label == Label.HARMFUL


# Over a transformer: real batches, padding and all.
@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on a tiny model, most of all when tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


VOCABULARY = ["[PAD]", "[UNK]", "w", "x", "y"]


@dataclass(frozen=True)
class TinyTransformer:
    """A randomly initialised BERT; its scores move a little with the batch, within the guard band."""

    model: Any
    tokenizer: Any
    threshold: float
    name: str = "tiny-bert"
    digest: str = "tiny-bert"
    guard_band: float = 1e-4

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return scores(self.model, self.tokenizer, texts)


def scores(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.inference_mode():
        return list(model(**encoded).logits.softmax(-1)[:, 1].tolist())


@cache
def tiny_transformer() -> TinyTransformer:
    stored = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    stored.pre_tokenizer = pre_tokenizers.Whitespace()
    make: Callable[..., Any] = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=stored, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.7,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = BertForSequenceClassification(config)
    model.eval()
    texts = [" ".join(pieces) for pieces in prompts("wxy", 4)]
    ordered = sorted(scores(model, tokenizer, texts))
    return TinyTransformer(model, tokenizer, ordered[len(ordered) // 2])


def test_the_tiny_transformer_is_a_filter_worth_defending() -> None:
    """About half of all texts are flagged, and one appended word often changes the label."""
    filter_ = tiny_transformer()
    texts = prompts("wxy", 3)
    flagged = {p for p, s in zip(texts, filter_([" ".join(p) for p in texts]), strict=True) if s >= filter_.threshold}
    assert 0.3 < len(flagged) / len(texts) < 0.7
    assert sum((*p, word) not in flagged for p in flagged for word in "wxy" if len(p) < 3) > 3


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "wanted", [threat("suffix", 2), threat("insertion", 1), threat("insertion", 1, 2), threat("infusion", 2)], ids=str
)
@pytest.mark.parametrize("unit", ["word", "token"])
def test_a_transformer_is_defended_against_every_attack(wanted: Threat, unit: str) -> None:
    filter_ = tiny_transformer()
    units: Units = Words() if unit == "word" else Tokens(filter_.tokenizer)
    alphabet = [" w", " x", " y"] if unit == "word" else ["w ", "x ", "y "]
    mode = load_mode(wanted.kind, wanted.budget, wanted.blocks)
    certifier = EraseAndCheck(filter_, mode, units, max_checks=None)
    undone = Trial(certifier, filter_, wanted, alphabet[:2], lambda pieces: units("".join(pieces)) == list(pieces))
    assert violations(undone, prompts(alphabet, 2)) == []


@pytest.mark.usefixtures("one_thread")
def test_token_certificates_of_a_transformer_hold_for_every_longer_suffix() -> None:
    filter_ = tiny_transformer()
    certifier = EraseAndCheck(filter_, load_mode("suffix", 3), Tokens(filter_.tokenizer))
    certified = 0
    for prompt in prompts("wxy", 3):
        certificate = certifier.certify(" ".join(prompt)).certificate
        if certificate is not None:
            certified += 1
            for pieces in islice(attacks(certificate.threat, prompt, "wxy"), 8):
                assert certifier.certify(" ".join(pieces)).label == Label.HARMFUL
    assert certified > 10


def test_insertion_has_no_certificate_when_the_prompt_itself_is_not_flagged() -> None:
    for blocks in (1, 2):
        certifier = EraseAndCheck(exact("ab"), load_mode("insertion", 2, blocks), Chars())
        verdict = certifier.certify("axb")
        assert (verdict.label, verdict.certificate) == (Label.HARMFUL, None)


def test_the_published_rule_for_insertion_would_be_broken() -> None:
    """Meta-check: "d - spent" more units per block do hide a witness, so the tests above can fail."""
    certifier = EraseAndCheck(exact("ab"), load_mode("insertion", 2), Chars())
    claimed = threat("insertion", 2 - 1)
    labels = [certifier.certify("".join(x)).label for x in attacks(claimed, list("axb"), "x")]
    assert Label.SAFE in labels
