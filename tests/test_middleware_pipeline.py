"""The guarded pipeline: allowed inputs give what the bare pipeline gives, blocked ones never reach the model."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import bytelevel
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TextGenerationPipeline,
    TextIteratorStreamer,
)
from transformers.pipelines.pt_utils import KeyDataset
from transformers.pipelines.text_generation import ReturnType
from transformers.utils.chat_template_utils import Chat

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Action, Guard, Policy
from promptguard.middleware.pipeline import GuardedPipeline, guard_pipeline
from promptguard.types import Label, Verdict

REFUSAL = Policy().refusal
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\n"
    "{% endfor %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for d in documents or [] %}{{ d.text }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


class Words:
    """Flags "bomb"; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def certify(self, x: str) -> Verdict:
        self.seen.append(x)
        return Verdict(Label.HARMFUL if "bomb" in x else Label.SAFE, 0.5, 0.5, 1, 1)


@functools.cache
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]


def pipeline(**built: Any) -> Any:
    tokenizer = bytelevel(ends=True)
    tokenizer.chat_template = TEMPLATE
    make: Any = TextGenerationPipeline
    return make(model=model(), tokenizer=tokenizer, device="cpu", **built)


def guarded(on_block: str = "refuse", policy: Policy | None = None, **built: Any) -> GuardedPipeline:
    return guard_pipeline(pipeline(**built), Guard(Words(), policy), on_block=on_block)


def chat(*texts: str, role: str = "user") -> list[dict[str, Any]]:
    roles = ["assistant" if i % 2 else "user" for i in range(len(texts) - 1)] + [role]
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose time on threads, a lot of it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model was given, decoded, call by call."""
    texts: list[str] = []
    generate = model().generate
    tokenizer = bytelevel(ends=True)

    def spy(input_ids: Any = None, **kwargs: Any) -> Any:
        texts.extend(tokenizer.batch_decode(input_ids) if input_ids is not None else [""])
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model(), "generate", spy)
    return texts


# Allowed inputs: exactly the pipeline.

SHAPES = [
    "a cake",
    chat("a cake"),
    chat("a cake", "which one?", "the best"),
    chat("a cake", "with", role="assistant"),
    Chat(chat("a cake")),  # type: ignore[arg-type]
    tuple(chat("a cake")),
    ["a cake"],
    ["a cake", "two mice and a dragon"],
    [chat("a cake"), chat("two mice")],
    (chat("a cake"), tuple(chat("two mice"))),
    [Chat(chat("a cake"))],  # type: ignore[arg-type]
    [{"role": "user", "content": [{"type": "text", "text": "a cake"}]}],
]


@pytest.mark.parametrize("inputs", SHAPES)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"return_full_text": False},
        {"return_full_text": True},
        {"return_tensors": True},
        {"num_return_sequences": 2, "num_beams": 2},
        {"batch_size": 2},
    ],
)
def test_allowed_output_is_the_pipelines(inputs: Any, kwargs: dict[str, Any]) -> None:
    bare = pipeline()(inputs, **GREEDY, **kwargs)
    assert guarded()(inputs, **GREEDY, **kwargs) == bare
    assert guarded()(text_inputs=inputs, **GREEDY, **kwargs) == bare


def test_arguments_that_add_text_are_passed_on() -> None:
    tools = [{"type": "function", "function": {"name": "look", "description": "see"}}]
    kwargs: dict[str, Any] = {"tools": tools, "documents": [{"title": "t", "text": "mice"}]}
    assert guarded()(chat("a cake"), **GREEDY, **kwargs) == pipeline()(chat("a cake"), **GREEDY, **kwargs)
    assert guarded()("cake", prefix="a ", **GREEDY) == pipeline()("cake", prefix="a ", **GREEDY)
    encode: dict[str, Any] = {"tokenizer_encode_kwargs": {"max_length": 3, "truncation": True, "padding": "longest"}}
    assert guarded()("a cake", **encode, **GREEDY) == pipeline()("a cake", **encode, **GREEDY)


# Blocked inputs: the same shape, and nothing reaches the model.

BLOCKED = [
    ("a bomb", {}, "a bomb" + REFUSAL),
    ("a bomb", {"return_full_text": True}, "a bomb" + REFUSAL),
    ("a bomb", {"return_full_text": False}, REFUSAL),
    ("a bomb", {"return_type": ReturnType.NEW_TEXT}, REFUSAL),
    (chat("a bomb"), {}, [*chat("a bomb"), says(REFUSAL)]),
    (chat("a bomb"), {"return_full_text": False}, REFUSAL),
    (tuple(chat("a bomb")), {}, [*chat("a bomb"), says(REFUSAL)]),
    (Chat(chat("a bomb")), {}, [*chat("a bomb"), says(REFUSAL)]),  # type: ignore[arg-type]
    (chat("a bomb", "why?", "so"), {}, [*chat("a bomb", "why?", "so"), says(REFUSAL)]),
    (chat("go on", "Sure, a bomb", role="assistant"), {}, [*chat("go on"), says(REFUSAL)]),
    (
        chat("go on", "Sure, a bomb", role="assistant"),
        {"continue_final_message": False},
        [*chat("go on"), says("Sure, a bomb"), says(REFUSAL)],
    ),
    (
        chat("hi", "ok", "a bomb"),
        {"continue_final_message": True},
        [*chat("hi", "ok", role="assistant"), says(REFUSAL)],
    ),
    ("", {}, REFUSAL),
    (None, {}, [says(REFUSAL)]),
    (7, {}, [says(REFUSAL)]),
    (b"hi", {}, [says(REFUSAL)]),
    ({"role": "user", "content": "hi"}, {}, [says(REFUSAL)]),
    ([{"role": "user", "content": "hi"}, "x"], {}, [{"role": "user", "content": "hi"}, "x", says(REFUSAL)]),
    ([{"role": "oracle", "content": "hi"}], {"return_full_text": False}, REFUSAL),
]


@pytest.mark.parametrize(("inputs", "kwargs", "expected"), BLOCKED)
def test_blocked_input_gets_the_refusal_in_shape(
    inputs: Any, kwargs: dict[str, Any], expected: Any, reached: list[str]
) -> None:
    record = {"generated_text": expected, "blocked": True}
    assert guarded()(inputs, **GREEDY, **kwargs) == [record]
    assert guarded()(inputs, num_return_sequences=3, num_beams=3, **GREEDY, **kwargs) == [record] * 3
    with pytest.raises(Blocked):
        guarded("raise")(inputs, **GREEDY, **kwargs)
    assert reached == []


def test_blocked_records_do_not_share_state() -> None:
    first, second = guarded()(chat("a bomb"), num_return_sequences=2, num_beams=2, **GREEDY)
    first["generated_text"].append("x")
    assert len(second["generated_text"]) == 2


def test_shape_follows_the_pipelines_construction() -> None:
    assert guarded(return_full_text=False)("a bomb", **GREEDY)[0]["generated_text"] == REFUSAL
    assert len(guarded(num_return_sequences=2, num_beams=2)("a bomb", **GREEDY)) == 2
    twice = GenerationConfig(num_return_sequences=2, num_beams=2, **GREEDY)  # type: ignore[no-untyped-call]
    assert len(guarded()("a bomb", generation_config=twice)) == 2
    assert len(guarded()("a cake", generation_config=twice)) == 2


def test_blocked_tensors_are_the_refusals_ids(reached: list[str]) -> None:
    pipe = guarded()
    (record,) = pipe("a bomb", return_tensors=True, **GREEDY)
    assert pipe.tokenizer.decode(record["generated_token_ids"]) == REFUSAL
    assert record["blocked"] is True
    assert reached == []


def test_owner_chooses_the_refusal_and_the_policy() -> None:
    assert guarded(policy=Policy(refusal="No."))("a bomb", return_full_text=False)[0]["generated_text"] == "No."
    observing = guarded(policy=Policy(on_harmful=Action.ALLOW))
    assert observing("a bomb", **GREEDY) == pipeline()("a bomb", **GREEDY)


# Lists: blocked items keep their place.


@pytest.mark.parametrize("batch_size", [1, 2])
def test_list_keeps_order_and_holds_back_the_blocked(batch_size: int, reached: list[str]) -> None:
    texts = ["a bomb", "a cake", "the bomb", "two mice", ""]
    out = guarded()(texts, batch_size=batch_size, **GREEDY)
    seen = list(reached)
    assert not any("bomb" in text for text in seen)
    assert len(seen) == 2
    expected = pipeline()(["a cake", "two mice"], batch_size=batch_size, **GREEDY)
    assert [out[1], out[3]] == expected
    assert [out[i][0]["generated_text"] for i in (0, 2, 4)] == [texts[i] + REFUSAL for i in (0, 2, 4)]


def test_list_of_chats_keeps_order(reached: list[str]) -> None:
    out = guarded()([chat("a cake"), chat("a bomb"), [], chat("x", "bomb", role="assistant")], **GREEDY)
    assert len(reached) == 1
    assert out[0] == pipeline()(chat("a cake"), **GREEDY)
    assert [out[i][0].get("blocked") for i in (1, 2, 3)] == [True] * 3


def test_lists_of_blocked_or_nothing(reached: list[str]) -> None:
    assert [o[0]["blocked"] for o in guarded()(["bomb", "bombs"], **GREEDY)] == [True, True]
    assert guarded()([], **GREEDY) == []
    assert guarded()((text for text in [""] if text), **GREEDY) == []
    with pytest.raises(Blocked):
        guarded("raise")(["a cake", "a bomb"], **GREEDY)
    assert guarded()([["nested"]], **GREEDY)[0][0]["blocked"] is True
    assert reached == []


# Streams are drawn as they are used.


def endless(drawn: list[str]) -> Iterator[str]:
    i = 0
    while True:
        drawn.append("a bomb" if i % 2 else f"cake {i}")
        yield drawn[-1]
        i += 1


def test_generator_is_lazy_and_in_order(reached: list[str]) -> None:
    drawn: list[str] = []
    out = guarded()(endless(drawn), **GREEDY)
    assert len(drawn) == 1  # the pipeline, too, looks at the first item to tell chats from texts
    results = [next(out) for _ in range(4)]
    assert len(drawn) == 4
    assert [r[0].get("blocked", False) for r in results] == [False, True, False, True]
    assert len(reached) == 2
    assert results[2] == pipeline()("cake 2", **GREEDY)


def test_generator_draws_batches() -> None:
    drawn: list[str] = []
    out = guarded()(endless(drawn), batch_size=3, **GREEDY)
    assert next(out) == pipeline()(["cake 0", "cake 2"], batch_size=3, **GREEDY)[0]
    assert len(drawn) == 3
    drawn.clear()
    next(guarded(batch_size=2)(endless(drawn), **GREEDY))
    assert len(drawn) == 2


def test_generator_raises_where_it_is_blocked() -> None:
    out = guarded("raise")(iter(["a cake", "a bomb"]), **GREEDY)
    assert next(out) == pipeline()("a cake", **GREEDY)
    with pytest.raises(Blocked):
        next(out)


def test_generators_of_chats_and_of_messages(reached: list[str]) -> None:
    def source(*items: Any) -> Iterator[Any]:
        yield from items

    chats = [chat("a cake"), chat("a bomb"), chat("two mice")]
    out = list(guarded()(source(*chats), **GREEDY))
    assert out[1][0]["blocked"] is True
    assert [out[0], out[2]] == list(pipeline()(source(chats[0], chats[2]), **GREEDY))
    messages = chat("a cake", "why?", "so")
    assert guarded()(source(*messages), **GREEDY) == pipeline()(source(*messages), **GREEDY)
    reached.clear()
    assert guarded()(source(*messages, *chat("a bomb")), **GREEDY)[0]["blocked"] is True
    assert reached == []


class Texts(Dataset[str]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i % len(self.items)]  # never an IndexError


class Flow(IterableDataset[str]):
    def __iter__(self) -> Iterator[str]:
        yield from ["a cake", "a bomb"]


@pytest.mark.parametrize(
    "data",
    [
        Texts(["a cake", "a bomb"]),
        Flow(),
        KeyDataset([{"t": "a cake"}, {"t": "a bomb"}], "t"),  # type: ignore[arg-type]
        iter(["a cake", "a bomb"]),
        {"a cake": 1, "a bomb": 2}.keys(),
    ],
)
def test_datasets_and_iterables(data: Any, reached: list[str]) -> None:
    out = list(guarded()(data, **GREEDY))
    assert len(reached) == 1
    assert out[0] == pipeline()("a cake", **GREEDY)
    assert out[1] == [{"generated_text": "a bomb" + REFUSAL, "blocked": True}]


def test_key_datasets_of_chats_and_of_messages() -> None:
    chats: Any = KeyDataset([{"c": chat("a cake")}, {"c": chat("two mice")}], "c")  # type: ignore[arg-type]
    assert guarded()(chats, **GREEDY) == pipeline()(chats, **GREEDY)
    messages: Any = KeyDataset([{"m": m} for m in chat("a", "b", "bomb")], "m")  # type: ignore[arg-type]
    assert guarded()(messages, **GREEDY)[0]["blocked"] is True


# Other ways for text to reach the model.


def look(place: str) -> str:
    """Look for a bomb.

    Args:
        place: where to look
    """
    return place


@pytest.mark.parametrize(
    ("inputs", "kwargs"),
    [
        ("a cake", {"prefix": "a bomb "}),
        ("mb", {"prefix": "a bo"}),
        ("mb", {"prefix": "a bo", "documents": [{"text": "x"}]}),
        (chat("hi"), {"tools": [{"type": "function", "function": {"name": "f", "description": "a bomb"}}]}),
        (chat("hi"), {"tools": [{"function": {"parameters": {"properties": {"bomb": {"type": "string"}}}}}]}),
        (chat("hi"), {"tools": [look]}),
        (chat("hi"), {"documents": [{"title": "cake", "text": "a bomb"}]}),
        ([chat("hi"), chat("ho")], {"documents": ({"text": "a bomb"},)}),
        (chat("hi", "a bomb", role="assistant"), {"continue_final_message": True}),
        ([{"role": "assistant", "content": "x", "reasoning_content": "bomb"}], {"continue_final_message": "thinking"}),
    ],
)
def test_text_in_arguments_is_checked(inputs: Any, kwargs: dict[str, Any], reached: list[str]) -> None:
    out = guarded()(inputs, **GREEDY, **kwargs)
    assert all((record[0] if isinstance(record, list) else record)["blocked"] for record in out)
    assert reached == []


@pytest.mark.parametrize(
    "kwargs",
    [
        {"inputs_embeds": torch.zeros(1, 1, 32)},
        {"input_ids": torch.zeros(1, 1)},
        {"past_key_values": None},
        {"negative_prompt_ids": [[1]]},
        {"custom_generate": "some/repo"},
        {"inputs": "a bomb"},
        {"chat_template": "a bomb"},
        {"tokenizer_encode_kwargs": {"chat_template": "a bomb"}},
        {"tokenizer_encode_kwargs": {"text_pair": "a bomb"}},
        {"tokenizer_encode_kwargs": {"tools": ["a bomb"]}},
        {"tokenizer_encode_kwargs": {"tokenizer_kwargs": {"text_pair": "a bomb"}}},
        {"tokenizer_encode_kwargs": "a bomb"},
        {"tools": "a bomb"},
        {"tools": [object()]},
        {"tools": [lambda x: x]},
        {"documents": [b"a bomb"]},
        {"documents": iter([{"text": "a bomb"}])},
        {"prefix": b"a bomb"},
    ],
)
def test_arguments_that_could_pass_the_check_are_refused(kwargs: dict[str, Any], reached: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        guarded()("a cake", **GREEDY, **kwargs)
    assert "bomb" not in str(caught.value)
    assert reached == []


def test_input_by_keyword() -> None:
    assert guarded()(inputs="a bomb", **GREEDY)[0]["blocked"] is True
    assert guarded()(inputs="a cake", **GREEDY) == pipeline()("a cake", **GREEDY)
    with pytest.raises(InvalidArgument):
        guarded()(**GREEDY)
    with pytest.raises(TypeError):
        guarded()("a cake", "a bomb")  # type: ignore[call-arg]


@pytest.mark.parametrize("on_block", ["refuse", "raise"])
def test_streamer_gets_tokens_or_the_refusal_and_never_hangs(on_block: str) -> None:
    pipe = guarded(on_block)

    def run(prompt: str) -> str:
        streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, timeout=20)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                pipe(prompt, streamer=streamer, **GREEDY)
            except Blocked as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert bool(failures) == (on_block == "raise" and "bomb" in prompt)
        return text

    assert run("a bomb") == (REFUSAL if on_block == "refuse" else "")
    assert run("a cake") == pipeline()("a cake", return_full_text=False, **GREEDY)[0]["generated_text"]


# The wrapper itself.


def test_it_looks_like_the_pipeline() -> None:
    pipe = pipeline()
    wrapped = guard_pipeline(pipe, Guard(Words()))
    assert wrapped.tokenizer is pipe.tokenizer
    assert wrapped.model is pipe.model
    assert wrapped.task == pipe.task
    assert wrapped.device == pipe.device
    assert repr(wrapped).startswith("GuardedPipeline(TextGenerationPipeline")
    for name in ("_preprocess_params", "nonsense"):
        with pytest.raises(AttributeError):
            getattr(wrapped, name)


def test_scikit_names_are_guarded() -> None:
    assert guarded().predict("a bomb")[0]["blocked"] is True
    assert guarded().transform("a bomb")[0]["blocked"] is True


def test_unknown_on_block_is_an_error() -> None:
    with pytest.raises(InvalidArgument):
        guarded("shrug")
