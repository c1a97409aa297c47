"""Ten thousand mixed requests to `promptguard serve` while things break: what goes over the wire, what the log holds.

One server per erase mode, with different settings for its answers, two of them with the bundled causal filter, and one
of two processes; the filter raises now and then. The configuration is loaded again (SIGHUP) on the way, which
`reloads` counts, once for each process. The upstream is killed and started again all the time, is slow, fails,
breaks off, and says harmful things. Clients send malformed JSON, bodies over the limit and megabytes of text, and leave
at any point. A process of its own asks `/healthz`. Every byte that a client receives is read:

* unguarded: the canary of the upstream's harmful answers, or any answer of the model to a request that must be blocked;
  or a harmful text that a judging route lets through. `forwarded` counts blocked requests that reached the upstream.
* lost: requests that were answered and have no line in the audit log, after `promptguard audit verify`.
* crashes: the server or one of its processes ended, with another code than that of its signal, wrote a traceback, or
  wrote a text to its log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faulty_upstream import CANARY, SAID, Upstream
from benchmarks.health import polled
from benchmarks.tasks.serving import AUDIT_KEY, guard_command, process
from benchmarks.tasks.serving_cases import KINDS, Case, Leaves, make

_SIGTERM = {0, -15}
_PATIENCE = 60.0
_SPOKEN = re.compile(rb'"(?:content|delta|text)":"((?:[^"\\]|\\.)*)"')  # what a stream says in pieces
_LIMITS = {"body_bytes": 1_500_000, "seconds": 15, "answer_seconds": 5}
_CHECKED = {"output": {"check": True}}
_WINDOW = {**_CHECKED, "streaming": {"release": "window", "hold_back": 64, "stride": 16}}
SERVERS: dict[str, dict[str, Any]] = {
    "suffix, causal": {"certifier": {"filter": "faulty:causal", "max_erase": "unlimited"}},
    "insertion, buffered": {"certifier": {"filter": "faulty:bomb", "mode": "insertion", "max_erase": 4}, **_CHECKED},
    "infusion, windows": {"certifier": {"filter": "faulty:bomb", "mode": "infusion", "max_erase": 2}, **_WINDOW},
    "wrap, refusals": {
        "certifier": {"filter": "faulty:bomb", "mode": "wrap"},
        "block_mode": "refusal",
        **_CHECKED,
    },
    "wrap-boundary, causal": {
        "certifier": {"filter": "faulty:causal", "mode": "wrap-boundary"},
        "block_mode": "refusal",
    },
    "suffix, two processes": {
        "certifier": {"filter": "faulty:bomb", "max_erase": 4},
        "server": {"workers": 2},
        **_CHECKED,
    },
}


@dataclass(slots=True)
class Tally:
    """What was seen of one server.

    Attributes:
        unguarded: answers that should not have been.
        unexpected: kinds and statuses that do not go together.
        ids: of requests that were answered.
        statuses: how often each kind was answered how.
        served: answers of the model.
    """

    unguarded: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    served: int = 0

    def note(self, case: Case, received: bytes) -> None:
        """One request's bytes from the wire."""
        status = received[9:12].decode("ascii", "replace") if received.startswith(b"HTTP/1.1 ") else "none"
        self.statuses[f"{case.kind}: {status}"] += 1
        if found := re.search(rb"x-promptguard-request-id: (\w{32})", received):
            self.ids.add(found[1].decode())
        is_whole = case.leaves is Leaves.NEVER
        read = received + b"\n" + b"".join(_SPOKEN.findall(received))
        has_said = SAID.encode() in read
        self.served += has_said
        is_let_through = is_whole and status == "200" and case.marks is not None and case.marks not in received
        self.unguarded += CANARY.encode() in read or (has_said and not case.is_allowed) or is_let_through
        if is_whole and status not in case.statuses:
            self.unexpected[f"{case.kind}: {status}"] += 1


async def exchange(port: int, case: Case) -> bytes:
    """Every byte that comes back, up to where the client leaves."""
    received = b""
    writer = None
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(case.sent())
            await writer.drain()
            if case.leaves in {Leaves.NEVER, Leaves.IN_ANSWER}:
                received += await reader.read(65536)
            while case.leaves is Leaves.NEVER and (piece := await reader.read(65536)):
                received += piece
    except (OSError, TimeoutError):
        pass  # a server that refuses a body closes before it has all of it
    if writer is not None:
        if case.leaves is Leaves.NEVER:
            writer.close()
        else:
            writer.transport.abort()
    return received


async def drive(
    port: int, cases: list[Case], upstream: Upstream, reload: Callable[[], None], *, clients: int, kills: int
) -> Tally:
    """All requests, so many at once; the upstream is killed so many times meanwhile, and `reload` called twice."""
    tally = Tally()
    waiting = list(reversed(cases))
    deaths = {len(cases) * (n + 1) // (kills + 1) for n in range(kills)}
    reloads = {len(cases) // 3, 2 * len(cases) // 3}
    tasks: set[asyncio.Task[None]] = set()

    async def client() -> None:
        while waiting:
            case = waiting.pop()
            if len(waiting) in deaths:
                tasks.add(asyncio.create_task(asyncio.to_thread(upstream.kill)))
            if len(waiting) in reloads:
                reload()
            tally.note(case, await exchange(port, case))

    await asyncio.gather(*(client() for _ in range(clients)))
    await asyncio.gather(*tasks)
    return tally


def plugin(folder: Path) -> dict[str, str]:
    """The environment in which `faulty` is a kind of filter: what an installed package would say in its metadata."""
    about = folder / "promptguard_faulty-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: promptguard-faulty\nVersion: 1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(
        "[promptguard.score]\nfaulty = benchmarks.faulty_filter:load\n", encoding="utf-8"
    )
    root = Path(__file__).resolve().parent.parent.parent
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(root)])}


def measure(name: str, count: int, *, seed: int, clients: int, kills: int) -> dict[str, Any]:
    """So many requests to one server: its row."""
    rng = random.Random(f"{seed} {name}")
    is_checked = "output" in SERVERS[name]
    cases = [make(rng, number, is_checked=is_checked, refuses="block_mode" in SERVERS[name]) for number in range(count)]
    health: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        upstream = Upstream(folder / "forwarded")
        settings = {
            **SERVERS[name],
            "limits": _LIMITS,
            "upstream": {"url": f"http://127.0.0.1:{upstream.port}/v1", "seconds": 0.5, "connect_seconds": 0.5},
            "audit": {"path": str(folder / "audit.jsonl"), "key": AUDIT_KEY, "max_bytes": 1_000_000},
            "playground": False,
        }
        try:
            with process(guard_command(folder, settings), folder / "log", plugin(folder)) as (running, url):
                port = int(url.rpartition(":")[2])
                _wait_for(folder, SERVERS[name].get("server", {}).get("workers", 1))
                with polled(port, health):
                    start = time.perf_counter()
                    begun_with = _children(running.pid)
                    hang_up = partial(running.send_signal, signal.SIGHUP)
                    tally = asyncio.run(drive(port, cases, upstream, hang_up, clients=clients, kills=kills))
                    took = time.perf_counter() - start
                has_died = running.poll() is not None or _children(running.pid) != begun_with
        finally:
            upstream.stop()
        said = (folder / "log").read_bytes()
        is_well = running.returncode in _SIGTERM and not any(word in said for word in (b"Traceback", b"cake", b"bomb"))
        health.sort()
        return {
            "server": name,
            "requests": count,
            "seed": seed,
            "clients": clients,
            "seconds": took,
            "unguarded": tally.unguarded,
            "forwarded": upstream.forwarded,
            "served": tally.served,
            "answered": len(tally.ids),
            "lost": len(tally.ids - logged(folder)),
            "crashes": int(has_died or not is_well),
            "unexpected": sum(tally.unexpected.values()),
            "health_max": health[-1],
            "health_p99": health[int(0.99 * len(health))],
            "health_polls": len(health),
            "upstream_kills": upstream.kills,
            "reloads": said.count(b"configuration loaded again"),
            "statuses": dict(sorted(tally.statuses.items())),
        }


def _wait_for(folder: Path, processes: int) -> None:
    """Until all processes serve: each opens its log when it is about to."""
    end = time.monotonic() + _PATIENCE
    while len(list(folder.glob("audit*.jsonl"))) < processes:
        if time.monotonic() > end:
            raise SystemExit("a process does not begin to serve")
        time.sleep(0.05)
    time.sleep(0.5)


def _children(pid: int) -> str:
    """The processes of a process, as Linux lists them."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def logged(folder: Path) -> set[str]:
    """Requests in the audit logs, one for each process of the server.

    Raises:
        CalledProcessError: `promptguard audit verify` finds one broken.
    """
    found = set()
    for log in ("audit", "audit-1"):
        files = sorted(path for path in folder.glob("audit*.jsonl") if path.name.split(".")[0] == log)
        if files:
            command = [sys.executable, "-m", "promptguard.cli", "audit", "verify", *map(str, files)]
            environment = {**os.environ, "PGUARD_AUDIT__KEY": AUDIT_KEY}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found |= {json.loads(line)["request"] for path in files for line in path.read_bytes().splitlines()}
    return found


def main() -> None:
    """Measure each server, and append rows to a file if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="over all servers")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=8, help="of the upstream, for each server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args()
    for name in args.servers:
        count = args.requests // len(SERVERS) + (list(SERVERS).index(name) < args.requests % len(SERVERS))
        row = measure(name, count, seed=args.seed, clients=args.clients, kills=args.kills)
        print(json.dumps(row | {"kinds": len(KINDS)}, indent=1), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row | {"load": round(os.getloadavg()[0], 2)}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
