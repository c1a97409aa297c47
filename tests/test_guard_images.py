"""A guard with `images`: exact forms are judged, everything else blocks as before, and nothing gets past the policy."""

from __future__ import annotations

import base64
import copy
import functools
import json
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from doubles import SAFE, Words, text, user
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pixels import SIDE, SIGMA, chat_part, file_of, input_part, processor, scene, url_of, vit

from promptguard.attack.images import OnGrid, SmoothedPGD
from promptguard.certify.smooth_image import GaussianSmoothing, ImageSampling
from promptguard.errors import Blocked, BudgetExceeded, PictureRefused, PictureTooLarge
from promptguard.guard import Action, Decision, Guard, Policy, Reason
from promptguard.guard.chat_request import read_request
from promptguard.guard.images import picture
from promptguard.guard.strict_json import dump, parse
from promptguard.types import Label, Verdict
from promptguard.vision.models import PretrainedClassifier
from promptguard.vision.pictures import Pictures

SEA, MEADOW, WEAPON = (file_of(scene(kind, 500)) for kind in ("sea", "meadow", "weapon"))
DOT, OTHER_DOT = (file_of(Image.new("RGB", (1, 1), shade)) for shade in ((1, 2, 3), (4, 5, 6)))
LET = Action.ALLOW
ALLOWING = Policy(on_error=LET, on_abstain=LET, on_over_budget=LET, on_unscannable=LET)


@functools.cache
def pictures(radius: float | None = None) -> Pictures:
    model = PretrainedClassifier(vit(), processor()).eval()
    sampling = ImageSampling(samples=500, selection=50)
    made = GaussianSmoothing(model, SIGMA, radius=radius, harmful={1}, sampling=sampling, rng=random.Random(0))
    return Pictures(made, (SIDE, SIDE), max_pictures=3)


@dataclass
class Says:
    """Answers, or raises, what it is told; remembers what it was shown."""

    outcome: Any = SAFE
    max_pictures: int = 3
    seen: list[bytes] = field(default_factory=list)

    def certify(self, x: bytes) -> Verdict:
        self.seen.append(x)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        found: Verdict = self.outcome
        return found


def check(*content: Any, images: Any = None, policy: Policy | None = None, role: str = "user") -> Decision:
    return Guard(Words(), policy, images or pictures()).check([{"role": role, "content": list(content)}])


# What is judged.


def test_a_harmful_picture_is_blocked_with_a_certificate() -> None:
    for part in (chat_part(WEAPON), input_part(WEAPON)):
        decision = check(text("what is this?"), part)
        assert (decision.allowed, decision.reason) == (False, Reason.HARMFUL)
        assert decision.parts[-1].where == "messages[0].content[1]"
        assert decision.parts[-1].is_picture
        assert decision.certificate is not None
        assert decision.certificates == (decision.certificate,)
        assert decision.certificate.label is Label.HARMFUL
        assert decision.certificate.threat.budget > 0.5
        assert decision.certificate.confidence == 0.999
        assert base64.b64encode(WEAPON)[:40].decode() not in json.dumps(decision.to_dict())


def test_a_safe_picture_passes_and_is_judged_alone() -> None:
    decision = check(text("what is this?"), chat_part(SEA), chat_part(MEADOW))
    assert decision.allowed
    assert [part.is_picture for part in decision.parts] == [False, True, True]
    assert check(chat_part(SEA)).allowed  # no text is needed beside it


def test_one_harmful_picture_among_safe_ones_blocks() -> None:
    assert not check(chat_part(SEA), text("and"), chat_part(WEAPON)).allowed


def test_text_beside_a_picture_is_checked_alone_and_joined() -> None:
    images = Says()
    assert check(text("a bomb"), chat_part(SEA), images=images).reason is Reason.HARMFUL
    assert check(text("a bo"), chat_part(SEA), text("mb"), images=images).reason is Reason.HARMFUL
    assert images.seen == []  # texts come first
    found = Guard(Words("bo\nmb"), images=images).check([user([text("a bo"), chat_part(SEA)]), user("mb")])
    assert (found.allowed, found.parts[-1].where) == (False, "conversation")


KNOWN = [
    {**part, **more}
    for more in ({}, {"cache_control": {"type": "ephemeral"}})
    for part in (
        chat_part(DOT), *(chat_part(DOT, detail=word) for word in ("auto", "low", "high", "original")),
        input_part(DOT), *(input_part(DOT, detail=word) for word in ("auto", "low", "high", "original")),
    )
]  # fmt: skip


@pytest.mark.parametrize("part", KNOWN)
def test_known_forms_are_judged(part: Any) -> None:
    images = Says()
    assert check(part, images=images).allowed
    assert images.seen == [DOT]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(kind: str) -> None:
    for name, allowed in (("sea", True), ("weapon", False)):
        assert check(chat_part(file_of(scene(name, 501), kind.upper()), kind)).allowed is allowed


URL = url_of(DOT)
OTHER = [
    chat_part(DOT, "jpeg"),  # another type than the file's
    chat_part(file_of(scene("sea"), "JPEG"), "png"),
    chat_part(file_of(scene("sea"), "WEBP"), "jpeg"),
    chat_part(file_of(scene("sea"), "GIF"), "gif"),
    chat_part(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml"),
    chat_part(b""),
    *(
        {"type": "image_url", "image_url": {"url": url}}
        for url in (
            "https://x.org/i.png", "http://127.0.0.1/i.png", "file:///i.png", "/i.png", "i.png", "", "gs://x/i.png",
            URL + " ", " " + URL, URL + "\n", URL.replace("base64,", "base64, "), URL[:80] + "\n" + URL[80:],
            URL.replace("+", "%2B") if "+" in URL else URL.replace("A", "%41", 1), URL.replace("data:", "DATA:"),
            URL.replace("image/png", "image/PNG"), URL.replace("image/png", "image/jpg"), URL + "#x", URL + "?x",
            URL.replace(";base64", ";charset=x;base64"), URL.replace(";base64", ""), URL.replace("image/png", ""),
            URL.rstrip("=") + "=" * 3, URL + "AAAA====", URL[:-1], URL.replace("/", "_"), URL.replace("A", "А", 1),
            URL.replace("data:", "data://"), f"{URL},{URL}", URL + "\0",
            "data:image/png;base64,iVBORw0KGgp=",  # the last letter has bits that no byte has
        )
    ),
    {"type": "image_url", "image_url": URL},
    {"type": "image_url", "image_url": [{"url": URL}]},
    {"type": "image_url", "image_url": {"url": [URL]}},
    {"type": "image_url", "image_url": {"url": None}},
    {"type": "image_url", "image_url": {"url": URL, "format": "image/png"}},
    {"type": "image_url", "image_url": {"url": URL, "detail": ["low"]}},
    {"type": "image_url", "image_url": {"url": URL, "detail": None}},
    {"type": "image_url", "image_url": {"url": URL}, "detail": "low"},
    {"type": "image_url", "image_url": {"url": URL}, "uuid": "u"},
    {"type": "image_url", "image_url": {"url": URL}, "text": "hi"},
    {"type": "image_url", "image_url": {"url": URL}, "cache_control": {"type": "a bomb"}},
    {"type": "image_url", "image_url": {"URL": URL}},
    {"type": "IMAGE_URL", "image_url": {"url": URL}},
    {"type": "input_image", "image_url": {"url": URL}},
    {"type": "input_image", "image_url": URL, "file_id": "file-1"},
    {"type": "input_image", "file_id": "file-1"},
    {"type": "input_image", "image_url": None, "file_id": "file-1"},
    {"type": "image", "image_url": {"url": URL}},
    {"type": "image", "image": URL},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URL[22:]}},
    {"type": "input_file", "file_data": URL},
    {"type": "video_url", "video_url": {"url": URL}},
    {"image_url": {"url": URL}},
    {"type": "text", "text": "hi", "image_url": {"url": URL}},
    {"type": ["image_url"], "image_url": {"url": URL}},
    [chat_part(DOT)],
]  # fmt: skip


@pytest.mark.parametrize("part", OTHER, ids=range(len(OTHER)))
def test_every_other_form_is_unscannable(part: Any) -> None:
    images = Says()
    decision = check(text("hi"), part, images=images)
    assert (decision.allowed, decision.reason) == (False, Reason.UNSCANNABLE)
    assert images.seen == []


ELSEWHERE = [
    {"messages": [user("hi", image_url={"url": URL})]},
    {"messages": [user("hi", images=[URL])]},
    {"messages": [user("hi", annotations=[chat_part(SEA)])]},
    {"messages": [user("hi", reasoning=[chat_part(SEA)])]},
    {"messages": [user(chat_part(SEA))]},
    {"messages": [{"role": "assistant", "tool_calls": [chat_part(SEA)]}]},
    {"messages": [{"role": "tool", "content": [{"type": "tool_result", "content": [chat_part(SEA)]}]}]},
    {"messages": [user("hi")], "tools": [chat_part(SEA)]},
    {"messages": [user("hi")], "tools": [{"type": "function", "function": {"name": "f", "image_url": {"url": URL}}}]},
    {"messages": [user("hi")], "prediction": {"type": "content", "content": [chat_part(SEA)]}},
    {"messages": [user("hi")], "nobody_knows": [chat_part(SEA)]},
    {"messages": [user("hi")], "image_url": {"url": URL}},
    {"prompt": "hi", "images": [URL]},
    {"prompt": [chat_part(SEA)]},
    {"input": [{"type": "function_call_output", "call_id": "c", "output": {"image_url": URL}}]},
    {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}]},
    {"input": [{"type": "image_generation_call", "result": URL}]},
]


@pytest.mark.parametrize("body", ELSEWHERE, ids=range(len(ELSEWHERE)))
def test_pictures_where_none_belong_are_unscannable(body: Any) -> None:
    request, images = read_request(body), Says()
    decision = Guard(Words(), images=images).check(request.messages, context=request.context)
    assert not decision.allowed
    assert decision.reason in {Reason.UNSCANNABLE, Reason.ERROR}
    lenient = Guard(Words(), ALLOWING, images).check(request.messages, context=request.context)
    assert lenient.reason is not Reason.ALLOWED
    assert images.seen == []


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user([chat_part(WEAPON)])]},
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": [chat_part(WEAPON)]}]},
        {"messages": [{"role": "assistant", "content": [chat_part(WEAPON)]}, user("hi")]},
        {"messages": [{"role": "system", "content": [chat_part(WEAPON)]}]},
        {"input": [{"role": "user", "content": [input_part(WEAPON)]}]},
        {"input": [{"type": "message", "role": "user", "content": [input_part(WEAPON)]}]},
        {"input": [input_part(WEAPON)]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [input_part(WEAPON)]}]},
    ],
)
def test_pictures_of_every_role_are_judged(body: Any) -> None:
    request = read_request(body)
    decision = Guard(Words(), images=pictures()).check(request.messages, context=request.context)
    assert decision.reason is Reason.HARMFUL
    assert decision.parts[-1].is_picture


def test_words_of_a_form_that_is_not_read_are_not_lost() -> None:
    for odd in (
        {**chat_part(SEA), "alt": "a bomb"},
        chat_part(SEA, alt="a bomb"),
        input_part(SEA, detail="a bomb"),
        {**chat_part(SEA), "cache_control": {"type": "ephemeral", "ttl": "a bomb"}},
    ):
        found = check(odd, images=Says(), policy=ALLOWING)
        assert found.parts[0].reason is Reason.UNSCANNABLE
        assert (found.allowed, found.parts[-1].reason) == (False, Reason.HARMFUL)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(chat_part(DOT))
@given(st.data())
def test_what_is_not_exactly_known_is_unscannable(drawn: Any) -> None:
    """Any change of a known form is a known form again, or is not judged."""
    part = copy.deepcopy(drawn if isinstance(drawn, dict) else drawn.draw(st.sampled_from(KNOWN)))
    for _ in range(0 if isinstance(drawn, dict) else drawn.draw(st.integers(0, 3))):
        inside = part.get("image_url")
        at = inside if isinstance(inside, dict) and drawn.draw(st.booleans()) else part
        key = drawn.draw(
            st.sampled_from([*at, "detail", "url", "uuid", "text", "type", "cache_control", "file_id", "x"])
        )
        values: list[Any] = [
            None,
            "auto",
            "low",
            "",
            URL,
            url_of(OTHER_DOT),
            {"url": URL},
            [],
            {},
            "image_url",
            "input_image",
            1,
            True,
        ]
        values += [URL[:-3], URL + "=", {"type": "ephemeral"}, "data:,x"]
        if drawn.draw(st.booleans()):
            at[key] = drawn.draw(st.sampled_from(values) | st.text(max_size=3))
        else:
            at.pop(key, None)
    images = Says()
    decision = check(text("hi"), part, images=images)
    found = picture(part)
    plain = json.loads(json.dumps(part).replace(url_of(OTHER_DOT), URL))
    is_text = part.get("type") in ("text", "input_text", "output_text", "refusal")
    if any(plain == known for known in KNOWN):
        assert found in (DOT, OTHER_DOT)
        assert decision.allowed
        assert images.seen == [found]
    elif not is_text:
        assert found is None
        assert decision.reason is Reason.UNSCANNABLE
        assert images.seen == []


def test_without_images_every_picture_is_unscannable() -> None:
    for part in KNOWN:
        decision = Guard(Words()).check([user([text("hi"), part])])
        assert (decision.allowed, decision.reason) == (False, Reason.UNSCANNABLE)


# What follows.


def test_a_policy_for_the_unscannable_lets_no_harmful_picture_pass() -> None:
    assert not check(chat_part(WEAPON), policy=ALLOWING).allowed
    assert not check(chat_part(WEAPON), {"type": "image", "image": "x"}, policy=ALLOWING).allowed
    assert check({"type": "image", "image": "x"}, policy=ALLOWING).allowed


OUTCOMES = [
    (PictureRefused("x"), Reason.UNSCANNABLE, "PictureRefused"),
    (PictureTooLarge(5), Reason.OVER_BUDGET, "PictureTooLarge"),
    (BudgetExceeded(5), Reason.OVER_BUDGET, "BudgetExceeded"),
    (RuntimeError("canary"), Reason.ERROR, "RuntimeError"),
    (MemoryError(), Reason.ERROR, "MemoryError"),
    (None, Reason.ERROR, "FilterError"),
    (True, Reason.ERROR, "FilterError"),
    (replace(SAFE, label=0), Reason.ERROR, "FilterError"),
    (replace(SAFE, label=1), Reason.ERROR, "FilterError"),
    (replace(SAFE, score=float("nan")), Reason.ERROR, "FilterError"),
    (replace(SAFE, label=Label.ABSTAIN), Reason.ABSTAIN, None),
]


@pytest.mark.parametrize(("outcome", "reason", "error"), OUTCOMES)
def test_whatever_is_not_a_clean_safe_blocks(outcome: Any, reason: Reason, error: str | None) -> None:
    decision = check(text("hi"), chat_part(SEA), images=Says(outcome))
    assert (decision.allowed, decision.reason, decision.error) == (False, reason, error)
    assert decision.parts[-1].is_picture
    assert "canary" not in json.dumps(decision.to_dict())


def test_class_indices_of_a_real_certifier_block() -> None:
    """A smoothed classifier that does not merge its classes: class 0 is no "safe"."""
    model = PretrainedClassifier(vit(), processor()).eval()
    made = GaussianSmoothing(model, SIGMA, sampling=ImageSampling(samples=200, selection=20))
    decision = check(chat_part(MEADOW), images=Pictures(made, (SIDE, SIDE)))
    assert (decision.allowed, decision.reason, decision.error) == (False, Reason.ERROR, "FilterError")


def test_what_cannot_be_decoded_is_unscannable_and_a_bomb_is_over_budget() -> None:
    assert check(chat_part(SEA + b"x")).reason is Reason.UNSCANNABLE
    bomb = SEA[:16] + b"\0\0\xc3\x50" * 2 + SEA[24:]  # says that it is 50,000 x 50,000
    decision = check(chat_part(bomb))
    assert (decision.allowed, decision.reason, decision.error) == (False, Reason.OVER_BUDGET, "PictureTooLarge")


def test_equal_pictures_are_judged_once_and_different_ones_are_counted() -> None:
    images = Says()
    assert check(*[chat_part(SEA)] * 5, images=images).allowed
    assert images.seen == [SEA]
    parts = [chat_part(file_of(scene("sea", seed))) for seed in range(4)]
    assert check(*parts[:3], images=Says()).allowed
    images = Says()
    decision = check(*parts, images=images)
    assert (decision.allowed, decision.reason) == (False, Reason.OVER_BUDGET)
    assert images.seen == []


def test_pictures_of_trusted_roles_are_as_trusted_as_their_text() -> None:
    trusting, images = Policy(trusted_roles=frozenset({"system"})), Says()
    guard = Guard(Words(), trusting, images)
    chat = [{"role": "system", "content": [text("a bomb"), chat_part(WEAPON)]}, user("hi")]
    assert guard.check(chat).allowed
    assert images.seen == []
    assert not Guard(Words(), images=pictures()).check([{**chat[0], "content": [chat_part(WEAPON)]}]).allowed


def test_an_unknown_role_is_unscannable_and_its_picture_is_judged_all_the_same() -> None:
    assert check(chat_part(SEA), role="wizard").reason is Reason.UNSCANNABLE
    assert check(chat_part(WEAPON), role="wizard", policy=ALLOWING).parts[-1].reason is Reason.HARMFUL


def test_what_was_read_is_what_is_forwarded() -> None:
    """The bytes in the body that goes on are those that were judged, whatever spelling the client used."""
    images = Says()
    written = json.dumps({"messages": [user([chat_part(SEA)])]}).replace("/", "\\/").replace("A", "\\u0041")
    value: Any = parse(written.encode())
    request = read_request(value)
    assert Guard(Words(), images=images).check(request.messages).allowed
    forwarded = json.loads(dump(value))["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(forwarded.removeprefix("data:image/png;base64,")) == images.seen[0] == SEA


def test_pictures_in_messages_of_langchain_are_judged() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    runnables = pytest.importorskip("langchain_core.runnables")
    from promptguard.middleware.langchain import PromptGuardRunnable

    model = runnables.RunnableLambda(lambda _: "reached")
    chain = PromptGuardRunnable(guard=Guard(Words(), images=pictures())) | model
    assert chain.invoke([messages.HumanMessage([text("hi"), chat_part(SEA)])]) == "reached"
    for part in (chat_part(WEAPON), {"type": "image", "base64": URL[22:], "mime_type": "image/png"}):
        with pytest.raises(Blocked):
            chain.invoke([messages.HumanMessage([text("hi"), part])])


def test_the_guard_needs_neither_torch_nor_pillow() -> None:
    probe = "import sys, promptguard.guard.images; print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


# Attacks inside the certificate.


def test_no_change_within_the_radius_gets_a_harmful_picture_through() -> None:
    """Noise, and an adaptive gradient attack, as pictures of whole 256ths that the guard reads itself."""
    model = PretrainedClassifier(vit(), processor()).eval()
    plain = scene("weapon", 502, (SIDE, SIDE))
    decision = check(chat_part(file_of(plain)))
    assert decision.certificate is not None
    radius = decision.certificate.threat.budget
    x = pictures().tensor(file_of(plain))[None]
    attack = OnGrid(SmoothedPGD(model, SIGMA, domain=(0.0, 1.0)), 255)
    generator = torch.Generator().manual_seed(0)

    def attacked(within: float) -> torch.Tensor:
        return attack.run(x, torch.tensor([1]), within, generator)

    noises = (torch.randn(x.shape, generator=generator) for _ in range(10))
    noised = [OnGrid(Moves(radius * noise / noise.norm()), 255).run(x, x, radius, generator) for noise in noises]
    near = [attacked(radius), attacked(0.9 * radius), *noised]
    assert max(float((tensor - x).norm()) for tensor in near) > 0.9 * radius
    for tensor in near:
        file = saved(tensor)
        assert float((pictures().tensor(file) - x[0]).norm()) <= radius
        assert not check(chat_part(file)).allowed
    assert check(chat_part(saved(attacked(20 * radius)))).allowed  # farther out the attack gets through: it is one


@dataclass
class Moves:
    change: torch.Tensor

    def run(self, images: torch.Tensor, *_: Any) -> torch.Tensor:
        return (images + self.change).clamp(0, 1)


def saved(image: torch.Tensor) -> bytes:
    pixels = (image[0] * 255).round().permute(1, 2, 0)
    return file_of(Image.fromarray(pixels.numpy().astype(np.uint8)))
