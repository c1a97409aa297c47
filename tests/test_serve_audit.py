"""The audit log: a line for every decision before its answer, and no change to it goes unnoticed."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from serving import AUDIT_KEY, BASE, CANARY, Fake, ask, config, served
from typer.testing import CliRunner

from promptguard.cli import app
from promptguard.serve import audit
from promptguard.serve.audit import AuditLog
from promptguard.serve.chain import AuditError, Link, encode, head_path, write_head
from promptguard.serve.config import Audit, Fsync
from promptguard.serve.verify import verify

KEY = AUDIT_KEY.encode()


def section(path: Path, **more: Any) -> Audit:
    return Audit(path=path, key=SecretStr(AUDIT_KEY), **more)


def write(path: Path, count: int, **more: Any) -> None:
    """Lines from many tasks at once."""

    async def all_of_them() -> None:
        log = AuditLog(section(path, **more))
        await asyncio.gather(*(log.append({"n": n, "log": path.name, "pad": "x" * 40}) for n in range(count)))
        await asyncio.to_thread(log.close)

    asyncio.run(all_of_them())


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def test_every_line_is_there_in_order_over_restarts_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        write(path, 40, max_bytes=4096)
    assert len(files(tmp_path)) > 2
    found = verify(files(tmp_path)[::-1], KEY)
    assert (found.link.lines, found.since) == (120, 0)
    lines = [json.loads(line) for file in files(tmp_path) for line in file.read_text().splitlines()]
    assert sorted(line["seq"] for line in lines) == list(range(120))
    assert sorted(line["n"] for line in lines) == sorted([*range(40)] * 3)


def _edit(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b'"n":', b'"m":'), *lines[4:]]


def _reseal(lines: list[bytes]) -> list[bytes]:
    """Another line in its place, with a code of another key."""
    old = json.loads(lines[3])
    line, _ = encode({"n": 7}, Link(old["seq"], old["prev"]), b"another key")
    return [*lines[:3], line, *lines[4:]]


FAULTS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edit": _edit,
    "edit the last line": lambda lines: [*lines[:-1], lines[-1].replace(b'"n":', b'"m":')],
    "forge": _reseal,
    "delete the first": lambda lines: lines[1:],
    "delete one": lambda lines: lines[:4] + lines[5:],
    "delete the last": lambda lines: lines[:-1],
    "delete all": lambda lines: [],
    "swap": lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    "repeat": lambda lines: [*lines[:5], lines[4], *lines[5:]],
    "cut a line": lambda lines: [*lines[:-1], lines[-1][:-5]],
    "cut a line feed": lambda lines: [*lines[:-1], lines[-1][:-1]],
    "something else": lambda lines: [*lines, b"hello\n"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tampering_is_found(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 9)
    assert verify([path], KEY).link.lines == 9
    path.write_bytes(b"".join(FAULTS[fault](path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AuditError):
        verify([path], KEY)


def test_a_line_of_another_log_with_the_same_key_is_found(tmp_path: Path) -> None:
    path, other = tmp_path / "audit.jsonl", tmp_path / "audit-1.jsonl"
    write(path, 5)
    write(other, 5)
    lines, others = (log.read_bytes().splitlines(keepends=True) for log in (path, other))
    path.write_bytes(b"".join([*lines[:2], others[2], *lines[3:]]))
    with pytest.raises(AuditError, match="does not follow"):
        verify([path], KEY)


def test_every_byte_counts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 2)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(AuditError):
            verify([path], KEY)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    for count in (30, 30, 1):
        write(tmp_path / "audit.jsonl", count, max_bytes=4096)
    parts = sorted(files(tmp_path), key=lambda part: json.loads(part.read_text().splitlines()[0])["seq"])
    assert len(parts) >= 3
    for left_out in parts:
        with pytest.raises(AuditError):
            verify([part for part in parts if part != left_out], KEY)
    rest = verify(parts[1:], KEY, partial=True)
    assert 0 < rest.since < rest.link.lines == 61
    with pytest.raises(AuditError):
        verify([parts[0], *parts[2:]], KEY, partial=True)


def test_a_head_is_believed_only_if_it_is_ours_and_a_count_finds_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 5)
    *lines, cut = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    last = json.loads(cut)
    write_head(path, Link(last["seq"], last["prev"]), KEY)  # put back together with the log
    assert verify([path], KEY).link.lines == 4
    with pytest.raises(AuditError, match="4 of 5"):
        verify([path], KEY, expected=5)
    write_head(path, Link(1, "0" * 64), b"another key")
    with pytest.raises(AuditError, match="head"):
        verify([path], KEY)
    head_path(path).unlink()
    with pytest.raises(AuditError, match="no head file"):
        verify([path], KEY)
    assert verify([path], KEY, expected=4).link.lines == 4


def test_an_unfinished_line_is_dropped_at_the_start_and_a_cut_log_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seq": 5, "un')
    write(path, 1)
    assert verify([path], KEY).link.lines == 6
    path.write_bytes(whole)
    with pytest.raises(AuditError, match="shorter than its head"):
        AuditLog(section(path))
    path.write_bytes(whole + b"hello\n")
    with pytest.raises(AuditError, match="last line"):
        AuditLog(section(path))


def test_a_line_that_the_head_missed_belongs_to_the_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    head = head_path(path).read_bytes()
    write(path, 1)
    head_path(path).write_bytes(head)  # the process died between the two writes
    write(path, 1)
    assert verify([path], KEY).link.lines == 5


def test_two_processes_have_a_log_each(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first = AuditLog(section(path), slots=2)
    second = AuditLog(section(path), slots=2)
    assert (first.path.name, second.path.name) == ("audit.jsonl", "audit-1.jsonl")
    with pytest.raises(AuditError, match="in use"):
        AuditLog(section(path), slots=2)
    first.close()
    third = AuditLog(section(path), slots=2)
    assert third.path == path
    second.close()
    third.close()


def test_a_log_that_cannot_be_written_fails_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "disk full")

    path = tmp_path / "audit.jsonl"
    fake = Fake()
    settings = config(audit={"path": str(path), "key": AUDIT_KEY})
    with served(settings, fake) as client:
        assert client.post("/v1/chat/completions", json=ask()).status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            answer = client.post("/v1/chat/completions", json=ask())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "audit_failed")
        assert client.post("/v1/chat/completions", json=ask()).status_code == 200
    assert len(fake.bodies) == 2
    assert verify([path], KEY).link.lines == 2


def test_requests_are_logged_without_their_text_before_they_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    seen: list[int] = []

    def reply(_body: dict[str, Any]) -> Any:
        from starlette.responses import JSONResponse

        seen.append(path.read_bytes().count(b"\n"))
        return JSONResponse({"choices": [{"index": 0, "message": {"role": "assistant", "content": f"{CANARY} bomb"}}]})

    settings = config(audit={"path": str(path), "key": AUDIT_KEY, "fsync": "rotation"}, output={"check": True})
    with served(settings, Fake(reply)) as client:
        allowed = client.post("/v1/chat/completions", json=ask(CANARY))
        client.post("/v1/chat/completions", json=ask(f"{CANARY} bomb"))
        client.post("/v1/chat/completions", json=[CANARY])
    assert seen == [1]
    assert CANARY not in path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["request", "output", "request", "refused"]
    assert [line.get("reason") for line in lines] == ["allowed", "harmful", "harmful", None]
    assert lines[0]["request"] == lines[1]["request"] == allowed.headers["x-promptguard-request-id"]
    assert lines[2]["where"] == "messages[0]"
    assert lines[2]["certificate"].startswith("kind=suffix")
    assert lines[3]["fault"] == "invalid_request"
    log = AuditLog(section(tmp_path / "other.jsonl"))
    assert lines[0]["texts"] == [log.digest(CANARY)]  # who has the key can ask whether a text was seen
    log.close()
    assert verify([path], KEY).link.lines == 4


def test_every_decision_of_a_request_has_a_line_with_its_own_texts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    keys = [{"name": "a", "sha256": hashlib.sha256(b"secret").hexdigest()}]
    settings = config(audit={"path": str(path), "key": AUDIT_KEY}, keys=keys)
    body = {"model": "m", "input": ["a cake", "a bomb", "a tart"]}
    with served(settings, Fake()) as client:
        answer = client.post("/v1/embeddings", json=body, headers={"x-api-key": "secret"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    log = AuditLog(section(tmp_path / "other.jsonl"))
    assert [line["texts"] for line in lines] == [[log.digest(text)] for text in ("a cake", "a bomb", "a tart")]
    log.close()
    assert [line["action"] for line in lines] == ["allow", "block", "allow"]
    assert {line["key"] for line in lines} == {"a"}
    assert {line["request"] for line in lines} == {answer.headers["x-promptguard-request-id"]}


@pytest.mark.parametrize(("action", "verdict"), [("allow", "error_allowed"), ("block", "error_blocked")])
def test_an_error_is_said_whatever_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, verdict: str
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("promptguard.serve.checks.Watched.certify", breaks)
    path = tmp_path / "audit.jsonl"
    settings = config(audit={"path": str(path), "key": AUDIT_KEY}, policy={"on_error": action})
    with served(settings, Fake()) as client:
        assert client.post("/v1/chat/completions", json=ask()).headers["x-promptguard-verdict"] == verdict
    line = json.loads(path.read_text())
    assert (line["action"], line["reason"], line["error"]) == (action, "error", "RuntimeError")


def test_no_line_is_lost_under_load(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 500, fsync=Fsync.ROTATION, max_bytes=20_000)
    assert verify(files(tmp_path), KEY).link.lines == 500


# What goes wrong on the way.


def one_after_another(
    path: Path, count: int, before: Callable[[int], None] = lambda _n: None, **more: Any
) -> list[str]:
    """Lines one at a time, each answered in seconds: "ok", or why it was not written."""

    async def all_of_them() -> list[str]:
        log, found = AuditLog(section(path, **more)), []
        for n in range(count):
            before(n)
            try:
                await asyncio.wait_for(log.append({"n": n, "pad": "x" * 400}), 5)
            except AuditError as error:
                found.append(str(error))
            else:
                found.append("ok")
        await asyncio.to_thread(log.close)
        return found

    return asyncio.run(all_of_them())


def test_a_new_log_is_not_begun_beside_older_files_of_another(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert one_after_another(path, 20, max_bytes=4096) == ["ok"] * 20
    old = {file: file.read_bytes() for file in files(tmp_path) if file != path}
    assert old
    path.rename(tmp_path / "audit.jsonl.bak")
    head_path(path).rename(tmp_path / "audit.jsonl.head.bak")
    with pytest.raises(AuditError, match="move all its files away"):
        AuditLog(section(path, max_bytes=4096))
    assert {file: file.read_bytes() for file in files(tmp_path)} == old
    write(tmp_path / "audit-1.jsonl", 3)  # the log of another process is another log
    for file in old:
        file.rename(file.with_suffix(".bak"))
    write(path, 3)
    assert verify([path], KEY).link.lines == 3


def test_a_full_file_takes_a_name_that_no_file_has(tmp_path: Path) -> None:
    path, taken = tmp_path / "audit.jsonl", tmp_path / "audit.000000000000.jsonl"
    write(path, 1)
    taken.write_text("somebody else's")
    assert one_after_another(path, 12, max_bytes=4096) == ["ok"] * 12
    assert taken.read_text() == "somebody else's"
    assert (tmp_path / "audit.000000000000.1.jsonl").exists()
    assert verify([file for file in files(tmp_path) if file != taken], KEY).link.lines == 13


def test_a_full_file_is_named_by_its_first_line_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    one_after_another(path, 12, max_bytes=4096)
    named = [file for file in files(tmp_path) if file != path]
    assert [file.name for file in named] == ["audit.000000000000.jsonl"]
    assert json.loads(named[0].read_text().splitlines()[0])["seq"] == 0


@pytest.mark.parametrize("call", ["rename", "open"])
def test_a_file_that_cannot_be_closed_goes_on(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    fails: list[Path] = []
    right = getattr(Path, call)

    def wrong(self: Path, *args: Any, **more: Any) -> Any:
        if self == path and len(fails) < 2:
            fails.append(self)
            raise OSError(24, "not now")
        return right(self, *args, **more)

    def begin(n: int) -> None:
        if n == 0:  # the log is open
            monkeypatch.setattr(Path, call, wrong)

    assert one_after_another(path, 16, begin, max_bytes=4096) == ["ok"] * 16
    assert len(fails) == 2
    assert caplog.text.count("a full file could not be closed") == 2
    assert len(files(tmp_path)) == 2
    assert path.stat().st_size < 4096
    assert verify(files(tmp_path), KEY).link.lines == 16


def test_a_log_whose_process_died_before_its_first_head_is_taken_up_and_one_without_a_head_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(section(path)).close()
    head = head_path(path).read_bytes()
    write(path, 1)
    head_path(path).write_bytes(head)  # the process died between the line and its head
    assert verify([path], KEY).link.lines == 1
    write(path, 1)
    assert verify([path], KEY).link.lines == 2
    head_path(path).unlink()
    with pytest.raises(AuditError, match="no head"):
        AuditLog(section(path))


def test_a_cut_log_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    cut = path.read_bytes()[:-5]
    path.write_bytes(cut)
    with pytest.raises(AuditError, match="shorter than its head"):
        AuditLog(section(path))
    assert path.read_bytes() == cut


def test_a_head_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 2)
    for content in (b"", path.read_bytes().splitlines(keepends=True)[-1]):
        head_path(path).write_bytes(content)
        for take in (lambda: AuditLog(section(path)), lambda: verify([path], KEY)):
            with pytest.raises(AuditError, match="head of"):
                take()
    head_path(path).unlink()
    head_path(path).mkdir()
    with pytest.raises(AuditError, match="cannot read the head"):
        verify([path], KEY)


@pytest.mark.parametrize(
    ("fsync", "per_line"), [(Fsync.ALWAYS, ["audit.jsonl", "audit.jsonl.head.new"]), (Fsync.ROTATION, [])]
)
def test_lines_then_heads_are_forced_to_the_disk(
    tmp_path: Path, fsync: Fsync, per_line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[str] = []
    right = os.fsync

    def note(file: int) -> None:
        forced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        right(file)

    monkeypatch.setattr(os, "fsync", note)
    one_after_another(tmp_path / "audit.jsonl", 3, fsync=fsync)
    assert forced == ["audit.jsonl.head.new", tmp_path.name, *per_line * 3]
    forced.clear()
    one_after_another(tmp_path / "audit.jsonl", 1, fsync=fsync, max_bytes=4096)
    one_after_another(tmp_path / "audit.jsonl", 3, fsync=Fsync.ROTATION, max_bytes=4096)
    assert "audit.jsonl" not in forced[1 + len(per_line) :]
    one_after_another(tmp_path / "audit.jsonl", 2, fsync=Fsync.ROTATION, max_bytes=4096)
    assert len(files(tmp_path)) == 2
    assert forced[-3:] == ["audit.jsonl", "audit.jsonl.head.new", tmp_path.name]


def test_a_folder_that_cannot_be_forced_does_not_stop_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, code = os.fsync, [22]

    def wrong(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(code[0], "not here")
        right(file)

    monkeypatch.setattr(os, "fsync", wrong)
    assert one_after_another(tmp_path / "audit.jsonl", 2) == ["ok", "ok"]
    code[0] = 5
    with pytest.raises(AuditError, match="cannot write"):
        AuditLog(section(tmp_path / "audit.jsonl"))


@pytest.mark.parametrize("error", [KeyError("a prompt"), RecursionError("a prompt"), SystemExit("a prompt")])
@pytest.mark.parametrize("call", ["encode", "write_head"])
def test_whatever_goes_wrong_fails_its_request_only(
    tmp_path: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    right = getattr(audit, call)

    def wrong(*_args: Any, **_more: Any) -> Any:
        raise error

    found = one_after_another(path, 3, lambda n: monkeypatch.setattr(audit, call, wrong if n == 1 else right))
    assert found == ["ok", f"the audit log cannot be written: {type(error).__name__}", "ok"]
    assert "a prompt" not in caplog.text
    assert type(error).__name__ in caplog.text
    assert verify([path], KEY).link.lines == (2 if call == "encode" else 3)


def test_half_a_line_that_could_not_be_taken_off_is_taken_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    right = os.fsync, os.ftruncate

    def wrong(*_args: int) -> None:
        raise OSError(5, "io")

    def switch(n: int) -> None:
        monkeypatch.setattr(os, "fsync", wrong if n in {1, 2} else right[0])
        monkeypatch.setattr(os, "ftruncate", wrong if n in {1, 2} else right[1])

    found = one_after_another(path, 5, switch)
    assert [answer == "ok" for answer in found] == [True, False, False, True, True]
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 3, 4]
    assert verify([path], KEY).link.lines == 3


def test_a_closed_log_does_not_keep_anybody_waiting(tmp_path: Path) -> None:
    async def late() -> None:
        log = AuditLog(section(tmp_path / "audit.jsonl"))
        log.close()
        with pytest.raises(AuditError, match="closed"):
            await asyncio.wait_for(log.append({"n": 1}), 5)

    asyncio.run(late())


# The command.


def test_the_command_tells_whole_from_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "audit.jsonl", tmp_path / "key"
    write(path, 4)
    run = CliRunner().invoke
    assert run(app, ["audit", "verify", str(path)]).exit_code == 2
    key.write_text(AUDIT_KEY)
    whole = run(app, ["audit", "verify", str(path), "--key-file", str(key), "--lines", "4"])
    assert (whole.exit_code, "lines 0 to 3" in whole.stdout) == (0, True)
    assert run(app, ["audit", "verify", str(path), "--key-file", str(key), "--lines", "5"]).exit_code == 1
    monkeypatch.setenv("PGUARD_AUDIT__KEY", "another key, 16+")
    assert run(app, ["audit", "verify", str(path)]).exit_code == 1
    assert run(app, ["audit", "verify", str(tmp_path / "none"), "--key-file", str(key)]).exit_code == 1
    assert run(app, ["audit", "verify", str(path), "--key-file", str(tmp_path / "none")]).exit_code == 2


def test_the_base_of_these_tests_has_an_upstream() -> None:
    assert list(itertools.islice(BASE, 1)) == ["certifier"]
