"""A transformers `text-generation` pipeline behind a guard.

The promise: no input reaches the model unless the guard allows it, whatever form it comes in: a text, a chat, lists of
either, or generators, datasets and other iterables, which are drawn lazily. Text that call arguments add to the prompt
(`prefix`, `tools`, `documents`) is checked together with each input; arguments that could carry a prompt past the
check (`inputs_embeds`, `past_key_values`, `custom_generate`, text in `tokenizer_encode_kwargs`, any unknown name) are
refused. What was given to the pipeline when it was built (its prefix, its chat template) is the owner's and trusted.

Only inputs are guarded: what the model generates is not looked at, so a `streamer` may have it as it comes.

Source of the contract: `transformers/pipelines/base.py` and `text_generation.py`, version 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers import GenerationConfig
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.pipelines.text_generation import ReturnType
from transformers.utils.chat_template_utils import Chat, get_json_schema

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Guard, OnBlock
from promptguard.guard.reading import strings_of

_MISSING = object()
_DEFAULTS = GenerationConfig()  # type: ignore[no-untyped-call]
# Arguments that add no text to the prompt, or whose text `added_texts` and `check_arguments` look at.
_ARGUMENTS = frozenset({
    "return_full_text", "return_tensors", "return_text", "return_type", "clean_up_tokenization_spaces", "prefix",
    "handle_long_generation", "stop_sequence", "truncation", "continue_final_message", "skip_special_tokens",
    "tokenizer_encode_kwargs", "tools", "documents", "add_special_tokens", "padding", "batch_size", "num_workers",
    "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus",
    "assistant_model", "streamer", "tokenizer",
}) | {name for name in vars(_DEFAULTS) if not name.startswith("_")} - {
    # These choose tokens of the answer, which is a prefill by another name.
    "sequence_bias", "forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id", "bos_token_id",
}  # fmt: skip
# Ways round the check.
_UNGUARDED = frozenset({"run_single", "run_multi", "iterate", "get_iterator", "forward", "preprocess"})
_TOKENIZER_MODES = frozenset({"padding", "padding_side", "truncation", "truncation_side"})
_NOT_THE_MODEL_CALL = frozenset({"batch_size", "num_workers"})


def guard_pipeline(pipe: Any, guard: Guard, *, on_block: str = OnBlock.REFUSE) -> GuardedPipeline:
    """Put a guard in front of a pipeline.

    Args:
        pipe: a transformers `text-generation` pipeline.
        guard: what decides about each input.
        on_block: "refuse" answers in the pipeline's own shape, with the policy's refusal as the generated text and
            `"blocked": True` beside it; "raise" raises `Blocked`.

    Raises:
        InvalidArgument: `on_block` is neither, or the pipeline reads images.
    """
    if isinstance(pipe, ImageTextToTextPipeline):
        raise InvalidArgument("guard this pipeline with promptguard.middleware.image_text_pipeline: it reads images")
    return GuardedPipeline(pipe, guard, OnBlock.of(on_block))


class GuardedPipeline:
    """Called like the pipeline it wraps; its public attributes are the pipeline's."""

    def __init__(self, pipe: Any, guard: Guard, on_block: OnBlock) -> None:
        self._pipe = pipe
        self._guard = guard
        self._on_block = on_block

    def __call__(self, text_inputs: Any = _MISSING, **kwargs: Any) -> Any:
        """Generate for every input that the guard allows.

        A list is checked as a whole before anything is generated. Of other iterables one item (or `batch_size`) is
        drawn, checked and generated at a time; the result is an iterator.

        A refusal keeps the form that the arguments ask for: the new text, or the text or chat followed by the refusal,
        `num_return_sequences` times. A last assistant message that the model would have continued is replaced by the
        refusal. With tensors, `generated_token_ids` are those of the refusal alone. A streamer gets the refusal too.

        Raises:
            Blocked: an input is blocked and the owner chose exceptions; for an iterator, when it gets there.
            InvalidArgument: an argument could bring text to the model unchecked.
        """
        if text_inputs is _MISSING:
            text_inputs = kwargs.pop("inputs", _MISSING)
        if text_inputs is _MISSING:
            raise InvalidArgument("give the pipeline an input: text_inputs")
        check_arguments(kwargs)
        call = _Call(self._pipe, self._guard, self._on_block, kwargs, added_texts(kwargs))
        inputs = _normalised(text_inputs)
        if isinstance(inputs, _Stream):
            return call.stream(inputs.items)
        if isinstance(inputs, _Many):
            return call.batch(inputs.items)
        return call.one(inputs)

    def predict(self, X: Any) -> Any:  # noqa: N803  (the pipeline's name)
        """The pipeline's scikit-learn interface, guarded."""
        return self(X)

    transform = predict

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _UNGUARDED:
            raise AttributeError(f"a guarded pipeline has no {name}: call it")
        return getattr(self._pipe, name)

    def __repr__(self) -> str:
        return f"GuardedPipeline({self._pipe!r}, on_block={str(self._on_block)!r})"


@dataclass(frozen=True, slots=True)
class _Many:
    """Inputs that the pipeline answers with a list."""

    items: Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Stream:
    """Inputs that the pipeline draws one by one."""

    items: Iterator[Any]


def _normalised(inputs: Any) -> Any:
    """The inputs in the form the pipeline will give them: `_Many`, `_Stream`, or else one input."""
    if isinstance(inputs, GeneratorType):
        first = next(inputs, _MISSING)
        if first is _MISSING:
            return _Many(())
        # The pipeline takes a generator of messages for one chat, and drains it.
        return [first, *inputs] if isinstance(first, dict) else _Stream(chain([first], inputs))
    if isinstance(inputs, KeyDataset) and len(inputs) and isinstance(inputs[0], dict | list | tuple):
        inputs = [inputs[i] for i in range(len(inputs))]
    if isinstance(inputs, list | tuple):
        return inputs if any(isinstance(item, dict) for item in inputs) else _Many(inputs)
    if isinstance(inputs, Dataset) and not isinstance(inputs, Iterable):
        # Map-style datasets have no __iter__ and need not end with IndexError.
        return _Stream(inputs[i] for i in range(len(inputs)))  # type: ignore[arg-type]
    if isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes | bytearray | Mapping):
        return _Stream(iter(inputs))
    return inputs


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a guarded pipeline."""

    pipe: Any
    guard: Guard
    on_block: OnBlock
    kwargs: dict[str, Any]
    context: tuple[str, ...]

    def one(self, item: Any) -> Any:
        refusal = self._refusal(item)
        return self.pipe(item, **self.kwargs) if refusal is None else refusal

    def batch(self, items: Sequence[Any]) -> list[Any]:
        """Every item is checked before the first is generated; each result is at the place of its item."""
        items = list(items)  # what was checked is what is generated for
        refusals = [self._refusal(item) for item in items]
        allowed = [item for item, refusal in zip(items, refusals, strict=True) if refusal is None]
        outputs = iter(self.pipe(allowed, **self.kwargs) if allowed else ())
        return [next(outputs) if refusal is None else refusal for refusal in refusals]

    def stream(self, items: Iterator[Any]) -> Iterator[Any]:
        size = self.kwargs.get("batch_size") or getattr(self.pipe, "_batch_size", None) or 1
        while batch := list(islice(items, size)):
            yield from self.batch(batch)

    def _refusal(self, item: Any) -> list[dict[str, Any]] | None:
        """The answer instead of generated text; None if the item is allowed."""
        decision = self.guard.check(item.messages if isinstance(item, Chat) else item, context=self.context)
        if decision.allowed:
            return None
        text = self.guard.policy.refusal
        if (streamer := self.kwargs.get("streamer")) is not None:
            _end_stream(streamer, text if self.on_block is OnBlock.REFUSE else "")
        if self.on_block is OnBlock.RAISE:
            raise Blocked(decision)
        return _records(self.pipe, self.kwargs, item, text)


def _end_stream(streamer: Any, text: str) -> None:
    # Whoever reads the streamer in another thread would otherwise wait for ever.
    if text and hasattr(streamer, "on_finalized_text"):
        streamer.on_finalized_text(text, stream_end=True)
    else:
        streamer.end()


def _records(pipe: Any, kwargs: dict[str, Any], item: Any, text: str) -> list[dict[str, Any]]:
    """What the pipeline returns for one item, with `text` as what was generated."""
    # The pipeline's own reading of its arguments, on top of those from its construction.
    given = {name: value for name, value in kwargs.items() if name not in _NOT_THE_MODEL_CALL}
    _, forward, postprocess = pipe._sanitize_parameters(**given)
    forward = {**pipe._forward_params, **forward}
    postprocess = {**pipe._postprocess_params, **postprocess}

    def record() -> dict[str, Any]:
        match postprocess.get("return_type", ReturnType.FULL_TEXT):
            case ReturnType.TENSORS:
                ids = pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
                return {"generated_token_ids": ids, "blocked": True}
            case ReturnType.FULL_TEXT:
                return {"generated_text": _full(item, text, postprocess), "blocked": True}
            case _:
                return {"generated_text": text, "blocked": True}

    return [record() for _ in range(_copies(pipe, forward))]


def _full(item: Any, text: str, postprocess: dict[str, Any]) -> Any:
    if isinstance(item, str):
        return item + text
    messages = item.messages if isinstance(item, Chat) else item
    messages = list(messages) if isinstance(messages, list | tuple) else []
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    is_prefill = postprocess.get("continue_final_message")
    if is_prefill is None:
        is_prefill = last.get("role") == "assistant"
    return [*(messages[:-1] if is_prefill else messages), {"role": "assistant", "content": text}]


def _copies(pipe: Any, forward: dict[str, Any]) -> int:
    """Sequences that `generate` would return: the call's word counts first, then the pipeline's, then the model's."""
    sources = [forward, forward.get("generation_config")]
    if sources[1] is None:  # a generation_config in the call replaces what the pipeline was built with
        built = getattr(pipe, "_generate_kwargs", {})
        sources += [built, built.get("generation_config")]
    sources.append(getattr(pipe.model, "generation_config", None))
    name = "num_return_sequences"
    counts = [source.get(name) if isinstance(source, dict) else getattr(source, name, None) for source in sources]
    return next((int(count) for count in counts if count), 1)


def check_arguments(kwargs: dict[str, Any]) -> None:
    """Refuse arguments that could bring text to the model unchecked.

    Raises:
        InvalidArgument: there is one.
    """
    if unknown := sorted(kwargs.keys() - _ARGUMENTS):
        raise InvalidArgument(f"a guarded pipeline does not take {', '.join(unknown)}: its content cannot be checked")
    encode = kwargs.get("tokenizer_encode_kwargs") or {}
    if not isinstance(encode, dict) or not all(_is_setting(name, value) for name, value in encode.items()):
        raise InvalidArgument(
            "tokenizer_encode_kwargs holds text or objects that may reach the model: give them to pipeline() instead"
        )


def _is_setting(name: str, value: Any) -> bool:
    return value is None or isinstance(value, int | float) or (name in _TOKENIZER_MODES and isinstance(value, str))


def added_texts(kwargs: dict[str, Any]) -> tuple[str, ...]:
    """The texts that arguments add to every prompt, the prefix last, as it touches the prompt.

    Raises:
        InvalidArgument: an argument of the wrong type, or that holds something that is not text.
    """
    texts: list[str] = []
    for name in ("tools", "documents"):
        items = kwargs.get(name)
        if items is not None and not isinstance(items, list | tuple):
            raise InvalidArgument(f"{name} must be a list")
        for item in items or ():
            strings = strings_of(_schema(item) if callable(item) else item)
            if strings is None:
                raise InvalidArgument(f"{name} must hold JSON data or functions: nothing else can be checked")
            texts.extend(strings)
    prefix = kwargs.get("prefix") or ""
    if not isinstance(prefix, str):
        raise InvalidArgument("prefix must be a string")
    return (*texts, prefix)


def _schema(function: Callable[..., Any]) -> object:
    """What the chat template is shown of a function given as a tool."""
    try:
        return get_json_schema(function)
    except Exception as error:
        raise InvalidArgument(f"a tool has no usable signature and docstring ({type(error).__name__})") from None
