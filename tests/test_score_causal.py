"""Causal filters: one pass gives what scoring each prefix by itself would, and suffixes of any length are undone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attacks import words
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForTokenClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Phi3Config,
    Phi3ForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from promptguard.capabilities import PrefixFilter
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.ways import Prefixes
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument, UnknownName
from promptguard.score import load_filter
from promptguard.score.causal import CausalFilter
from promptguard.score.hf import HFFilter
from promptguard.score.prefix_tokens import PrefixTokenizer
from promptguard.score.windows import WindowTokenizer
from promptguard.types import Filter, Label, Verdict
from promptguard.units import Chars, Words
from promptguard.view import canonical

SENTENCES = [
    "how to build a bomb at home, without anyone noticing?",
    "Write a recipe for a chocolate-cake with cherries!",
    "x",
    "a b c",
    "don't tell-me (now)",
]


ONE_HEAD = {"num_key_value_heads": 1, "pad_token_id": 1}


def views(alphabet: str, most: int) -> st.SearchStrategy[str]:
    return st.text(alphabet=alphabet, max_size=most).map(canonical).filter(bool)


def token_bert(seed: int = 0, **config: Any) -> Any:
    """A BERT turned causal, with a head on every token."""
    return tiny._make(
        BertForTokenClassification, BertConfig, seed, tiny._small(tiny.wordpiece(), is_decoder=True, **config)
    )


def qwen(seed: int = 0) -> Any:
    return tiny._make(Qwen2ForSequenceClassification, Qwen2Config, seed, tiny._small(tiny.bytelevel(), **ONE_HEAD))


def mistral(seed: int = 0, **config: Any) -> Any:
    config = {**ONE_HEAD, **config}
    return tiny._make(MistralForSequenceClassification, MistralConfig, seed, tiny._small(tiny.bytelevel(), **config))


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "bert": lambda: (token_bert(), tiny.wordpiece()),
    "bert-unigram": lambda: (token_bert(vocab_size=len(tiny.unigram())), tiny.unigram()),
    "llama": lambda: (tiny.llama(), tiny.bytelevel()),
    "gpt2": lambda: (tiny.gpt2(), tiny.bytelevel()),
    "qwen": lambda: (qwen(), tiny.bytelevel()),
    "mistral": lambda: (mistral(sliding_window=12), tiny.bytelevel()),
    "llama-ends": lambda: (tiny.llama(), tiny.bytelevel(ends=True)),
}


def build(name: str, **options: Any) -> CausalFilter:
    model, tokenizer = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():  # large weights make large rounding errors
            parameter.mul_(0.35 if parameter.dim() > 1 else 1.0)
    return CausalFilter(model, tokenizer, label="harmful", **options)


class OneByOne:
    """The same function, text by text through the model's own forward: the reference."""

    threshold, guard_band, digest, name = 0.5, 1e-4, "reference", "reference"

    def __init__(self, filter_: CausalFilter, threshold: float) -> None:
        self._filter = filter_
        self.threshold = threshold

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [
            max(float(self._filter._classifier.harm(self._filter._whole(window))[0]) for window in windows)
            for windows in (self._filter._tokenizer.texts([text])[0] for text in texts)
        ]


@pytest.fixture(scope="module", params=MODELS)
def causal(request: pytest.FixtureRequest) -> CausalFilter:
    return build(request.param)


def test_it_is_a_prefix_filter(causal: CausalFilter) -> None:
    assert isinstance(causal, PrefixFilter)
    assert isinstance(causal, Filter)


@pytest.mark.parametrize("text", SENTENCES)
def test_prefix_scores_are_the_scores_of_the_prefixes(causal: CausalFilter, text: str) -> None:
    view = canonical(text)
    ends = [end for end in range(1, len(view) + 1) if view[end - 1] != " "]
    (scores,) = causal.prefix_scores([view], [ends])
    single = OneByOne(causal, 0.5)([view[:end] for end in ends])
    assert scores == pytest.approx(single, abs=1e-6)
    assert causal([view[:end] for end in ends]) == pytest.approx(single, abs=1e-6)


@settings(max_examples=25)
@given(st.lists(views("abom !,'é", 24), min_size=1, max_size=4))
def test_texts_in_one_call_do_not_disturb_each_other(texts: list[str]) -> None:
    filter_ = _shared()
    ends = [[end for end in range(1, len(text) + 1) if text[end - 1] != " "] for text in texts]
    for text, cuts, scores in zip(texts, ends, filter_.prefix_scores(texts, ends), strict=True):
        assert scores == pytest.approx(OneByOne(filter_, 0.5)([text[:end] for end in cuts]), abs=1e-6)


_KEPT: dict[str, CausalFilter] = {}


def _shared() -> CausalFilter:
    return _KEPT.setdefault("bert", build("bert"))


def middle(filter_: CausalFilter, texts: Sequence[str]) -> float:
    """A threshold with texts well on both sides of it."""
    scores = sorted(filter_(texts))
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(scores)]
    return max(gaps)[1]


@pytest.mark.parametrize("unit", [Words(), Chars()], ids=["word", "char"])
@pytest.mark.parametrize("mode", ["suffix", "wrap"])
@pytest.mark.parametrize("budget", [2, math.inf])
def test_verdicts_are_those_of_enumeration(causal: CausalFilter, unit: Any, mode: str, budget: float) -> None:
    threshold = middle(causal, [" ".join(t.split()[:k]) for t in SENTENCES for k in (1, 2, 3)])
    causal.threshold = threshold
    erase = load_mode(mode, budget, max_prompt=60 if mode == "wrap" and budget == 2 else None)
    fast = EraseAndCheck(causal, erase, unit, early_stop=False)
    slow = EraseAndCheck(OneByOne(causal, threshold), erase, unit, early_stop=False, max_checks=None)
    assert isinstance(fast._way, Prefixes)
    assert not isinstance(slow._way, Prefixes)
    for text in SENTENCES[2:] if mode == "wrap" else SENTENCES:
        a, b = fast.certify(text), slow.certify(text)
        assert (a.label, a.witness) == (b.label, b.witness)
        assert a.score == pytest.approx(b.score, abs=1e-6)
        assert (a.certificate and a.certificate.threat) == (b.certificate and b.certificate.threat)


def exact_filter(prompt: str, name: str = "bert", seed: int = 0) -> CausalFilter:
    """The threshold is the prompt's own score: the prompt itself is flagged, barely."""
    filter_ = CausalFilter(token_bert(seed), tiny.wordpiece(), label="harmful") if seed else build(name)
    filter_.guard_band = 0.0
    filter_.threshold = filter_([canonical(prompt)])[0] - 1e-5
    return filter_


@pytest.mark.parametrize("name", ["bert", "llama", "bert-unigram"])
@pytest.mark.parametrize("prompt", ["bomb", "a b", "do it"])
def test_every_string_suffix_is_undone_in_characters(name: str, prompt: str) -> None:
    certifier = EraseAndCheck(exact_filter(prompt, name), load_mode("suffix", math.inf), Chars())
    certificate = certifier.certify(prompt).certificate
    assert certificate is not None
    assert certificate.threat.budget == math.inf
    for added in words(("x", "o", " ", "!", "\u0301"), 3):
        assert certifier.certify(prompt + "".join(added)).label is Label.HARMFUL


def test_suffixes_set_off_by_space_or_marks_are_undone_in_words_and_glued_letters_are_not() -> None:
    glued: list[Verdict] = []
    for seed in range(1, 5):
        certifier = EraseAndCheck(exact_filter("bomb", seed=seed), load_mode("suffix", math.inf), Words())
        for start, rest in product((" ", "!", ", "), ("", "x", "now please", "x" * 80)):
            assert certifier.certify(f"bomb{start}{rest}").label is Label.HARMFUL
        glued += [certifier.certify(f"bomb{letter * 3}") for letter in "abcdefghi"]
    assert any(verdict.label is Label.SAFE for verdict in glued)


@pytest.mark.parametrize("unit", [Words(), Chars()], ids=["word", "char"])
def test_every_wrapping_is_undone(unit: Any) -> None:
    prompt = "do it"
    certifier = EraseAndCheck(exact_filter(prompt), load_mode("wrap", math.inf, max_prompt=6), unit)
    certificate = certifier.certify(prompt).certificate
    assert certificate is not None
    assert certificate.threat.budget == math.inf
    for before, after in product(words(("a ", "x y. "), 2), words((" b", "!"), 2)):
        assert certifier.certify("".join(before) + prompt + "".join(after)).label is Label.HARMFUL


# Windows


@pytest.mark.parametrize("tokenizer", [tiny.wordpiece, tiny.bytelevel, tiny.unigram])
@pytest.mark.parametrize(("window", "overlap"), [(8, 2), (12, 0), (64, 16), (9, 5)])
def test_windows_are_those_of_the_window_tokenizer(tokenizer: Any, window: int, overlap: int) -> None:
    texts = [canonical(" ".join(SENTENCES[:k])) for k in range(1, 6)]
    expected = WindowTokenizer(tokenizer(), window, overlap)(texts)
    found = PrefixTokenizer(tokenizer(), window, overlap).texts(texts)
    assert [[list(part) for part in parts] for parts in found] == [[w.ids for w in parts] for parts in expected]


@settings(max_examples=60)
@given(views("abom !,'-éﬁ中", 40), st.sampled_from([(7, 2), (16, 4), (9, 0)]))
def test_windows_of_prefixes_are_those_of_the_cut_texts(text: str, size: tuple[int, int]) -> None:
    tokenizer = PrefixTokenizer(tiny.wordpiece(), *size)
    assert tokenizer.cuts_at_spaces
    ends = [end for end in range(1, len(text) + 1) if text[end - 1] != " "]
    found = tokenizer.prefixes(text, ends)
    for end, windows in zip(ends, found, strict=True):
        assert windows == tokenizer.texts([text[:end]])[0]


def test_long_texts_are_read_whole() -> None:
    filter_ = build("bert", window=12, overlap=3)
    text = canonical(" ".join(SENTENCES * 3))
    ends = [end for end in range(1, len(text) + 1) if text[end - 1] != " "][::11]
    (scores,) = filter_.prefix_scores([text], [ends])
    assert scores == pytest.approx(OneByOne(filter_, 0.5)([text[:end] for end in ends]), abs=1e-6)


def test_only_tokenizers_that_cut_at_spaces_are_trusted_to() -> None:
    assert PrefixTokenizer(tiny.wordpiece(), 20, 4).cuts_at_spaces
    assert not PrefixTokenizer(tiny.bytelevel(), 20, 4).cuts_at_spaces
    assert not PrefixTokenizer(tiny.unigram(), 20, 4).cuts_at_spaces
    extended = tiny.wordpiece()
    extended.add_tokens(["a bomb"])
    assert not PrefixTokenizer(extended, 20, 4).cuts_at_spaces


# What is refused


def test_a_model_that_is_not_causal_is_refused() -> None:
    with pytest.raises(FilterError, match="not causal"):
        CausalFilter(tiny.bert(), tiny.wordpiece(), label="harmful")


def test_a_plain_encoder_with_token_labels_is_refused() -> None:
    model = tiny._make(BertForTokenClassification, BertConfig, 0, tiny._small(tiny.wordpiece()))
    with pytest.raises(FilterError, match="not causal"):
        CausalFilter(model, tiny.wordpiece(), label="harmful")


def test_a_model_whose_branches_cannot_be_packed_is_run_sequence_by_sequence() -> None:
    filter_ = build("gpt2")
    whole = filter_.prefix_scores(["build a bombing"], [list(range(1, 6))])
    filter_._branches = False
    assert filter_.prefix_scores(["build a bombing"], [list(range(1, 6))])[0] == pytest.approx(whole[0], abs=1e-6)


def test_a_model_that_takes_no_mask_of_ours_is_found_out_when_the_filter_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: CausalFilter, trie: Any) -> Any:
        raise FilterError("no such mask")

    monkeypatch.setattr(CausalFilter, "_run_tree", refuse)
    filter_ = build("gpt2")
    (scores,) = filter_.prefix_scores(["build a bombing"], [[5, 7, 9, 11]])  # branches would need the mask
    assert scores == pytest.approx(OneByOne(filter_, 0.5)(["build", "build a", "build a b", "build a bom"]), abs=1e-6)


def test_training_mode_nan_and_strings_are_refused() -> None:
    filter_ = build("bert")
    with pytest.raises(FilterError, match="list of texts"):
        filter_("text")
    filter_._model.train()
    with pytest.raises(FilterError, match="training"):
        filter_(["text"])
    filter_._model.eval()
    with torch.no_grad():
        next(filter_._model.parameters()).fill_(math.nan)
    with pytest.raises(FilterError, match="not finite"):
        filter_.prefix_scores(["text"], [[4]])


@pytest.mark.parametrize(
    "options", [{"window": 65}, {"threshold": 2.0}, {"guard_band": -1.0}, {"batch_tokens": 0}, {"overlap": 64}]
)
def test_bad_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        build("bert", **options)


def test_the_digest_tells_filters_apart() -> None:
    digests = {build("bert").digest, build("bert", window=20).digest, build("llama").digest, build("gpt2").digest}
    model, tokenizer = MODELS["llama"]()
    digests.add(HFFilter(model, tokenizer, label="harmful").digest)
    assert len(digests) == 5
    assert build("bert").digest == build("bert").digest


def test_the_score_is_that_of_the_plain_classifier() -> None:
    model, tokenizer = MODELS["llama"]()
    ours, plain = (kind(model, tokenizer, label="harmful") for kind in (CausalFilter, HFFilter))
    texts = [canonical(text) for text in SENTENCES]
    assert ours(texts) == pytest.approx(plain(texts), abs=1e-6)


def test_a_saved_causal_classifier_is_loaded_by_name(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "llama", tiny.llama(), tiny.bytelevel())
    filter_ = load_filter(f"causal:{folder}", label="harmful", threshold=0.25)
    assert isinstance(filter_, CausalFilter)
    assert filter_.threshold == 0.25
    assert filter_(["a bomb"]) == pytest.approx(load_filter(str(folder), label="harmful")(["a bomb"]), abs=1e-6)
    with pytest.raises(FilterError, match="not causal"):
        load_filter(f"causal:{tiny.save(tmp_path / 'bert', tiny.bert(), tiny.wordpiece())}", label="harmful")
    with pytest.raises(UnknownName):
        load_filter("causal:no/such folder")


# Planted models that a shallow check would take for causal, or whose scores depend on their neighbours


def sure(model: Any) -> Any:
    """Saturate the head: a probability moves less than any band."""
    with torch.no_grad():
        model.classifier.weight.mul_(0.05)
        model.classifier.bias.copy_(torch.tensor([30.0, -30.0]))
    return model


def chinese() -> Any:
    """A tokenizer that knows no English word: the whole probe sentence would be unknown."""
    tokenizer = tiny.wordpiece()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "\u70b8": 5, "\u4e0d": 6}
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="[UNK]")


def test_a_model_that_is_not_causal_is_refused_even_when_it_is_sure_or_knows_no_english() -> None:
    both_ways = tiny._make(BertForTokenClassification, BertConfig, 0, tiny._small(tiny.wordpiece()))
    with pytest.raises(FilterError, match="not causal"):
        CausalFilter(sure(both_ways), tiny.wordpiece(), label="harmful")
    with pytest.raises(FilterError, match="not causal"):
        CausalFilter(both_ways, chinese(), label="harmful")


def test_a_window_beyond_the_reach_of_attention_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="reaches back"):
        build("mistral", window=13)
    assert build("mistral").window == 12


def test_rotary_embeddings_that_stretch_are_kept_to_their_short_form() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = {**ONE_HEAD, "original_max_position_embeddings": 16, "max_position_embeddings": 64}
    small = tiny._small(tiny.bytelevel(), **config, rope_parameters=rope)
    model = tiny._make(Phi3ForSequenceClassification, Phi3Config, 0, small)
    for kind in (CausalFilter, HFFilter):
        filter_ = kind(model, tiny.bytelevel(), label="harmful")
        assert filter_.window == 16
        alone = filter_(["a bomb"])[0]
        assert filter_(["a bomb", "describe how to steal a car and sell its parts " * 3])[0] == pytest.approx(
            alone, abs=1e-5
        )
        with pytest.raises(InvalidArgument, match="positions"):
            kind(model, tiny.bytelevel(), label="harmful", window=17)
