"""Language models as judges: read together as alone, asked as the model card says, and never by the prompt itself."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from promptguard.capabilities import PrefixFilter
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument, LabelError, UnknownName, WeightsError
from promptguard.score import judges, load_filter
from promptguard.score.chat import ChatTokenizer
from promptguard.score.judge import JudgeFilter
from promptguard.score.judges import JUDGES, SYSTEM, JudgeFamily, Template
from promptguard.score.packed import SequenceReader
from promptguard.units import Words

TEMPLATES = {
    "chatml": (tiny.CHATML, False),
    "turns": (tiny.TURNS, False),
    "inst": (tiny.INST, True),
}
SHORT = JudgeFamily(
    name="short",
    labels=("Yes", "No"),
    harmful=frozenset({"Yes"}),
    source="these tests",
    system="is it harmful",
)
# A window of 16 tokens is passed many times over by the system prompt alone.
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 16},
    "mixtral": {"sliding_window": 16},
    "phi3": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16},
    "gemma3": {"sliding_window": 16},
    "qwen2": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
    "llama4": {"attention_chunk_size": 16},
}
ADDED = " and then some more words that were put behind it"
TEXTS = [text for sentence in tiny.CORPUS for text in (sentence, sentence + ADDED, sentence[: len(sentence) // 2])]
TEXTS += ["", "a", "日本 🙂 ??", "how <|im_end|> to <think> stop", tiny.CORPUS[0]]


def make(kind: str = "llama", template: str = "chatml", family: Any = "zero-shot", **options: Any) -> JudgeFilter:
    config = options.pop("config", {})
    text, metaspace = TEMPLATES[template]
    tokenizer = tiny.chat(text, metaspace=metaspace)
    return JudgeFilter(tiny.causal(kind, tokenizer=tokenizer, **config), tokenizer, family=family, **options)


def rendered(tokenizer: Any, text: str, template: str) -> list[int]:
    """What transformers makes of a conversation."""
    if template == "turns":  # it takes no system message
        messages = [{"role": "user", "content": f"{SYSTEM}\n\nPrompt: {text}"}]
    else:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    string = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(string, add_special_tokens=False)["input_ids"]
    return ids


def counted(judge: JudgeFilter) -> list[int]:
    """A list that grows by the number of token positions of each forward pass."""
    positions: list[int] = []
    embedding = judge._model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: positions.append(inputs[0].numel()))
    return positions


# Together is alone


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_read_together_is_read_alone(kind: str, template: str) -> None:
    together, alone = make(kind, template), make(kind, template, packed=False)
    assert (together.packed, alone.packed) == (True, False)
    assert together(TEXTS) == pytest.approx(alone(TEXTS), abs=1e-5)
    assert together.digest == alone.digest
    assert isinstance(together, PrefixFilter)
    assert together([]) == []


@pytest.mark.parametrize("kind", SLIDING)
def test_together_is_alone_past_the_attention_window(kind: str) -> None:
    together, alone = make(kind, config=SLIDING[kind]), make(kind, config=SLIDING[kind], packed=False)
    assert together.packed
    assert together(TEXTS) == pytest.approx(alone(TEXTS), abs=1e-5)
    wide = make(kind, config={**SLIDING[kind], next(iter(SLIDING[kind])): 900})
    assert max(abs(a - b) for a, b in zip(wide(TEXTS), alone(TEXTS), strict=True)) > 1e-3, "the window must matter"


@pytest.mark.parametrize("window", [1, 5, 12])
def test_an_attention_window_shorter_than_a_branch(window: int) -> None:
    options: dict[str, Any] = {"family": SHORT, "config": {"sliding_window": window}}
    assert make("mistral", **options)(TEXTS) == pytest.approx(make("mistral", packed=False, **options)(TEXTS), abs=1e-5)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_score_is_that_of_the_plain_model(template: str) -> None:
    judge = make(template=template)
    tokenizer = judge.tokenizer
    verdicts = tokenizer.convert_tokens_to_ids(["H", "N"])
    for text in tiny.CORPUS:
        ids = rendered(tokenizer, text, template)
        with torch.inference_mode():
            logits = judge._model(torch.tensor([ids])).logits[0, -1, verdicts].double()
        assert judge([text])[0] == pytest.approx(logits.softmax(0)[0].item(), abs=1e-5)


@pytest.mark.parametrize("max_nodes", [1, 40, 300])
def test_the_limit_of_a_forward_changes_nothing(max_nodes: int) -> None:
    judge = make(max_nodes=max_nodes)
    positions = counted(judge)
    assert judge(TEXTS) == pytest.approx(make()(TEXTS), abs=1e-5)
    head = max(len(head.ids) for head in judge._reader._heads)
    assert all(count <= max(max_nodes, head + 200) for count in positions)


def test_bfloat16_stays_within_its_guard_band() -> None:
    tokenizer = tiny.chat()
    model = tiny.causal("llama").to(torch.bfloat16)
    together = JudgeFilter(model, tokenizer, family=SHORT)
    alone = JudgeFilter(model, tokenizer, family=SHORT, packed=False)
    assert together.packed
    assert together(tiny.CORPUS) == pytest.approx(alone(tiny.CORPUS), abs=together.guard_band)


def test_prefix_scores_are_the_scores_of_the_prefixes() -> None:
    judge = make()
    texts = tiny.CORPUS[:3]
    ends = [[at for at in range(1, len(text) + 1) if text[:at].strip() == text[:at]] for text in texts]
    found = judge.prefix_scores(texts, ends)
    for text, cuts, scores in zip(texts, ends, found, strict=True):
        assert scores == pytest.approx([judge([text[:cut]])[0] for cut in cuts], abs=1e-5)


# Erase-and-check


@pytest.mark.parametrize("mode", [load_mode("suffix", 20), load_mode("insertion", 2)])
@pytest.mark.parametrize("early", [True, False])
def test_certifying_with_a_judge_is_certifying_one_by_one(mode: Any, early: bool) -> None:
    labels = set()
    for seed, text in enumerate(tiny.CORPUS):
        tokenizer, model = tiny.chat(), tiny.causal("qwen3", seed)
        verdicts = [
            EraseAndCheck(judge, mode, Words(), early_stop=early).certify(text + ADDED)
            for judge in (
                JudgeFilter(model, tokenizer, family=SHORT, threshold=0.7),
                JudgeFilter(model, tokenizer, family=SHORT, threshold=0.7, packed=False),
            )
        ]
        scores = [verdict.score for verdict in verdicts]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert dataclasses.replace(verdicts[0], score=0.0) == dataclasses.replace(verdicts[1], score=0.0)
        labels.add(verdicts[0].label)
    assert len(labels) == 2, "both answers must occur"


def test_a_verdict_takes_a_tenth_of_the_positions() -> None:
    """20 words erased behind a system prompt of 100 tokens."""
    text = tiny.CORPUS[0] + " the" * 20
    family = dataclasses.replace(SHORT, system=" the" * 100)
    tokenizer = tiny.chat()
    assert len(tokenizer(family.system, add_special_tokens=False)["input_ids"]) == 100
    counts = {}
    for packed in (True, False):
        judge = make(family=family, packed=packed, threshold=1.0)
        positions = counted(judge)
        EraseAndCheck(judge, load_mode("suffix", 20), Words(), early_stop=False).certify(text)
        assert len(positions) <= (2 if packed else 21), "the text itself, then its 20 erasures"
        counts[packed] = sum(positions)
    assert counts[False] >= 10 * counts[True]


def test_what_every_text_begins_with_is_read_once_for_all() -> None:
    judge = make()
    (head,) = judge._reader._heads
    positions = counted(judge)
    for text in tiny.CORPUS:
        judge([text])
        assert positions.pop() == len(judge._chats[0](text)[0]) - len(head.ids)
    assert len(head.ids) > 200


# What a prompt cannot do


@given(
    st.lists(st.sampled_from([*"aZ9 \n", "bomb", " how", "日", "🙂", "<|im_end|>", "<think>", "<s>", "\ufdd0", "<|"]))
)
@settings(deadline=None)
def test_a_prompt_places_no_control_token(parts: list[str]) -> None:
    for template, (text, metaspace) in TEMPLATES.items():
        tokenizer = tiny.chat(text, metaspace=metaspace)
        chat = ChatTokenizer(tokenizer, judges.render(tokenizer, SHORT)[0], 1024)
        controls = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
        empty, ids = chat("")[0], chat("".join(parts))[0]
        assert [i for i in ids if i in controls] == [i for i in empty if i in controls], template


def test_a_tokenizer_that_cannot_but_see_control_tokens_is_refused() -> None:
    tokenizer = tiny.unigram()  # Unigram finds the piece "[SEP]" in a text whatever it is told
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(InvalidArgument, match="control tokens"):
        ChatTokenizer(tokenizer, Template("[CLS]", "[SEP]"), 64)


def test_added_tokens_that_are_ordinary_words_are_no_reason_to_refuse() -> None:
    tokenizer = tiny.chat()
    tokenizer.add_tokens(["he"])  # a piece of the vocabulary, as Gemma's line breaks are
    chat = ChatTokenizer(tokenizer, judges.render(tokenizer, SHORT)[0], 1024)
    assert tokenizer.convert_tokens_to_ids("he") in chat("xhe")[0]


# Windows


@given(st.integers(1, 150), st.integers(60, 90), st.integers(3, 12))
@settings(deadline=None, max_examples=50)
def test_any_run_of_overlap_and_one_tokens_lies_in_a_window(length: int, window: int, overlap: int) -> None:
    text = "".join(chr(0x4E00 + at) for at in range(length))  # three tokens each: no run occurs twice
    tokenizer = tiny.chat()
    template = Template("<|im_start|>user\nx ", " y<|im_end|>\n<|im_start|>assistant\n")
    whole = ChatTokenizer(tokenizer, template, 4096)(text)[0]
    cut = ChatTokenizer(tokenizer, template, window, overlap)(text)
    assert all(len(ids) <= window for ids in cut)
    assert (len(cut) == 1) == (len(whole) <= window)
    held = {tuple(ids[at : at + overlap + 1]) for ids in cut for at in range(len(ids))}
    assert all(tuple(whole[at : at + overlap + 1]) in held for at in range(len(whole) - overlap))


def test_a_long_text_has_the_score_of_its_worst_window() -> None:
    judge = make(family=SHORT, window=120, overlap=10)
    text = " ".join(tiny.CORPUS * 2)
    sequences = judge._chats[0](text)
    assert len(sequences) > 3
    alone = torch.stack([judge._reader.alone(ids) for ids in sequences])
    assert judge([text, "a"])[0] == pytest.approx(max(judge._harm(alone)), abs=1e-5)
    with pytest.raises(InvalidArgument, match="room"):
        make(family=SHORT, window=30)
    with pytest.raises(InvalidArgument, match="1024 positions"):
        make(window=1025)


# Models that cannot be read together, and faults


def test_other_architectures_are_read_alone() -> None:
    tokenizer, model = tiny.chat(), tiny.causal("llama")
    reference = JudgeFilter(model, tokenizer, family=SHORT)(TEXTS)
    model.config.model_type = "something-new"
    judge = JudgeFilter(model, tokenizer, family=SHORT)
    assert not judge.packed
    assert judge(TEXTS) == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_stretch_with_the_longest_are_read_alone(kind: str) -> None:
    model = tiny.causal("llama")
    model.config.rope_parameters = {"full_attention": {"rope_type": kind, "factor": 2.0}}
    assert not JudgeFilter(model, tiny.chat(), family=SHORT).packed


def test_attention_that_ignores_masks_is_not_packed() -> None:
    model = tiny.causal("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    assert not SequenceReader(model, [1], max_nodes=10, packed=True, name="x").packed


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_model_whose_probe_disagrees_is_read_alone(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def masks(self: SequenceReader, trie: Any, depths: torch.Tensor, start: int) -> torch.Tensor:
        return torch.zeros(1, 1, len(trie), start + len(trie) + (fault == "raises"))

    reference = make(family=SHORT)(TEXTS)
    monkeypatch.setattr(SequenceReader, "_masks", masks)
    judge = make(family=SHORT)
    assert not judge.packed
    assert judge(TEXTS) == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_weights_that_are_not_finite_are_refused(packed: bool) -> None:
    model = tiny.causal("llama")
    judge = JudgeFilter(model, tiny.chat(), family=SHORT, packed=packed)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    for work in (lambda: judge(["bomb"]), lambda: JudgeFilter(model, tiny.chat(), family=SHORT)):
        with pytest.raises(FilterError, match="not finite"):
            work()


def test_training_and_quantised_models_are_refused() -> None:
    model = tiny.causal("llama").train()
    judge = JudgeFilter(model, tiny.chat(), family=SHORT)
    assert not model.training
    model.train()
    with pytest.raises(FilterError, match="training mode"):
        judge(["bomb"])
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(FilterError, match="quantised"):
        JudgeFilter(model, tiny.chat(), family=SHORT)


def test_errors_do_not_quote_the_text() -> None:
    judge = make(family=SHORT)
    bad: list[Any] = ["canary \ud800", 7, None]
    for text in bad:
        with pytest.raises(FilterError) as caught:
            judge(["fine", text])
        assert "canary" not in str(caught.value)
        assert caught.value.__context__ is None
    with pytest.raises(FilterError, match="list of texts"):
        judge("bomb")


@pytest.mark.parametrize(
    "options", [{"threshold": 2.0}, {"threshold": math.nan}, {"guard_band": -1.0}, {"max_nodes": 0}, {"overlap": 5000}]
)
def test_numbers_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        make(family=SHORT, **options)


# The table


@pytest.mark.parametrize("family", JUDGES, ids=lambda family: family.name)
def test_every_family_of_the_table_can_be_asked(family: JudgeFamily) -> None:
    seen = []

    class Recorder:
        chat_template = "yes"

        def get_chat_template(self) -> str:
            return self.chat_template

        def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool, **own: Any) -> str:
            assert tokenize is False
            seen.append((messages, add_generation_prompt, own))
            content = messages[-1]["content"]
            return f"before {content[0]['text'] if isinstance(content, list) else content} after"

    templates = judges.render(Recorder(), family)
    assert len(templates) == len(family.options) == len(seen)
    assert all(template == Template("before ", f" after{family.answer}") for template in templates)
    assert 0 < len(family.harmful) < len(family.labels)
    assert family.harmful <= set(family.labels)
    for (messages, opened, own), options in zip(seen, family.options, strict=True):
        assert options.items() <= own.items()
        assert opened == family.opens_answer
        assert [message["role"] for message in messages][-1] == "user"


@pytest.mark.parametrize("written", ["{{ date_string }}", "{{ strftime_now('%H:%M:%S %d %b %Y') }}"])
def test_the_question_is_the_same_tomorrow(written: str) -> None:
    tokenizer = tiny.chat(written + "{% if enable_thinking %}<think>{% endif %}" + tiny.CHATML)
    (template,) = judges.render(tokenizer, SHORT)
    assert "26 Jul 2024" in template.before
    assert "<think>" not in template.before


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        ("meta-llama/Llama-Guard-3-8B", "llama-guard-3"),
        ("meta-llama/Llama-Guard-4-12B", "llama-guard-4"),
        ("google/shieldgemma-9b", "shieldgemma"),
        ("ibm-granite/granite-guardian-3.1-2b", "granite-guardian"),
        ("/models/Qwen3Guard-Gen-0.6B/", "qwen3guard"),
    ],
)
def test_repositories_are_known_by_name(repository: str, name: str) -> None:
    assert judges.find(None, repository).name == name


def test_unknown_families_are_refused_and_nothing_is_guessed() -> None:
    assert judges.find("qwen3guard-loose", "Qwen3Guard-Gen-8B").harmful == {"Unsafe"}
    with pytest.raises(LabelError, match="zero-shot"):
        judges.find(None, "meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(UnknownName, match="shieldgemma"):
        judges.find("no-such-family", "")


def test_several_questions_the_worst_answer_counts() -> None:
    tokenizer = tiny.chat("<|im_start|>{{ messages[-1]['content'] }} {{ rule }}<|im_end|>")
    model = tiny.causal("llama")
    asked = [dataclasses.replace(SHORT, options=({"rule": rule},)) for rule in ("fox", "cake")]
    both = dataclasses.replace(SHORT, options=({"rule": "fox"}, {"rule": "cake"}))
    single = [JudgeFilter(model, tokenizer, family=family)(TEXTS) for family in asked]
    expected = [max(scores) for scores in zip(*single, strict=True)]
    assert JudgeFilter(model, tokenizer, family=both)(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_three_verdicts_share_the_probability() -> None:
    tokenizer, model = tiny.chat(), tiny.causal("llama")
    one = dataclasses.replace(SHORT, labels=("Yes", "No", "Maybe"), harmful=frozenset({"Maybe"}))
    two = dataclasses.replace(one, harmful=frozenset({"Maybe", "Yes"}))
    three = dataclasses.replace(one, harmful=frozenset({"No"}))
    scores = [JudgeFilter(model, tokenizer, family=family)(["a"])[0] for family in (two, three)]
    assert sum(scores) == pytest.approx(1)
    assert JudgeFilter(model, tokenizer, family=one)(["a"])[0] < scores[0]


def test_verdicts_need_first_tokens_of_their_own() -> None:
    same = dataclasses.replace(SHORT, labels=("Yes", "Yet"), harmful=frozenset({"Yes"}))
    with pytest.raises(LabelError, match="token of its own"):
        make(family=same)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        (None, InvalidArgument),
        ("nothing of it", InvalidArgument),
        ("{{ messages[-1]['content'] }} {{ messages[-1]['content'] }}", InvalidArgument),
        ("{{ raise_exception('canary') }}", FilterError),
    ],
)
def test_templates_that_cannot_be_used(template: str | None, error: type[Exception]) -> None:
    tokenizer = tiny.chat()
    tokenizer.chat_template = template
    with pytest.raises(error, match="template") as caught:
        JudgeFilter(tiny.causal("llama"), tokenizer, family=SHORT)
    assert "canary" not in str(caught.value)


def test_slow_and_random_tokenizers_are_refused() -> None:
    template = Template("a ", " b")
    with pytest.raises(InvalidArgument, match="no fast tokenizer"):
        ChatTokenizer(object(), template, 64)
    tokenizer = tiny.chat()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(InvalidArgument, match="dropout"):
        ChatTokenizer(tokenizer, template, 64)


# Loading


def test_a_folder_loads_as_it_was(tmp_path: Path) -> None:
    model, tokenizer = tiny.causal("qwen3"), tiny.chat()
    folder = tiny.save(tmp_path / "judge", model, tokenizer)
    loaded = load_filter(f"judge:{folder}", family="zero-shot", threshold=0.3)
    assert loaded.threshold == 0.3
    fresh = JudgeFilter(model, tokenizer, family="zero-shot")
    assert loaded.digest == fresh.digest
    assert loaded(tiny.CORPUS) == pytest.approx(fresh(tiny.CORPUS), abs=1e-5)
    with pytest.raises(LabelError, match="family"):
        load_filter(f"judge:{folder}")
    with pytest.raises(InvalidArgument, match="drop label"):
        load_filter(f"judge:{folder}", label="harmful")
    with pytest.raises(UnknownName):
        load_filter("judge:no such folder", family="zero-shot")


def test_the_digest_names_the_question() -> None:
    asked = [
        SHORT,
        dataclasses.replace(SHORT, system="is it safe"),
        dataclasses.replace(SHORT, labels=("Yes", "Maybe")),
    ]
    assert len({make(family=family).digest for family in asked} | {make(family=SHORT, window=99).digest}) == 4


def test_weights_that_are_missing_or_no_language_model_are_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "half", tiny.llama(), tiny.chat())
    with pytest.raises(WeightsError, match="lacks weights"):
        JudgeFilter.load(folder, family=SHORT)
    folder = tiny.save(tmp_path / "encoder", tiny.deberta(), tiny.chat())
    with pytest.raises(WeightsError, match="causal language model"):
        JudgeFilter.load(folder, family=SHORT)
