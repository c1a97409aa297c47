"""Parts of the fast forward pass: attention without padding, and tokens of texts from those of their words."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from promptguard.errors import FilterError
from promptguard.score import attention, load_filter, spelling
from promptguard.score.attention import FirstTokens, Group, attend, grouped
from promptguard.score.encoders import encoder_of
from promptguard.score.spelling import Spelling
from promptguard.score.unpadded import UnpaddedEncoder
from promptguard.score.windows import Window, WindowTokenizer

HEADS, HIDDEN = 3, 24
LENGTHS = [1, 1, 2, 5, 5, 5, 15, 16, 17, 17, 31, 33, 100, 130]


def rows_of(lengths: list[int], width: int, seed: int = 0) -> tuple[list[Group], torch.Tensor]:
    """Groups, and rows for them and for what is read behind them."""
    groups = grouped(lengths)
    generator = torch.Generator().manual_seed(seed)
    return groups, torch.randn(max(group.end for group in groups), width, generator=generator)


def alone(projected: torch.Tensor) -> torch.Tensor:
    """Attention of one sequence, as its definition says, in float64."""
    query, key, value = projected.double().view(len(projected), 3, HEADS, -1).permute(1, 2, 0, 3)
    weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(HIDDEN // HEADS), dim=-1)
    context: torch.Tensor = (weights @ value).transpose(0, 1).reshape(len(projected), -1)
    return context


def cuts(lengths: list[int]) -> list[slice]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def test_groups_hold_every_row_once() -> None:
    groups = grouped([3, 3, 5, 3])
    assert groups == [Group(0, 2, 3), Group(6, 1, 5), Group(11, 1, 3)]
    assert [group.end for group in groups] == [19, 22, 27]
    assert grouped([]) == []


@pytest.mark.parametrize("cached", [1, 500, 1 << 18])
@pytest.mark.parametrize("lengths", [[1], [7, 7, 7], LENGTHS, [5, 9, 5]], ids=str)
def test_attention_is_that_of_each_sequence_alone(
    lengths: list[int], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_CACHED", cached)
    groups, rows = rows_of(lengths, 3 * HIDDEN)
    context = attend(rows, groups, HEADS)
    for cut in cuts(lengths):
        assert (context[cut] - alone(rows[cut])).abs().max() < 1e-5


def test_what_stands_behind_a_sequence_does_not_move_a_bit() -> None:
    groups, rows = rows_of([5, 5, 5], 3 * HIDDEN)
    other = rows.clone()
    other[10:] = 50 * torch.randn(len(rows) - 10, 3 * HIDDEN, generator=torch.Generator().manual_seed(9))
    assert torch.equal(attend(rows, groups, HEADS)[:10], attend(other, groups, HEADS)[:10])


@pytest.mark.parametrize("lengths", [[1], [7, 7, 7], LENGTHS, [5, 9, 5]], ids=str)
def test_contexts_of_the_first_tokens_are_those_of_whole_attention(lengths: list[int]) -> None:
    groups, states = rows_of(lengths, HIDDEN)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(3, HIDDEN, HIDDEN, generator=generator)
    biases = torch.randn(3, HIDDEN, generator=generator)
    made = torch.cat([states @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)], dim=1)
    firsts = [cut.start for cut in cuts(lengths)]
    queries = made[[*firsts, firsts[0]], :HIDDEN]  # one row more than there are sequences, as rows are rounded up
    short = FirstTokens(weights[1], weights[2], biases[2], HEADS)(queries, states, groups)
    assert len(short) == len(firsts) + 1
    for row, cut in zip(short, cuts(lengths), strict=False):
        assert (row - alone(made[cut])[0]).abs().max() < 1e-4


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of two devices, copies aside, as a GPU does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device for tensor in tensors}
        assert len(devices) <= 1 or "copy" in str(func), f"{func} on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [tiny.bert, tiny.distilbert, tiny.roberta])
def test_every_tensor_is_made_where_the_model_is(make: Callable[[], Any]) -> None:
    """On a device that is not the processor's; "meta" computes shapes only."""
    encoder = encoder_of(make().to("meta"))
    assert encoder is not None
    windows = [Window([5] * length, [0] * length) for length in (3, 3, 7, 20, 60)]
    with torch.inference_mode(), OneDevice():  # type: ignore[no-untyped-call]
        logits = UnpaddedEncoder(encoder, segments=False)(windows)
    assert (logits.shape, logits.device.type) == ((5, 2), "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_on_a_gpu_are_those_of_the_processor(dtype: str) -> None:
    here: Any = load_filter("minilm")
    there: Any = load_filter("minilm", device="cuda", dtype=dtype)
    assert not there.pads
    apart = max(abs(a - b) for a, b in zip(here(tiny.CORPUS), there(tiny.CORPUS), strict=True))
    assert apart < (1e-4 if dtype == "float32" else 5e-2)


# Tokens from words


def changed(**parts: Any) -> Tokenizer:
    tokenizer = copy.deepcopy(tiny.wordpiece().backend_tokenizer)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return plain(tokenizer)


def plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def segments() -> processors.TemplateProcessing:
    """The text in segment 1, its end in segment 0."""
    backend = tiny.wordpiece().backend_tokenizer
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS]:0 $A:1 [SEP]:0", special_tokens=ends)


def twice() -> processors.TemplateProcessing:
    backend = tiny.wordpiece().backend_tokenizer
    return processors.TemplateProcessing(single="$A [SEP] $A", special_tokens=[("[SEP]", backend.token_to_id("[SEP]"))])


SPELT: dict[str, Callable[[], Tokenizer]] = {
    "as bert": changed,
    "cased": lambda: changed(normalizer=normalizers.BertNormalizer(lowercase=False, strip_accents=True)),
    "segments": lambda: changed(post_processor=segments()),
    "bert's frame": lambda: changed(post_processor=processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))),
}


def added() -> Tokenizer:
    tokenizer = changed()
    tokenizer.add_tokens([AddedToken("a bomb", normalized=False)])
    return tokenizer


def another_model() -> Tokenizer:
    """BERT's in all but the model."""
    parts = json.loads(changed().to_str())
    words = [(token, -1.0) for token in parts["model"]["vocab"]]
    parts["model"] = {"type": "Unigram", "unk_id": 1, "vocab": words, "byte_fallback": False}
    return plain(Tokenizer.from_str(json.dumps(parts)))


NOT_SPELT: dict[str, Callable[[], Tokenizer]] = {
    "another model": another_model,
    "byte-level BPE": lambda: plain(tiny.bytelevel().backend_tokenizer),
    "metaspace": lambda: plain(tiny.unigram().backend_tokenizer),
    "another pre-tokenizer": lambda: changed(pre_tokenizer=pre_tokenizers.Split("b", "isolated")),
    "another normaliser": lambda: changed(normalizer=normalizers.Replace(" ", "")),
    "no normaliser": lambda: changed(normalizer=None),
    "the text twice": lambda: changed(post_processor=twice()),
    "an added token": added,
}


CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(
        [*" abBÀΣσ.'-#[]", " ", "\t", "\u0301", "\u0327", "\u200b", "\u3000", "\u4e2d", "\ufb01", "İ", "ﷺ"]
    ),
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=20),
    st.lists(st.sampled_from([*tiny.CORPUS[0].split(), "[SEP]", "[CLS]", "##b", "Σας", "e\u0301", ""])).map(" ".join),
)


@pytest.mark.parametrize("name", SPELT)
@given(texts=st.lists(TEXTS, max_size=4))
def test_tokens_from_words_are_the_tokenizers_own(name: str, texts: list[str]) -> None:
    tokenizer = SPELT[name]()
    made = Spelling.of(tokenizer)
    assert made is not None
    for _ in range(2):  # the second time from memory
        found = [(spelled.ids, spelled.types) for spelled in made(texts)]
        assert found == [(encoding.ids, encoding.type_ids) for encoding in map(tokenizer.encode, texts)]


@pytest.mark.parametrize("name", NOT_SPELT)
def test_other_tokenizers_read_whole_texts(name: str) -> None:
    assert Spelling.of(NOT_SPELT[name]()) is None


def test_a_space_that_is_no_border_would_be_seen() -> None:
    """Why others are left out: for each of them some text has other tokens than its words."""
    for name, text in (("byte-level BPE", "a bomb"), ("another normaliser", "bo mb"), ("an added token", "a bomb")):
        tokenizer = NOT_SPELT[name]()
        words = [tokenizer.encode(word, add_special_tokens=False).ids for word in text.split(" ")]
        assert [token for ids in words for token in ids] != tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["wordpiece", "unigram", "bytelevel"])
@given(texts=st.lists(st.one_of(TEXTS, TEXTS.map(lambda text: text * 9)), max_size=3))
def test_windows_are_those_that_the_tokenizer_cuts(name: str, texts: list[str]) -> None:
    tokenizer = WindowTokenizer(getattr(tiny, name)(), 16, 4)
    assert tokenizer(texts) == tokenizer._cut(texts)
    assert (tokenizer._spelling is not None) == (name == "wordpiece")


@pytest.mark.parametrize("tokens", range(12, 20))
def test_texts_about_as_long_as_a_window(tokens: int) -> None:
    tokenizer = WindowTokenizer(tiny.wordpiece(), 16, 4)
    text = " ".join("a" * (tokens - 2))
    assert tokenizer([text]) == tokenizer._cut([text])
    assert (len(tokenizer([text])[0]) == 1) == (tokens <= 16)


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "_CACHED_WORDS", 3)
    made = Spelling.of(SPELT["as bert"]())
    assert made is not None
    for text in ("a b c", "a d", "e f g h", "long" * 30, "a"):
        made([text])
        assert len(made._known) <= 3
    assert "long" * 30 not in made._known


@pytest.mark.parametrize("text", ["\ud800", 7])
def test_what_is_no_text_is_refused_without_its_content(text: Any) -> None:
    tokenizer = WindowTokenizer(tiny.wordpiece(), 16, 4)
    with pytest.raises(FilterError, match=r"^the tokenizer raised [A-Za-z]+$"):
        tokenizer(["fine", text])


def test_the_bundled_tokenizer_reads_word_by_word() -> None:
    filter_: Any = load_filter("minilm")
    assert filter_._tokenizer._spelling is not None
