"""Token gradients are the derivatives that they claim to be, at the tokens that they claim."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import BertConfig, BertForTokenClassification

from promptguard.attack.continuation import ContinuationObjective
from promptguard.capabilities import TokenAccess, TokenGradientFilter
from promptguard.errors import FilterError, InvalidArgument
from promptguard.score.causal import CausalFilter
from promptguard.score.hf import HFFilter
from promptguard.score.keyword import KeywordFilter

TEXT = "how to build a bomb at home without anyone"
SPAN = (TEXT.index("at"), TEXT.index("without"))


def bert_causal() -> Any:
    """An encoder turned causal, with a head on every token, as the bundled causal filter."""
    like = tiny.bert().config.to_dict()
    config = BertConfig(**{**like, "is_decoder": True, "id2label": tiny.HARMFUL})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = BertForTokenClassification(config)
        return model.eval()


def filters() -> dict[str, Any]:
    return {
        "bert": HFFilter(tiny.bert(), tiny.wordpiece()),
        "roberta": HFFilter(tiny.roberta(), tiny.bytelevel(ends=True), label="harmful"),
        "deberta": HFFilter(tiny.deberta(), tiny.unigram(), label="harmful"),
        "gpt2": HFFilter(tiny.gpt2(), tiny.bytelevel(), label="harmful"),
        "causal-llama": CausalFilter(tiny.llama(), tiny.bytelevel(), label="harmful"),
        "causal-bert": CausalFilter(bert_causal(), tiny.wordpiece(), label="harmful"),
    }


@pytest.fixture(scope="module", params=["bert", "roberta", "deberta", "gpt2", "causal-llama", "causal-bert"])
def subject(request: pytest.FixtureRequest) -> Any:
    return filters()[request.param]


def test_the_score_is_the_filters_own(subject: Any) -> None:
    assert isinstance(subject, TokenGradientFilter)
    assert isinstance(subject.tokens, TokenAccess)
    assert subject.tokens.gradient(TEXT, *SPAN).score == pytest.approx(subject([TEXT])[0], abs=1e-6)


def test_the_gradient_is_the_derivative_by_the_one_hot_tokens(subject: Any) -> None:
    """Against autograd through an explicit one-hot matrix, and against finite differences of the embeddings."""
    found = subject.tokens.gradient(TEXT, *SPAN)
    (encoding,) = subject.tokens.encode([TEXT])
    places = [at for at in range(len(encoding.ids)) if _starts_within(encoding.offsets[at], SPAN)]
    assert [encoding.ids[at] for at in places] == list(found.ids)
    matrix = subject._model.get_input_embeddings().weight.detach()
    one_hot = torch.nn.functional.one_hot(torch.tensor(encoding.ids), len(matrix)).float().requires_grad_()

    def score(hot: torch.Tensor) -> torch.Tensor:
        return score_of(subject, encoding, (hot @ matrix)[None])

    (expected,) = torch.autograd.grad(score(one_hot), one_hot)
    assert torch.allclose(found.by_token, expected[places], atol=1e-6)
    assert found.by_token.abs().max() > 1e-5

    draw = torch.Generator().manual_seed(0)
    step = torch.zeros_like(one_hot)
    step[places] = torch.randn(len(places), len(matrix), generator=draw) * 1e-4
    with torch.no_grad():
        rise = float(score(one_hot + step) - score(one_hot - step)) / 2
    assert rise == pytest.approx(float((found.by_token * step[places]).sum()), rel=0.05, abs=2e-6)


def score_of(subject: Any, encoding: Any, embedded: torch.Tensor) -> torch.Tensor:
    logits = subject._model(inputs_embeds=embedded).logits
    logits = logits[:, -1] if logits.ndim == 3 else logits
    return torch.softmax(logits.double(), dim=1)[0, 1]


def _starts_within(offsets: tuple[int, int], span: tuple[int, int]) -> bool:
    start, end = offsets
    start += TEXT[start:end].startswith(" ")
    return start < end and span[0] <= start < span[1]


def test_gradients_leave_no_trace_in_the_model(subject: Any) -> None:
    before = subject([TEXT])
    subject.tokens.gradient(TEXT, *SPAN)
    assert all(parameter.grad is None for parameter in subject._model.parameters())
    assert subject([TEXT]) == before


def test_ids_and_text_agree(subject: Any) -> None:
    tokens = subject.tokens
    (ids,) = tokens.ids([TEXT], [(0, len(TEXT))])
    assert tokens.ids([TEXT], [(0, 3)])[0] + tokens.ids([TEXT], [(3, len(TEXT))])[0] == ids
    for word, at in list(tokens.words.items())[:40]:
        text = f"how to {word}"
        assert tokens.ids([text], [(7, len(text))]) == [(at,)]
        assert tokens.text([at]) == word
    assert tokens.vectors().shape == (subject._model.get_input_embeddings().num_embeddings, 32)


def test_special_tokens_cannot_be_written(subject: Any) -> None:
    controls = subject.tokenizer.backend_tokenizer.get_added_tokens_decoder()
    assert not set(controls) & set(subject.tokens.usable)
    texts = [subject.tokens.text([at]) for at in subject.tokens.usable]
    assert len(texts) > 40
    assert all(text and text == subject.tokens.view(text) for text in texts)


def test_a_text_over_the_window_is_refused() -> None:
    long = " ".join(["bomb"] * 80)
    for each in (filters()["bert"], filters()["causal-llama"]):
        with pytest.raises(InvalidArgument, match="window"):
            each.tokens.gradient(long, 0, 4)


def test_a_model_in_training_and_one_without_embeddings_are_refused() -> None:
    training = filters()["bert"]
    training._model.train()
    with pytest.raises(FilterError, match="training"):
        training.tokens.gradient(TEXT, *SPAN)
    bare = HFFilter(tiny.phrase_model("bomb"), tiny.wordpiece(), label="harmful")
    with pytest.raises(FilterError):
        bare.tokens.gradient(TEXT, *SPAN)


def test_a_filter_without_a_model_has_no_tokens() -> None:
    assert not isinstance(KeywordFilter(["bomb"]), TokenGradientFilter)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    broken = filters()["bert"]
    with torch.no_grad():
        broken._model.get_input_embeddings().weight[10] = float("nan")
    with pytest.raises(FilterError, match="finite"):
        broken.tokens.gradient(TEXT, *SPAN)


# A language model's continuation


def test_the_loss_of_a_continuation_is_its_mean_negative_log_likelihood() -> None:
    model, tokenizer = tiny.causal("llama"), tiny.chat()
    objective = ContinuationObjective(model, tokenizer, "cake recipe", before="[INST] ", after=" [/INST]")
    (outcome,) = objective([TEXT])
    ids = tokenizer(f"[INST] {TEXT} [/INST]", add_special_tokens=False)["input_ids"]
    target = tokenizer("cake recipe", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids + target])).logits[0].double().log_softmax(dim=-1)
    expected = [-float(logits[len(ids) - 1 + at, token]) for at, token in enumerate(target)]
    assert outcome.score == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert not outcome.broken
    # The same in a batch of other lengths, and as the start of a gradient.
    assert objective(["a", TEXT, "a b c"])[1].score == pytest.approx(outcome.score, abs=1e-5)
    assert objective.tokens.gradient(TEXT, *SPAN).score == pytest.approx(outcome.score, abs=1e-5)


def test_the_gradient_of_a_continuation_is_right_within_its_template() -> None:
    model = tiny.causal("llama")
    objective = ContinuationObjective(model, tiny.chat(), "cake", before="<|im_start|>", after="<|im_end|>")
    found = objective.tokens.gradient(TEXT, *SPAN)
    (ids,) = objective.tokens.ids([TEXT], [SPAN])
    assert ids == found.ids
    matrix = model.get_input_embeddings().weight.detach()
    (encoding,) = objective.tokens.encode([TEXT])
    first = next(at for at in range(len(encoding.ids)) if tuple(encoding.ids[at : at + len(ids)]) == ids)
    embedded = matrix[encoding.ids][None].clone()
    slope = []
    for place in range(first, first + len(ids)):
        nudged = [embedded.clone(), embedded.clone()]
        for sign, each in zip((1, -1), nudged, strict=True):
            each[0, place] += sign * 1e-2 * matrix[7]
        with torch.no_grad():
            up, down = (float(objective._loss(encoding, each)) for each in nudged)
        slope.append((up - down) / 2e-2)
    assert found.by_token[:, 7].tolist() == pytest.approx(slope, rel=0.05, abs=1e-3)


def test_a_prompt_that_leaves_no_room_is_refused_and_a_target_needs_tokens() -> None:
    objective = ContinuationObjective(tiny.causal("llama"), tiny.chat(), "cake")
    assert objective(["bomb " * 2000])[0].refused
    with pytest.raises(InvalidArgument):
        ContinuationObjective(tiny.causal("llama"), tiny.chat(), "")
