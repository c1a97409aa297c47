"""A transformers `image-text-to-text` pipeline behind a guard.

The promise: no text and no image reaches the model unless the guard allows it. Images are judged by the guard's
`images`; without it they are unscannable: they block, unless the policy lets them pass unseen. What is judged, and what
the pipeline is given, is a copy in RGB, turned upright, as the pipeline would make it. An image that is an address, a
path or encoded text is read by the pipeline after any check, so it stays unscannable: load it first.

Inputs are a text, a chat, lists of either, or images beside texts; generators, data sets and dicts are refused.
Only inputs are guarded, as in `promptguard.middleware.pipeline`, whose rules for arguments hold here too.

Source of the contract: `transformers/pipelines/image_text_to_text.py`, version 5.23.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from transformers.pipelines.image_text_to_text import ReturnType
from transformers.utils.chat_template_utils import Chat

from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Guard, OnBlock
from promptguard.middleware.pipeline import added_texts, check_arguments

_ARGUMENTS = frozenset({
    "max_new_tokens", "generate_kwargs", "timeout", "return_full_text", "return_tensors", "return_type",
    "clean_up_tokenization_spaces", "stop_sequence", "continue_final_message", "skip_special_tokens", "tools",
    "documents", "batch_size", "num_workers",
})  # fmt: skip


def guard_image_text_pipeline(pipe: Any, guard: Guard, *, on_block: str = OnBlock.REFUSE) -> GuardedImageTextPipeline:
    """Put a guard in front of a pipeline that reads images.

    Args:
        pipe: a transformers `image-text-to-text` pipeline.
        guard: what decides about texts, and about images if it has `images`.
        on_block: "refuse" answers in the pipeline's own shape, with the policy's refusal as the generated text and
            `"blocked": True` beside it; "raise" raises `Blocked`.

    Raises:
        InvalidArgument: `on_block` is neither.
    """
    return GuardedImageTextPipeline(pipe, guard, OnBlock.of(on_block))


@dataclass(frozen=True, slots=True)
class _Item:
    """One input: a text or a chat, and the images beside a text."""

    text: Any
    images: tuple[Any, ...] | None = None


class GuardedImageTextPipeline:
    """Called like the pipeline it wraps; `tokenizer`, `processor`, `model`, `task` and `device` are the pipeline's."""

    def __init__(self, pipe: Any, guard: Guard, on_block: OnBlock) -> None:
        self._pipe = pipe
        self._guard = guard
        self._on_block = on_block
        self.tokenizer, self.processor, self.model = pipe.tokenizer, pipe.processor, pipe.model
        self.task, self.device = pipe.task, pipe.device

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Generate for every input that the guard allows; all of them are checked before any is generated.

        Args:
            images: an image or a list of them, one for each text; or chats, as the pipeline takes them.
            text: a text, a chat, or a list of either.
            kwargs: settings. Whatever could bring text to the model unchecked is refused.

        Raises:
            Blocked: an input is blocked and the owner chose exceptions.
            InvalidArgument: an argument or a form of input that cannot be checked.
        """
        if unknown := sorted(kwargs.keys() - _ARGUMENTS):
            raise InvalidArgument(
                f"a guarded pipeline does not take {', '.join(unknown)}: its content cannot be checked"
            )
        check_arguments(kwargs.get("generate_kwargs") or {})
        context = added_texts(kwargs)
        given, is_list = _items(images, text)
        items = [_each_image(item, _plain) for item in given]
        refusals = [self._refusal(item, context, kwargs) for item in items]
        answers = [self._generate(item, kwargs) if no is None else no for item, no in zip(items, refusals, strict=True)]
        if items and items[0].images is not None:  # the pipeline gives these answers in one list
            return [record for answer in answers for record in answer]
        return answers if is_list else answers[0]

    def _generate(self, item: _Item, kwargs: dict[str, Any]) -> Any:
        # One by one: what the model gets for an item is what was checked for it, whatever stands beside it.
        images = list(item.images) if item.images else None
        return self._pipe(images=images, text=item.text, **kwargs)

    def _refusal(self, item: _Item, context: Sequence[str], kwargs: dict[str, Any]) -> list[dict[str, Any]] | None:
        decision = self._guard.check(_read(item, self._guard.images is not None), context=context)
        if decision.allowed:
            return None
        if self._on_block is OnBlock.RAISE:
            raise Blocked(decision)
        return [self._record(item, kwargs)]

    def _record(self, item: _Item, kwargs: dict[str, Any]) -> dict[str, Any]:
        text = self._guard.policy.refusal
        kind = kwargs.get("return_type")
        record: dict[str, Any] = {"input_text": item.text, "blocked": True}
        if kwargs.get("return_tensors") or kind is ReturnType.TENSORS:
            return {**record, "generated_token_ids": self.tokenizer(text, add_special_tokens=False)["input_ids"]}
        if kwargs.get("return_full_text") is False or kind is ReturnType.NEW_TEXT:
            return {**record, "generated_text": text}
        said = {"role": "assistant", "content": text}
        return {**record, "generated_text": item.text + text if isinstance(item.text, str) else [*item.text, said]}


def _items(images: Any, text: Any) -> tuple[list[_Item], bool]:
    """The inputs, and whether the pipeline would answer with a list of lists.

    Raises:
        InvalidArgument: a form that is not read here.
    """
    if text is None and images is not None and not _are_images(images):
        images, text = None, images  # a chat may come first, as the pipeline takes it
    text = text.messages if isinstance(text, Chat) else text
    if images is not None:
        texts = [text] if isinstance(text, str) else text
        beside = images if isinstance(images, list | tuple) else [images]
        if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
            raise InvalidArgument("images stand beside a text or a list of texts; in a chat they are parts of it")
        if len(texts) == 1:
            return [_Item(texts[0], tuple(beside))], not isinstance(text, str)
        if len(beside) != len(texts):
            raise InvalidArgument("give one image for each text")
        return [_Item(each, (image,)) for each, image in zip(texts, beside, strict=True)], True
    if isinstance(text, str) or (isinstance(text, list | tuple) and text and isinstance(text[0], dict)):
        return [_Item(text)], False
    if isinstance(text, list | tuple) and all(isinstance(each, str | list | tuple | Chat) for each in text):
        return [_Item(each.messages if isinstance(each, Chat) else each) for each in text], True
    raise InvalidArgument("give the pipeline a text, a chat, or a list of either: nothing else can be checked")


def _are_images(value: Any) -> bool:
    """Whether the pipeline would take it for images: pictures, or strings that say where one is."""
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(isinstance(each, Image.Image | str) for each in values)


def _each_image(item: _Item, work: Callable[[Image.Image], Any], whole: bool = False) -> _Item:
    """The input with something else for every loaded image.

    Args:
        item: the input.
        work: makes it of the image.
        whole: it stands for the part of a chat that shows the image, not for the image in that part.
    """

    def part(given: Any) -> Any:
        is_shown = isinstance(given, dict) and given.get("type") == "image" and given.keys() == {"type", "image"}
        if not is_shown or not isinstance(given["image"], Image.Image):
            return given
        made = work(given["image"])
        return made if whole else {"type": "image", "image": made}

    def turn(given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("content"), list | tuple):
            return given
        return {**given, "content": [part(each) for each in given["content"]]}

    text = item.text if isinstance(item.text, str) else [turn(each) for each in item.text]
    beside = item.images and tuple(work(each) if isinstance(each, Image.Image) else each for each in item.images)
    return _Item(text, beside)


def _plain(image: Image.Image) -> Image.Image:
    """An image as the pipeline reads it, on its own: nothing that the caller holds changes it any more.

    Raises:
        InvalidArgument: it cannot be decoded.
    """
    try:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return Image.frombytes("RGB", upright.size, upright.tobytes())
    except Exception as error:  # of a file that is read only now
        kind = type(error).__name__
    raise InvalidArgument(f"an image cannot be decoded: {kind}")


def _read(item: _Item, is_judged: bool) -> Any:
    """What the guard is to read."""
    show = _inline if is_judged else _unread
    if item.images is None:
        return _each_image(item, show, whole=True).text
    parts = [show(each) if isinstance(each, Image.Image) else {"type": "image"} for each in item.images]
    return [{"role": "user", "content": [{"type": "text", "text": item.text}, *parts]}]


def _inline(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    written = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{written}"}}


def _unread(_image: Image.Image) -> dict[str, Any]:
    return {"type": "image"}
