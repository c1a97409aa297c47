"""The benchmark of the server: faults that it would find, two hundred requests for real, and what its tables say."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import live
from starlette.testclient import TestClient

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "tasks" / "serving.py").exists(), reason="not here")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_requests_with_every_fault_leave_nothing_unguarded_and_nothing_lost(module: Callable[[str], Any]) -> None:
    faults = module("tasks.serving_faults")
    row = faults.measure("infusion, windows", 200, seed=1, clients=16, kills=1)
    told = {key: row[key] for key in ("unguarded", "forwarded", "lost", "crashes", "unexpected")}
    assert told == dict.fromkeys(told, 0), row
    assert row["upstream_kills"] == 1
    assert row["served"] > 5
    assert row["answered"] > 150
    assert row["health_polls"] > 0
    assert sum(row["statuses"].values()) == 200


def _case(module: Callable[[str], Any], **more: Any) -> Any:
    cases = module("tasks.serving_cases")
    return cases.Case("kind", "/v1/x", b"{}", frozenset({"200"}), **more)


@pytest.mark.parametrize(
    ("more", "said", "unguarded"),
    [
        ({}, "{said}", 1),  # a blocked request was answered by the model
        ({"is_allowed": True}, "{said}", 0),
        ({"is_allowed": True}, "{canary}", 1),
        ({"is_allowed": True}, 'data: {{"delta":{{"content":"{canary:.9}"}}}}\n\ndata: {{"content":"{rest}"}}', 1),
        ({"marks": b'"flagged":true'}, '"flagged":false', 1),
        ({"marks": b'"flagged":true'}, '"flagged":true', 0),
    ],
)
def test_what_is_unguarded_on_the_wire(
    module: Callable[[str], Any], more: dict[str, Any], said: str, unguarded: int
) -> None:
    faults, upstream = module("tasks.serving_faults"), module("faulty_upstream")
    text = said.format(said=upstream.SAID, canary=upstream.CANARY, rest=upstream.CANARY[9:])
    tally = faults.Tally()
    head = f"HTTP/1.1 200 OK\r\nx-promptguard-request-id: {'a' * 32}\r\n\r\n"
    tally.note(_case(module, **more), (head + text).encode())
    assert (tally.unguarded, tally.ids, sum(tally.unexpected.values())) == (unguarded, {"a" * 32}, 0)
    tally.note(_case(module, **more), b"HTTP/1.1 500 X\r\n\r\n")
    tally.note(_case(module, **more), b"")
    assert dict(tally.unexpected) == {"kind: 500": 1, "kind: none": 1}


def test_a_line_that_is_missing_from_the_log_is_found(module: Callable[[str], Any], tmp_path: Path) -> None:
    from promptguard.serve.audit import AuditLog
    from promptguard.serve.config import Audit

    serving, faults = module("tasks.serving"), module("tasks.serving_faults")

    async def write() -> None:
        log = AuditLog(Audit(path=tmp_path / "audit.jsonl", key=serving.AUDIT_KEY))
        for name in ("one", "two"):
            await log.append({"request": name})
        log.close()

    asyncio.run(write())
    assert faults.logged(tmp_path) == {"one", "two"}
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(faults.subprocess.CalledProcessError):
        faults.logged(tmp_path)


def test_every_kind_of_request_is_drawn_and_can_be_sent(module: Callable[[str], Any]) -> None:
    cases = module("tasks.serving_cases")
    rng = random.Random(0)
    drawn = [cases.make(rng, number, is_checked=True, refuses=False) for number in range(600)]
    assert {case.kind for case in drawn} == set(cases.KINDS)
    assert {case.leaves for case in drawn} == set(cases.Leaves)
    for case in drawn:
        head, _, body = case.sent().partition(b"\r\n\r\n")
        assert f"Content-Length: {len(case.body)}".encode() in head
        assert (body == case.body) == (case.leaves is not cases.Leaves.IN_BODY or not case.body)
    harmful = [case for case in drawn if "harmful" in case.kind or case.kind in {"filter raises", "megabyte"}]
    assert harmful
    assert not any(case.is_allowed for case in harmful)


def test_the_upstream_says_what_must_not_be_read_to_whoever_was_let_through(module: Callable[[str], Any]) -> None:
    upstream = module("faulty_upstream")
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
    for path, stream in itertools.product(paths, (False, True)):
        body = json.dumps({"prompt": "a pipe bomb", "stream": stream}).encode()
        status, kind, pieces = upstream.answer(path, body)
        assert (status, kind == "text/event-stream") == (200, stream and path != "/v1/embeddings")
        spoken = b"".join(module("tasks.serving_faults")._SPOKEN.findall(b"".join(pieces)))
        assert upstream.CANARY.encode() in (pieces[0] if len(pieces) == 1 else spoken)


def test_load_is_measured_against_a_bare_endpoint(module: Callable[[str], Any]) -> None:
    serving, bare = module("tasks.serving"), module("serving_bare")
    app = bare.bare(lambda texts: [float("bomb" in text) for text in texts], 0.5)
    with TestClient(app) as client:
        found = [client.post("/v1/certify", json={"text": text}).json() for text in ("a bomb", "a cake")]
    assert [one["flagged"] for one in found] == [True, False]
    with live(app) as url:
        row = asyncio.run(serving.ask(url, 2, 0.2, ["a", "b"]))
    assert row["requests"] > 0
    assert row["per_second"] > 0
    assert row["p50"] <= row["p95"]


def test_prompts_are_about_25_tokens_and_half_of_them_harmful(module: Callable[[str], Any]) -> None:
    serving = module("tasks.serving")
    texts = serving.prompts()
    rows = [json.loads(line) for line in serving.PROMPTS.read_text(encoding="utf-8").splitlines()]
    harmful = [row["text"] for row in rows if row["label"] == "harmful"]
    begins = [any(text.startswith(one) for one in harmful) for text in texts]
    assert begins == [number % 2 == 0 for number in range(len(texts))]
    assert len(texts) > 100
    assert all(len(text.split()) in serving.WORDS for text in texts)


def test_ratios_are_taken_to_the_better_bare_endpoint(module: Callable[[str], Any], tmp_path: Path) -> None:
    serving = module("tasks.serving")
    p50 = {serving.BARE: 10.0, serving.MERGED: 20.0, serving.GUARDED: 15.0, serving.AUDITED: 30.0}
    about = {"clients": 1, "repeat": 0, "requests": 7, "threads": 1, "load": 2.0}
    rows = [about | {"server": name, "p50": ms, "p95": 2 * ms, "per_second": 1000 / ms} for name, ms in p50.items()]
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "load.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load, faults = serving.tables(tmp_path)
    cells = {line[1]: line[5] for line in load.rows if line[0] == "1"}
    assert cells == {
        serving.BARE: "",
        serving.MERGED: "",
        serving.GUARDED: "1.50, 1.50, 1.50",
        serving.AUDITED: "3.00, 3.00, 3.00",
    }
    assert "1 to 1 repeats, at a load average of 2.0" in load.note
    assert faults.rows == []


_LAUNCH = "import uvicorn; uvicorn.Server.run = lambda *_, **__: said(); from promptguard.serve import launch as made"
_WORKER = "from promptguard.serve import app as made"


@pytest.mark.parametrize("start", [f"{_LAUNCH}; made.launch()", f"{_WORKER}; made.from_environment(); said()"])
def test_what_is_loaded_is_left_out_of_garbage_collections_before_anything_is_served(start: str) -> None:
    begin = "import gc, sys; said = lambda: print(gc.get_freeze_count() > 10_000, sys.getswitchinterval() < 0.001); "
    env = {"PGUARD_CERTIFIER__FILTER": "keyword:bomb", "PGUARD_SERVER__PORT": "0", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", begin + start], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["True", "True"]
