"""Pictures through the server and the middlewares: judged before anything is forwarded, paid for, never logged."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import Words
from PIL import Image
from pixels import NAMES, SIDE, SIGMA, chat_part, file_of, input_part, scene, tensor_of, vit, vit_folder
from serving import AUDIT_KEY, BOMB, Fake, config, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from transformers import ResNetConfig, ResNetForImageClassification
from typer.testing import CliRunner

from promptguard.cli import app as command
from promptguard.errors import LabelError, MissingDependency, PromptGuardError, WeightsError
from promptguard.guard import Guard
from promptguard.middleware.asgi import PromptGuardMiddleware
from promptguard.score.image_classifier import load_image_classifier
from promptguard.serve.audit import AuditLog
from promptguard.serve.config import Config, Picturing
from promptguard.serve.pictures import PricedPictures, load
from promptguard.serve.pool import Abandoned, Ticket, _ticket
from promptguard.serve.state import State
from promptguard.types import Verdict
from promptguard.vision.pictures import Pictures

SEA, WEAPON = (file_of(scene(kind, 700)) for kind in ("sea", "weapon"))
PIXELS = 3 * scene("sea").width * scene("sea").height
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vit_folder(tmp_path_factory.mktemp("images") / "vit")


@pytest.fixture
def images(folder: Path) -> dict[str, Any]:
    return {"filter": str(folder), "harmful": ["weapon"], "sigma": SIGMA, "samples": 200}


def chat(*content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(content)}], **more}


def words(value: str = "what is this?") -> dict[str, str]:
    return {"type": "text", "text": value}


# The server.


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_a_safe_picture_is_forwarded_byte_for_byte_and_a_harmful_one_never(images: Any, route: str) -> None:
    fake = Fake()

    def body(data: bytes) -> tuple[str, dict[str, Any]]:
        if route == "chat":
            return CHAT, chat(words(), chat_part(data, detail="low"))
        parts = [{"type": "input_text", "text": "what is this?"}, input_part(data, detail="low")]
        return "/v1/responses", {"model": "m", "input": [{"role": "user", "content": parts}]}

    with served(config(images=images), fake) as client:
        path, safe = body(SEA)
        assert client.post(path, json=safe).status_code == 200
        path, harmful = body(WEAPON)
        blocked = client.post(path, json=harmful)
    assert fake.asked == [safe]
    error = blocked.json()["error"]
    assert (blocked.status_code, error["code"]) == (400, "content_filter")
    assert error["message"] == "blocked by promptguard: the picture was flagged"
    assert error["promptguard"]["certificate"]["threat"]["unit"] == f"picture resized to {SIDE} x {SIDE}"
    assert error["promptguard"]["certificate"]["threat"]["budget"] > 0.3
    header = blocked.headers["x-promptguard-certificate"]
    assert header.startswith("kind=l2; budget=0.")
    assert f"unit=picture resized to {SIDE} x {SIDE}; confidence=0.999" in header


def test_what_was_judged_is_what_the_upstream_decodes(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[torch.Tensor] = []
    tensor = Pictures.tensor

    def spy(self: Pictures, data: bytes) -> torch.Tensor:
        judged.append(tensor(self, data))
        return judged[-1]

    monkeypatch.setattr(Pictures, "tensor", spy)
    fake = Fake()
    with served(config(images=images), fake) as client:
        for kind in ("PNG", "JPEG", "WEBP"):
            made = file_of(scene("sea", 3, (SIDE, SIDE)), kind)
            assert client.post(CHAT, json=chat(chat_part(made, kind.lower()))).status_code == 200
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in fake.asked]
    shown = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert len(judged) == 3
    assert all(torch.equal(mine, tensor_of(theirs)) for mine, theirs in zip(judged, shown, strict=True))


def test_without_the_section_every_picture_blocks(images: Any) -> None:
    fake = Fake()
    with served(config(), fake) as client:
        assert client.post(CHAT, json=chat(words(), chat_part(SEA))).json()["error"]["code"] == "content_filter"
    with served(config(images=images), fake) as client:
        for odd in (
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/never-fetched.png"}},
            chat_part(SEA + b"PK"),
            chat_part(SEA, "jpeg"),
        ):
            answer = client.post(CHAT, json=chat(words(), odd)).json()["error"]
            assert answer["code"] == "content_filter"
            assert answer["promptguard"]["reason"] == "unscannable"
    assert fake.bodies == []


def test_a_refusal_and_text_beside_a_picture(images: Any) -> None:
    fake = Fake()
    with served(config(images=images, block_mode="refusal"), fake) as client:
        assert client.post(CHAT, json=chat(chat_part(WEAPON))).json()["choices"][0]["finish_reason"] == "content_filter"
    with served(config(images=images), fake) as client:
        error = client.post(CHAT, json=chat(words("a bomb"), chat_part(SEA))).json()["error"]
    assert error["message"].endswith("the text was flagged")
    assert fake.bodies == []


def test_moderations_judge_parts(images: Any) -> None:
    with served(config(BOMB, images=images, category="violence", expose_scores=True)) as client:
        found = {
            name: client.post("/v1/moderations", json={"input": [words("hi"), chat_part(data)]}).json()["results"][0]
            for name, data in (("sea", SEA), ("weapon", WEAPON), ("odd", SEA + b"x"))
        }
        alone = client.post("/v1/moderations", json={"input": [chat_part(WEAPON)]}).json()["results"]
    assert [found[name]["flagged"] for name in found] == [False, True, True]
    assert found["sea"]["category_scores"]["violence"] == 0.0
    assert found["weapon"]["category_scores"]["violence"] > 0.9
    assert found["weapon"]["category_applied_input_types"]["violence"] == ["image", "text"]
    assert found["weapon"]["promptguard"]["parts"][-1]["is_picture"]
    assert found["weapon"]["promptguard"]["certificate"]["label"] == "harmful"
    assert [result["flagged"] for result in alone] == [True]


def test_certify_takes_pictures(images: Any) -> None:
    with served(config(BOMB, images=images)) as client:
        answer = client.post("/v1/certify", json={"messages": chat(chat_part(WEAPON))["messages"]}).json()
    assert not answer["allowed"]
    assert answer["meaning"][0].startswith(f"With any change of the picture resized to {SIDE} x {SIDE} of Euclidean")


def test_pictures_in_answers_are_still_blocked(images: Any) -> None:
    message = {"role": "assistant", "content": "hi", "images": [chat_part(SEA)]}
    fake = Fake(lambda _: JSONResponse({"choices": [{"index": 0, "message": message}]}))
    with served(config(images=images, output={"check": True}), fake) as client:
        assert client.post(CHAT, json=chat(words())).status_code == 400


# What it costs.


def test_the_price_is_votes_and_numbers_by_the_header_alone(images: Any) -> None:
    made = load(Picturing(**images))
    votes = 200 + 100
    cost = made.price(SEA)
    assert cost.checks == votes
    assert cost.characters == math.ceil((PIXELS + votes * 3 * SIDE * SIDE) / 1000)
    assert made.price(SEA[:33]) == cost  # no more than a header is there to read
    for refused in (b"x", SEA[:16] + b"\0\0\xc3\x50" * 2 + SEA[24:]):
        assert made.price(refused).checks == 0


@pytest.mark.parametrize("limits", [{"checks": 350}, {"characters": 300}])
def test_the_limits_of_a_request_are_held_before_inference(images: Any, limits: Any, monkeypatch: Any) -> None:
    asked: list[bytes] = []
    certify = PricedPictures.certify

    def spy(self: PricedPictures, x: bytes) -> Verdict:
        asked.append(x)
        return certify(self, x)

    monkeypatch.setattr(PricedPictures, "certify", spy)
    fake, other = Fake(), file_of(scene("sea", 701))
    with served(config(images=images, limits=limits), fake) as client:
        assert client.post(CHAT, json=chat(chat_part(SEA))).status_code == 200
        answer = client.post(CHAT, json=chat(chat_part(SEA), chat_part(other)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "over_budget")
    assert asked == [SEA]
    assert len(fake.bodies) == 1


def test_pictures_are_taken_from_the_bucket_of_their_key(images: Any) -> None:
    secret = "k" * 32
    # 3,100 votes on 768 numbers: 2,381 a picture, far more than the bytes of its request.
    key = {"name": "a", "sha256": hashlib.sha256(secret.encode()).hexdigest(), "work_per_minute": 5000}
    head = {"authorization": f"Bearer {secret}"}
    parts = [chat_part(file_of(scene("sea", seed, (8, 8)))) for seed in (1, 2)]
    settings = config(images={**images, "samples": 3000}, keys=[key])
    with served(settings, Fake()) as client:
        codes = [client.post(CHAT, json=chat(parts[0]), headers=head).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    with served(settings, Fake()) as client:
        codes = [client.post(CHAT, json=chat(*parts), headers=head).status_code for _ in range(2)]
    assert codes == [200, 429]


def test_refused_pictures_are_charged_for_their_bytes(images: Any) -> None:
    broken = b"\x89PNG\r\n\x1a\n" + b"x" * 5000
    with served(config(images=images, limits={"work_per_minute": 4000}), Fake()) as client:
        codes = [client.post(CHAT, json=chat(chat_part(broken))).status_code for _ in range(2)]
    assert codes == [400, 429]


def test_too_many_pictures_are_over_the_budget(images: Any) -> None:
    fake = Fake()
    parts = [chat_part(file_of(scene("sea", seed))) for seed in range(3)]
    with served(config(images={**images, "max_pictures": 2}), fake) as client:
        assert client.post(CHAT, json=chat(*parts[:2])).status_code == 200
        assert client.post(CHAT, json=chat(*parts)).status_code == 413
        assert client.post(CHAT, json=chat(*[parts[0]] * 5)).status_code == 200
    assert len(fake.bodies) == 2


def test_more_pixels_than_allowed_are_over_the_budget(images: Any) -> None:
    with served(config(images={**images, "max_pixels": 1000}), Fake()) as client:
        answer = client.post(CHAT, json=chat(chat_part(SEA)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "over_budget")


def test_votes_stop_when_nobody_waits(images: Any) -> None:
    """A picture of very many votes is left between two batches."""
    made = load(Picturing(**{**images, "samples": 10**8}))
    ticket, outcome = Ticket(60), []

    def work() -> None:
        token = _ticket.set(ticket)
        try:
            made.certify(SEA)
        except Abandoned:
            outcome.append("abandoned")
        finally:
            _ticket.reset(token)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(0.3)
    ticket.cancel()
    thread.join(20)
    assert outcome == ["abandoned"]


def test_the_deadline_is_a_503(images: Any) -> None:
    slow = {**images, "samples": 10**7}
    limits = {"seconds": 1, "checks": 10**9, "characters": 10**9}
    with served(config(images=slow, limits=limits), Fake()) as client:
        assert client.post(CHAT, json=chat(chat_part(SEA))).json()["error"]["code"] == "deadline_exceeded"


# What is written down.


def test_the_audit_log_has_a_digest_of_the_picture_and_nothing_of_it(images: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with served(config(images=images, audit={"path": str(path), "key": AUDIT_KEY}), Fake()) as client:
        for data in (SEA, WEAPON):
            client.post(CHAT, json=chat(words("hello"), chat_part(data)))
    written = path.read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["reason"] for line in lines] == ["allowed", "harmful"]
    assert lines[1]["where"] == "messages[0].content[1]"
    assert lines[1]["certificate"].startswith("kind=l2")
    assert lines[0]["cost"]["checks"] > 300
    log = AuditLog(Config.model_validate({"audit": {"path": str(tmp_path / "o.jsonl"), "key": AUDIT_KEY}}).audit)
    for line, data in zip(lines, (SEA, WEAPON), strict=True):
        assert line["texts"] == [log.digest("hello")]
        assert line["pictures"] == [log.digest(hashlib.sha256(data).hexdigest())]
        for form in (base64.b64encode(data).decode(), data.hex()):
            assert not any(form[i : i + 24] in written for i in range(0, len(form), 24))
    log.close()


# The configuration.


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes its options into the environment."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def checked(images: Any, tmp_path: Path) -> tuple[int, str]:
    path = tmp_path / "guard.yaml"
    path.write_text(json.dumps({"certifier": {"filter": "keyword:bomb"}, "images": images}))
    done = CliRunner().invoke(command, ["serve", "--check-config", "--config", str(path)])
    return done.exit_code, done.output.strip()


def test_a_good_section_is_fine(images: Any, tmp_path: Path) -> None:
    for harmful in (["weapon"], ["Weapon", "sea"], [1], ["1"]):
        assert checked({**images, "harmful": harmful}, tmp_path)[0] == 0
    assert checked({**images, "radius": 0.2}, tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filter": "/nowhere/vit"}, "there is no folder '/nowhere/vit'"),
        ({"harmful": ["bomb"]}, "no single label of the model is the one asked for: it has 0: 'meadow', 1: 'weapon'"),
        ({"harmful": [7]}, "no single label of the model"),
        ({"harmful": []}, "images.harmful: "),
        ({"harmful": [True]}, "images.harmful"),
        ({"harmful": list(NAMES.values())}, "names every class"),
        ({"sigma": 0}, "images.sigma: "),
        ({"sigma": None}, "images.sigma: "),
        ({"radius": 9.0}, "radius"),
        ({"samples": 5}, "5 samples can never certify an image"),
        ({"max_pixels": 2**27}, "images.max_pixels: "),
        ({"device": "tpu9"}, "cannot use device 'tpu9' here"),
        ({"folder": "x"}, "unknown key images.folder"),
    ],
)
def test_a_bad_section_is_one_line(images: Any, tmp_path: Path, change: Any, message: str) -> None:
    code, output = checked({**images, **change}, tmp_path)
    assert code == 2, output
    assert message in output
    assert len(output.splitlines()) == 1


def test_the_page_of_the_server_names_every_key_and_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "server.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S*) ?\|$", page, re.MULTILINE))
    fields = Picturing.model_fields
    wanted = {n: "" if f.is_required() else "null" if f.default is None else str(f.default) for n, f in fields.items()}
    assert rows == wanted


def test_environment_variables_describe_it_too(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in images.items():
        monkeypatch.setenv(f"PGUARD_IMAGES__{name.upper()}", json.dumps(value))
    monkeypatch.setenv("PGUARD_FILTER", "keyword:bomb")
    assert CliRunner().invoke(command, ["serve", "--check-config"]).exit_code == 0


def test_a_missing_extra_is_named(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("promptguard.vision.pictures", "promptguard.serve.pictures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingDependency, match=r"certified-promptguard\[images\]"):
        State.of(config(BOMB, images=images))


# The classifier's folder.


def changed(folder: Path, tmp_path: Path, name: str = "", **values: Any) -> Path:
    made = tmp_path / "changed"
    made.mkdir()
    for file in folder.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    if name:
        content = json.loads((made / name).read_text())
        content = {key: value for key, value in (content | values).items() if value != "gone"}
        (made / name).write_text(json.dumps(content))
    return made


def test_a_folder_gives_the_model_that_was_saved(folder: Path) -> None:
    found = load_image_classifier(folder)
    assert (found.labels, found.size) == (tuple(NAMES.values()), (SIDE, SIDE))
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(found.model(x), vit()(pixel_values=(x - 0.5) / 0.5).logits)


PREPROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (PREPROCESSOR, {"image_mean": [0.5]}, "a size, and a mean"),
        (PREPROCESSOR, {"size": "gone"}, "a size, and a mean"),
        (PREPROCESSOR, {"size": {"longest_edge": 5}}, "a size, and a mean"),
        (PREPROCESSOR, {"size": {"height": 0, "width": 3}}, "a size, and a mean"),
        (PREPROCESSOR, {"rescale_factor": 0.01}, "rescale_factor"),
        (PREPROCESSOR, {"do_rescale": False}, "rescale_factor"),
        (PREPROCESSOR, {"rescale_offset": True}, "rescale_factor"),
        (PREPROCESSOR, {"size": {"height": 32, "width": 32}}, "cannot read RGB pictures of 32 x 32"),
        ("config.json", {"num_channels": 1}, "does not load|lacks weights"),
        ("config.json", {"auto_map": {"AutoModel": "x.y"}}, "code of its own"),
        ("config.json", {"model_type": "bert"}, "does not load as an image classifier"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        load_image_classifier(changed(folder, tmp_path, name, **values))


def test_a_folder_without_a_head_weights_or_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    made = changed(folder, tmp_path)
    (made / PREPROCESSOR).unlink()
    with pytest.raises(WeightsError, match=PREPROCESSOR):
        load_image_classifier(made)
    vit().vit.save_pretrained(made)
    (made / PREPROCESSOR).write_bytes((folder / PREPROCESSOR).read_bytes())
    with pytest.raises(WeightsError, match=r"lacks weights|no classifier"):
        load_image_classifier(made)
    (made / "model.safetensors").rename(made / "model.bin")
    with pytest.raises(WeightsError, match="pickles can run code"):
        load_image_classifier(made)


def test_a_resnet_is_read_at_the_size_of_its_processor(tmp_path: Path) -> None:
    configure: Any = ResNetConfig
    make: Any = ResNetForImageClassification
    model = make(
        configure(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2, id2label={0: "a", 1: "b"})
    )
    model.save_pretrained(tmp_path)
    (tmp_path / PREPROCESSOR).write_text(
        json.dumps({"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32, "do_normalize": False})
    )
    found = load_image_classifier(tmp_path)
    assert found.size == (32, 32)
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(found.model(x), model.eval()(pixel_values=x).logits)
    section = Picturing(filter=tmp_path, harmful=("b",), sigma=0.5, samples=20)
    assert load(section).certify(SEA).label is not None
    with pytest.raises(LabelError):
        load(Picturing(filter=tmp_path, harmful=("c",), sigma=0.5))


# Middlewares.


@pytest.fixture
def guard(images: Any) -> Guard:
    return Guard(Words(), images=load(Picturing(**images)))


@pytest.fixture
def asgi(guard: Guard) -> tuple[TestClient, list[Any]]:
    given: list[Any] = []

    async def reply(request: Request) -> Response:
        given.append(await request.json())
        return JSONResponse({})

    app = Starlette(routes=[Route("/v1/chat/completions", reply, methods=["POST"])])
    app.add_middleware(PromptGuardMiddleware, guard=guard)
    return TestClient(app), given


def test_the_asgi_middleware_judges_pictures(asgi: tuple[TestClient, list[Any]]) -> None:
    client, given = asgi
    safe = chat(words(), chat_part(SEA))
    assert client.post(CHAT, json=safe).status_code == 200
    assert client.post(CHAT, json=chat(words(), chat_part(WEAPON))).status_code == 400
    assert client.post(CHAT, json=chat(words("a bomb"), chat_part(SEA))).status_code == 400
    assert given == [safe]


def test_errors_of_a_section_are_ours(tmp_path: Path) -> None:
    with pytest.raises(PromptGuardError):
        load(Picturing(filter=tmp_path, harmful=(1,), sigma=1.0))
