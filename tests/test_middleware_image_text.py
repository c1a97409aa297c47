"""The guarded image-text-to-text pipeline: texts and images reach a tiny LLaVA only if they were allowed."""

from __future__ import annotations

import functools
import io
import random
from typing import Any

import pytest
import torch
from doubles import CANARY, Does, Words
from PIL import Image
from pixels import Brightness, chat_part, file_of, scene, tensor_of
from tiny import bytelevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    ImageTextToTextPipeline,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.image_utils import load_image
from transformers.pipelines.image_text_to_text import ReturnType
from transformers.utils.chat_template_utils import Chat

from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import Blocked, InvalidArgument
from promptguard.guard import Action, Guard, Policy
from promptguard.middleware.image_text_pipeline import guard_image_text_pipeline
from promptguard.middleware.pipeline import guard_pipeline
from promptguard.types import Verdict
from promptguard.vision.pictures import Pictures

REFUSAL = Policy().refusal
CAKE, BOMB = "bake a cake", f"a {CANARY}"
GREEDY: dict[str, Any] = {"generate_kwargs": {"max_new_tokens": 3, "do_sample": False}}
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "\n{% endfor %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def pipeline() -> Any:
    tokenizer = bytelevel(ends=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    vision: Any = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **size)
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text: Any = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **special, **size)
    image = tokenizer.convert_tokens_to_ids("<image>")
    configure: Any = LlavaConfig
    config = configure(vision_config=vision, text_config=text, image_token_id=image, image_seq_length=4)
    torch.manual_seed(0)
    make: Any = LlavaForConditionalGeneration
    images: Any = CLIPImageProcessorPil
    processor: Any = LlavaProcessor
    built = processor(
        image_processor=images(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    pipe: Any = ImageTextToTextPipeline
    return pipe(model=make(config).eval(), processor=built, device="cpu")


def picture(colour: int = 0) -> Image.Image:
    return Image.new("RGB", (8, 8), (colour, colour, colour))


def judges(model: Any = None) -> Pictures:
    """Flags bright images."""
    sampling = ImageSampling(samples=200, selection=10)
    made = GaussianSmoothing(model or Brightness(), 0.1, harmful={1}, sampling=sampling, rng=random.Random(0))
    return Pictures(made, (8, 8))


def guarded(images: Any = None, on_block: str = "refuse", policy: Policy | None = None) -> Any:
    return guard_image_text_pipeline(pipeline(), Guard(Words(), policy, images), on_block=on_block)


def says(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def shown(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model was given, decoded, call by call."""
    texts: list[str] = []
    model, tokenizer = pipeline().model, pipeline().tokenizer
    generate = model.generate

    def spy(input_ids: Any = None, **kwargs: Any) -> Any:
        texts.extend(tokenizer.batch_decode(input_ids))
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", spy)
    return texts


ALLOWED: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {"text": CAKE}),
    ((says(CAKE),), {}),
    ((), {"text": says(CAKE)}),
    (([says(CAKE), says("two mice")],), {}),
    ((), {"text": [CAKE, "two mice"]}),
    ((), {"text": Chat(says(CAKE))}),  # type: ignore[arg-type]
    ((picture(),), {"text": f"<image> {CAKE}"}),
    (([picture()],), {"text": [f"<image> {CAKE}"]}),
    (([picture(), picture(9)],), {"text": f"<image><image> {CAKE}"}),
    ((says(CAKE, shown(picture())),), {}),
]


@pytest.mark.parametrize(("args", "kwargs"), ALLOWED)
@pytest.mark.parametrize("more", [{}, {"return_full_text": False}])
def test_allowed_output_is_the_pipelines(args: Any, kwargs: dict[str, Any], more: dict[str, Any]) -> None:
    bare = args or kwargs["text"]
    if isinstance(kwargs.get("text"), Chat):  # which the pipeline itself takes as messages only
        bare = pipeline()(text=kwargs["text"].messages, **GREEDY, **more)
    else:
        bare = pipeline()(*args, **kwargs, **GREEDY, **more)
    assert guarded(judges())(*args, **kwargs, **GREEDY, **more) == bare


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {"text": BOMB}),
        ((says(BOMB),), {}),
        ((says(CAKE, BOMB),), {}),
        ((says("a bo", shown(picture()), "mb"),), {}),
        (([*says(BOMB), *says("ok", role="assistant"), *says(CAKE)],), {}),
        (([*says(CAKE), *says(BOMB, role="assistant")],), {}),
        ((picture(),), {"text": f"<image> {BOMB}"}),
        ((says(CAKE),), {"tools": [{"type": "function", "function": {"name": "f", "description": BOMB}}]}),
        ((says(CAKE, {**shown(picture()), "alt": BOMB}),), {}),
        ((says(CAKE, {"type": "image", "url": "https://x.org/i.png"}),), {}),
        ((says(CAKE, {"type": "image", "path": "i.png"}),), {}),
        ((says(CAKE, {"type": "image", "base64": "eA=="}),), {}),
        ((says(CAKE, shown("https://x.org/i.png")),), {}),
        ((says(CAKE, {"type": "video", "video": "v.mp4"}),), {}),
        (("https://x.org/i.png",), {"text": f"<image> {CAKE}"}),
        ((says(CAKE, role="wizard"),), {}),
        ((), {"text": ""}),
    ],
)
def test_blocked_inputs_do_not_reach_the_model(args: Any, kwargs: dict[str, Any], reached: list[str]) -> None:
    [answer] = guarded(judges())(*args, **kwargs, **GREEDY)
    assert answer["blocked"] is True
    assert REFUSAL in str(answer["generated_text"])
    with pytest.raises(Blocked):
        guarded(judges(), on_block="raise")(*args, **kwargs, **GREEDY)
    assert reached == []


@pytest.mark.parametrize(
    "make", [lambda i: ((says(CAKE, shown(i)),), {}), lambda i: ((i,), {"text": f"<image> {CAKE}"})]
)
def test_images_block_unless_the_guard_judges_them_safe(make: Any, reached: list[str]) -> None:
    args, kwargs = make(picture(200))
    lenient = Policy(on_unscannable=Action.ALLOW)
    for policy in (None, lenient):
        assert guarded(judges(), policy=policy)(*args, **kwargs, **GREEDY)[0]["blocked"] is True
        assert guarded(Refuses(), policy=policy)(*args, **kwargs, **GREEDY)[0]["blocked"] is True
    assert guarded()(*args, **kwargs, **GREEDY)[0]["blocked"] is True
    assert reached == []
    assert "blocked" not in guarded(policy=lenient)(*args, **kwargs, **GREEDY)[0]
    parts = ({"type": "text", "text": CAKE}, shown(picture(200)))
    assert guarded(judges(), policy=lenient)([{"role": "user", "content": parts}], **GREEDY)[0]["blocked"] is True
    args, kwargs = make(picture(0))
    assert "blocked" not in guarded(judges())(*args, **kwargs, **GREEDY)[0]
    assert len(reached) == 2


class Refuses:
    max_pictures = 8

    def certify(self, x: bytes) -> Verdict:
        raise RuntimeError(BOMB)


def test_a_harmful_image_comes_with_a_certificate() -> None:
    with pytest.raises(Blocked) as caught:
        guarded(judges(), on_block="raise")(says(CAKE, shown(picture(200))))
    decision: Any = caught.value.decision
    assert decision.parts[-1].is_picture
    assert decision.certificate.sentence().startswith("With any change of the picture resized to 8 x 8 of Euclidean")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "turned"])
def test_what_is_judged_is_what_the_pipeline_gets(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Image.linear_gradient("L").resize((8, 8)).convert("L" if mode == "turned" else mode)
    if mode == "turned":
        given.getexif()[0x0112] = 6
        assert given.getexif()[0x0112] == 6
    judged: list[torch.Tensor] = []
    passed: list[Image.Image] = []

    class Keeps(Refuses):
        def certify(self, x: bytes) -> Verdict:
            judged.append(judges().tensor(x))
            given.paste(given.rotate(180))  # who changes it now changes nothing
            return judges().certify(x)

    class Spy:
        tokenizer = processor = model = task = device = None

        def __call__(self, images: Any, text: Any, **_: Any) -> Any:
            passed.extend(images or [text[0]["content"][1]["image"]])
            return [{}]

    before = pipeline().processor.image_processor(images=[load_image(given)], return_tensors="pt")
    guard = Guard(Words(), Policy(on_harmful=Action.ALLOW, on_abstain=Action.ALLOW), Keeps())
    guard_image_text_pipeline(Spy(), guard)(says(CAKE, shown(given)))
    after = pipeline().processor.image_processor(images=[load_image(passed[0])], return_tensors="pt")
    assert torch.equal(before["pixel_values"], after["pixel_values"])
    assert torch.equal(judged[0], tensor_of(passed[0]))


def test_an_image_that_cannot_be_decoded_is_refused(reached: list[str]) -> None:
    broken = Image.open(io.BytesIO(file_of(scene("sea"))[:500]))
    with pytest.raises(InvalidArgument, match="cannot be decoded"):
        guarded(judges())(says(CAKE, shown(broken)))
    assert reached == []


def test_one_refused_image_among_others_blocks(reached: list[str]) -> None:
    chat = says(CAKE, shown(picture(0)), shown(picture(200)))
    assert guarded(judges())(chat, **GREEDY)[0]["blocked"] is True
    beside = [picture(0), picture(200)]
    assert guarded(judges())(beside, text=f"<image><image> {CAKE}", **GREEDY)[0]["blocked"] is True
    assert reached == []


def test_answers_stand_at_the_place_of_their_input(reached: list[str]) -> None:
    found = guarded()([says(CAKE), says(BOMB), says("two mice")], **GREEDY)
    assert ["blocked" in answers[0] for answers in found] == [False, True, False]
    assert len(reached) == 2
    assert CANARY not in str(reached)


def test_all_inputs_are_checked_before_any_is_generated(reached: list[str]) -> None:
    with pytest.raises(Blocked):
        guarded(on_block="raise")([says(CAKE), says(BOMB)], **GREEDY)
    assert reached == []


def test_refusals_keep_the_form_that_was_asked_for() -> None:
    chat = says(BOMB)
    full = guarded()(chat)[0]
    assert full["generated_text"] == [*chat, {"role": "assistant", "content": REFUSAL}]
    assert full["input_text"] == chat
    for kwargs in ({"return_full_text": False}, {"return_type": ReturnType.NEW_TEXT}):
        assert guarded()(chat, **kwargs)[0]["generated_text"] == REFUSAL
    assert guarded()(text=BOMB)[0]["generated_text"] == BOMB + REFUSAL
    ids = guarded()(chat, return_tensors=True)[0]["generated_token_ids"]
    assert pipeline().tokenizer.decode(ids) == REFUSAL


@pytest.mark.parametrize(
    "kwargs",
    [
        {"chat_template": BOMB},
        {"add_generation_prompt": False},
        {"processor_kwargs": {"suffix": BOMB}},
        {"generate_kwargs": {"inputs_embeds": 1}},
        {"generate_kwargs": {"custom_generate": "x"}},
        {"unheard_of": 1},
    ],
)
def test_arguments_that_could_carry_text_are_refused(kwargs: dict[str, Any], reached: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        guarded()(says(CAKE), **kwargs)
    assert reached == []


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((CAKE,), {}),
        ((), {}),
        (({"image": 1, "text": CAKE},), {}),
        (([{"images": picture(), "text": CAKE}],), {}),
        ((iter([says(CAKE)]),), {}),
        ((picture(),), {"text": says(CAKE)}),
        (([picture()],), {"text": [CAKE, CAKE]}),
        ((picture(),), {}),
        ((), {"text": [CAKE, 7]}),
        (([{"type": "text", "text": CAKE}],), {"text": [CAKE]}),
        (([chat_part(file_of(picture()))],), {"text": [CAKE]}),
        (([file_of(picture())],), {"text": [CAKE]}),
    ],
)
def test_forms_that_are_not_read_are_refused(args: Any, kwargs: dict[str, Any], reached: list[str]) -> None:
    try:
        answer = guarded(judges())(*args, **kwargs, **GREEDY)
    except InvalidArgument:
        pass
    else:
        assert answer[0]["blocked"] is True
    assert reached == []


def test_a_broken_certifier_blocks(reached: list[str]) -> None:
    guard = Guard(Does(RuntimeError(BOMB)))
    assert guard_image_text_pipeline(pipeline(), guard)(says(CAKE))[0]["blocked"] is True
    assert reached == []


def test_the_guard_of_text_pipelines_does_not_take_it() -> None:
    with pytest.raises(InvalidArgument, match="image_text_pipeline"):
        guard_pipeline(pipeline(), Guard(Words()))


def test_attributes_are_the_pipelines() -> None:
    assert guarded().tokenizer is pipeline().tokenizer
    assert guarded().task == pipeline().task
    with pytest.raises(InvalidArgument, match="on_block"):
        guarded(on_block="silently")
