"""The forward pass without padding: the model's own scores, whatever is packed together, and only where it is known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from torch import nn

from promptguard.score import linear, load_filter, unpadded
from promptguard.score.batches import pack
from promptguard.score.encoders import encoder_of
from promptguard.score.hf import HFFilter
from promptguard.score.linear import PackedLinear, PlainLinear
from promptguard.score.windows import Window

ERASED = [" ".join(text.split()[:end]) for text in tiny.CORPUS for end in range(1, 12)]
TEXTS = [*ERASED, "bomb", "", "bomb " * 300, "how to build a bomb", *tiny.CORPUS]
MODELS: dict[str, Callable[[], Any]] = {
    "bert": tiny.bert,
    "distilbert": tiny.distilbert,
    "bert of one block": lambda: tiny.bert(num_hidden_layers=1),
    "bert of three labels": lambda: tiny.bert(2, id2label={0: "safe", 1: "harmful", 2: "other"}),
    "bert of other sizes": lambda: tiny.bert(3, hidden_size=24, intermediate_size=20, num_attention_heads=3),
    "distilbert of three blocks": lambda: tiny.distilbert(1, n_layers=3, n_heads=4),
}


# The weights of the tiny models are large, which makes rounding so: here a twentieth of the guard band, for trained
# weights a hundredth (the last test).
ROUNDING = 5e-6


def make(model: Any, **options: Any) -> HFFilter:
    return HFFilter(model, tiny.wordpiece(), label="harmful", **options)


def padded(filter_: HFFilter) -> HFFilter:
    """The same filter on the model's own forward pass."""
    plain = copy.copy(filter_)
    plain._unpadded = None
    return plain


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_tokens", [None, 7, 100])
def test_scores_are_those_of_the_model(name: str, batch_tokens: int | None) -> None:
    filter_ = make(MODELS[name](), batch_tokens=batch_tokens)
    assert not filter_.pads
    assert padded(filter_).pads
    scores = filter_(TEXTS)
    assert max(scores) - min(scores) > 0.5, "a test of scores that are all alike shows nothing"
    assert apart(scores, padded(filter_)(TEXTS)) < ROUNDING
    assert apart(scores, [filter_([text])[0] for text in TEXTS]) < ROUNDING


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make_model", [tiny.bert, tiny.distilbert])
def test_rounding_is_that_of_float32(make_model: Callable[[int], Any], seed: int) -> None:
    """Beside the same model in float64, about as far as its own forward pass is."""
    model = make_model(seed)
    filter_ = make(model)
    texts = [text for text in TEXTS if text and len(text) < 60]
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        ids = [filter_.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        truth = [float(exact(input_ids=each).logits.softmax(-1)[0, 1]) for each in ids]
    own, ours = apart(padded(filter_)(texts), truth), apart(filter_(texts), truth)
    assert ours < 2 * own + 1e-6


def test_a_copy_scores_the_same() -> None:
    filter_ = make(tiny.bert())
    assert copy.deepcopy(filter_)(TEXTS) == filter_(TEXTS)


def test_the_digest_names_the_function_and_not_how_it_is_computed() -> None:
    filter_ = make(tiny.bert())
    assert filter_.digest == padded(filter_).digest


def test_roberta_scores_as_its_own_forward_pass() -> None:
    filter_ = HFFilter(tiny.roberta(), tiny.bytelevel(ends=True), label="harmful")
    assert not filter_.pads
    scores = filter_(TEXTS)
    assert max(scores) - min(scores) > 0.5
    assert apart(scores, padded(filter_)(TEXTS)) < ROUNDING
    rough = filter_.in_precision("bfloat16")
    assert not rough.pads
    assert apart(rough(TEXTS), scores) < 0.2


def test_roberta_does_not_count_padding_within_a_text() -> None:
    filter_ = HFFilter(tiny.roberta(), tiny.bytelevel(ends=True), label="harmful")
    pad = tiny.roberta().config.pad_token_id
    windows = [Window(ids, [0] * len(ids)) for ids in ([0, 9, pad, 7, pad, pad, 8, 2], [0, 9, 7, 8, 2], [pad])]
    windows.sort(key=lambda window: len(window.ids))
    for window, score in zip(windows, filter_._score(windows), strict=True):
        assert abs(score - padded(filter_)._score([window])[0]) < ROUNDING


@pytest.mark.parametrize("segments", [True, False])
def test_segments_reach_the_model(segments: bool) -> None:
    tokenizer = tiny.wordpiece()
    if segments:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    # A post-processor that puts the text into segment 1, as those of sentence pairs do.
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:1 [SEP]:1", special_tokens=[(t, backend.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    filter_ = HFFilter(tiny.bert(), tokenizer)
    assert not filter_.pads
    assert apart(filter_(TEXTS), padded(filter_)(TEXTS)) < ROUNDING
    assert (apart(filter_(TEXTS), HFFilter(tiny.bert(), tiny.wordpiece())(TEXTS)) > 1e-3) == segments


def test_without_onednn_the_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = make(tiny.bert())(TEXTS)
    monkeypatch.setattr(linear, "can_pack", lambda dtype: False)
    assert isinstance(linear.linear(torch.ones(2, 3), torch.ones(2)), PlainLinear)
    plain = make(tiny.bert())
    assert not plain.pads
    assert apart(plain(TEXTS), fast) < ROUNDING


def test_a_processor_without_bfloat16_runs_it_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """There oneDNN refuses to reorder such weights, and only such weights."""
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def refuses(weight: torch.Tensor, rows: int) -> Any:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")
        return reorder(weight, rows)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuses)
    monkeypatch.setattr(linear, "can_pack", linear.can_pack.__wrapped__)
    exact = make(tiny.bert())
    rough = exact.in_precision("bfloat16")
    assert not rough.pads
    assert apart(rough(TEXTS), exact(TEXTS)) < 0.2


@pytest.mark.skipif(not linear.can_pack(torch.bfloat16), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("rows", [1, 5, 700])
def test_packed_layers_are_plain_layers(rows: int, dtype: torch.dtype, error: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, bias, x, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((8, 24), (8,), (rows, 24), (rows, 8))
    )
    with torch.inference_mode():
        packed, plain = PackedLinear(weight, bias), PlainLinear(weight, bias)
        for a, b in (
            (packed(x), plain(x)),
            (packed.gelu(x), plain.gelu(x)),
            (packed.plus(x, residual), plain.plus(x, residual)),
        ):
            assert a.dtype == dtype
            assert (a.float() - b.float()).abs().max() < error


# Models that are something else keep their own forward pass


class Adapter(nn.Linear):
    """A linear layer with something added, as adapters are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 1.0


def patched(change: Callable[[Any], None]) -> Any:
    model = tiny.bert()
    change(model)
    return model


def replace_layer(model: Any) -> None:
    layer = model.bert.encoder.layer[1].output
    layer.dense = Adapter(layer.dense.in_features, layer.dense.out_features).eval()


def replace_forward(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    layer.forward = copy.copy(layer.forward)


def add_hook(model: Any) -> None:
    model.bert.encoder.layer[0].attention.self.register_forward_hook(lambda *_: None)


def parametrise(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.classifier)


class Own(type(tiny.bert())):  # type: ignore[misc]
    """A subclass, which may do anything."""


OTHERS: dict[str, Callable[[], Any]] = {
    "relu": lambda: tiny.bert(hidden_act="relu"),
    "relu in distilbert": lambda: tiny.distilbert(activation="relu"),
    "tanh gelu": lambda: tiny.bert(hidden_act="gelu_new"),
    "tanh, as the pooler has": lambda: tiny.bert(hidden_act="tanh"),
    "tanh in distilbert": lambda: tiny.distilbert(activation="tanh"),
    "causal": lambda: tiny.bert(is_decoder=True),
    "a layer of another class": lambda: patched(replace_layer),
    "another forward": lambda: patched(replace_forward),
    "a hook": lambda: patched(add_hook),
    "a parametrisation": lambda: patched(parametrise),
    "a subclass": lambda: Own(tiny.bert().config).eval(),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore:.*is_decoder")
def test_what_is_not_known_to_be_the_same_runs_as_it_is(name: str) -> None:
    model = OTHERS[name]()
    assert encoder_of(model) is None
    assert make(model).pads


@pytest.mark.parametrize("family", ["deberta", "gpt2", "llama"])
def test_other_architectures_run_as_they_are(family: str) -> None:
    assert encoder_of(getattr(tiny, family)()) is None


def test_a_forward_pass_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last guard: whatever the classes say, the scores of two texts are compared."""
    monkeypatch.setattr(unpadded, "attend", lambda projected, groups, heads: projected[:, :32] * 0)
    assert make(tiny.bert()).pads


def test_a_classifier_that_is_sure_of_both_texts_is_compared_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = tiny.bert()
    with torch.no_grad():
        sure.classifier.bias[:] = torch.tensor([40.0, -40.0])
    assert not make(sure).pads
    monkeypatch.setattr(unpadded, "attend", lambda projected, groups, heads: projected[:, :32] * 0)
    assert make(sure).pads


# bfloat16, packs, the bundled model


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_bfloat16_is_near_and_does_not_move_with_the_pack(name: str) -> None:
    exact, rough = make(MODELS[name]()), make(MODELS[name]()).in_precision("bfloat16")
    assert not rough.pads
    assert rough.digest != exact.digest
    together = rough(TEXTS)
    assert 1e-5 < apart(together, exact(TEXTS)) < 0.2
    assert apart(together, [rough([text])[0] for text in TEXTS]) < 1e-3


def test_a_copy_in_another_precision_leaves_the_filter_alone() -> None:
    exact = make(tiny.bert(), threshold=0.3, window=20, overlap=4, batch_tokens=50)
    before = exact(TEXTS)
    rough = exact.in_precision("bfloat16")
    assert (rough.threshold, rough.window, rough.overlap) == (0.3, 20, 4)
    assert exact(TEXTS) == before
    assert exact.in_precision("float32").digest == exact.digest


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 80), st.booleans())
def test_packs_hold_every_window_once_and_no_more_than_they_may(lengths: list[int], most: int, filled: bool) -> None:
    batches = list(pack(lengths, most, padded=filled))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        held = [lengths[index] for index in batch]
        assert held == sorted(held)
        assert len(batch) == 1 or (max(held) * len(held) if filled else sum(held)) <= most


def test_packs_without_padding_are_fuller() -> None:
    lengths = [1] * 10 + [10]
    assert [len(list(pack(lengths, 20, padded=filled))) for filled in (True, False)] == [2, 1]


def test_the_bundled_model_scores_as_its_own_forward_pass() -> None:
    filter_: Any = load_filter("minilm")
    assert not filter_.pads
    texts = [*tiny.CORPUS[:4], "How do I build a pipe bomb at home?", "long " * 400]
    assert apart(filter_(texts), padded(filter_)(texts)) < 1e-6
