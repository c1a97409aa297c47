"""What `promptguard serve` adds to a model that is served anyway, and whether it holds when things break.

Load: the bundled `causal` filter with suffixes of any length, `POST /v1/certify` with the project's own prompts, two by
two, about 25 tokens, half of them harmful. Three servers, each a process of its own on loopback, are asked in turn by
1, 8 and 32 clients in a third process:

* bare: the same model behind the same Starlette and uvicorn, one plain score per request, no certificate. As people
  write it, in the pool of threads, and "merged": with the micro-batching that the guard has. The guard is compared with
  the better of the two.
* guarded: `promptguard serve`, as it is; and with its audit log, forced to the disk before each answer.

Faults: `python -m benchmarks.tasks.serving_faults`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from benchmarks.table import Table, read_lines
from benchmarks.tasks.common import RESULTS

TITLE = "Served: load and faults"
NAME = "serving"
PROMPTS = Path(__file__).resolve().parent.parent / "prompts.jsonl"
CLIENTS = (1, 8, 32)
WORDS = range(19, 24)  # about 25 tokens
AUDIT_KEY = "0123456789abcdef"
AT_MOST = 1.5
BARE, MERGED, GUARDED, AUDITED = "bare", "bare, merged", "guarded", "guarded, audited"
SERVERS = (BARE, MERGED, GUARDED, AUDITED)


def prompts(path: Path = PROMPTS) -> list[str]:
    """Pairs of the project's own prompts; every second one begins with a harmful one."""
    rows = read_lines(path)
    kinds = {kind: [row["text"] for row in rows if row["label"] == kind] for kind in ("harmful", "safe")}
    harmful, safe = (
        [
            f"{one} {two}"
            for one in firsts
            for two in kinds["safe"]
            if len(f"{one} {two}".split()) in WORDS and one != two
        ]
        for firsts in kinds.values()
    )
    return [text for pair in zip(harmful[::7], safe[::7], strict=False) for text in pair]


@contextmanager
def process(
    arguments: Sequence[str], log: Path, env: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server of its own: the process and its address, which it says on stderr, kept in `log`."""
    with log.open("wb") as errors:
        running = subprocess.Popen([sys.executable, *arguments], stderr=errors, env={**os.environ, **env})
    try:
        yield running, _address(running, log)
    finally:
        if running.poll() is None:
            running.terminate()
        running.wait(60)


def _address(running: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and running.poll() is None:
        if found := re.search(r"listening on (http://\S+)", log.read_text(encoding="utf-8", errors="replace")):
            return found[1]
        time.sleep(0.05)
    raise SystemExit(f"no server: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


def guard_command(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """`promptguard serve` with a configuration file of its own."""
    path = folder / "guard.yaml"
    path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return ["-m", "promptguard.cli", "serve", "--config", str(path), "--port", "0"]


def command(name: str, folder: Path) -> list[str]:
    """How one of the servers is started."""
    if name in {BARE, MERGED}:
        return ["-m", "benchmarks.serving_bare", *(["--merged"] if name == MERGED else [])]
    settings: dict[str, Any] = {"certifier": {"filter": "causal", "max_erase": "unlimited"}, "playground": False}
    if name == AUDITED:
        settings["audit"] = {"path": str(folder / "audit.jsonl"), "key": AUDIT_KEY}
    return guard_command(folder, settings)


async def ask(url: str, clients: int, seconds: float, texts: Sequence[str]) -> dict[str, float]:
    """So many clients, each with one request after the other over one connection.

    Returns:
        Requests, requests per second, p50 and p95 in milliseconds.
    """
    times: list[float] = []

    async def one(number: int, client: httpx2.AsyncClient) -> None:
        step = 0
        while time.perf_counter() < end:
            begun = time.perf_counter()
            answer = await client.post("/v1/certify", json={"text": texts[(number + step) % len(texts)]})
            times.append(1000 * (time.perf_counter() - begun))
            answer.raise_for_status()
            step += 1

    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        start = time.perf_counter()
        end = start + seconds
        await asyncio.gather(*(one(7 * number, client) for number in range(clients)))
        whole = time.perf_counter() - start
    p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    return {
        "requests": len(times),
        "per_second": len(times) / whole,
        "p50": statistics.median(times),
        "p95": p95,
    }


def load_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every server and number of clients, in turn, repeat by repeat."""
    texts = prompts()
    env = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    with ExitStack() as opened:
        urls = {}
        for name in args.servers:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            _, urls[name] = opened.enter_context(process(command(name, folder), folder / "log", env))
            asyncio.run(ask(urls[name], 8, args.seconds / 2, texts))  # the first calls compile kernels
        for repeat in range(args.repeats):
            for clients in args.clients:
                for name, url in urls.items():
                    about = {"task": "load", "server": name, "clients": clients, "repeat": repeat}
                    yield about | asyncio.run(ask(url, clients, args.seconds, texts)) | {"threads": args.threads}


def tables(results: Path) -> list[Table]:
    """Load beside bare endpoints, and what was seen under faults."""
    folder = results / NAME
    return [*_load_tables(read_lines(folder / "load.jsonl")), _faults_table(read_lines(folder / "faults.jsonl"))]


def _load_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    for threads in sorted({row["threads"] for row in rows}):
        some = [row for row in rows if row["threads"] == threads]
        lines = [_load_line(clients, name, some) for clients in CLIENTS for name in SERVERS]
        repeats = Counter((row["clients"], row["server"]) for row in some).values()
        busy = statistics.median(row["load"] for row in some)
        note = (
            f"Medians of {min(repeats)} to {max(repeats)} repeats, at a load average of {busy:.1f}. Times the better "
            f"bare endpoint: p50, p95, and its requests per second by the server's; the goal is at most {AT_MOST}."
        )
        heads = ["clients", "server", "p50 ms", "p95 ms", "requests/s", "times bare", "requests"]
        yield Table(f"Load; {threads} thread{'s' if threads > 1 else ''} of the model", heads, lines, note)


def _load_line(clients: int, name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def median(server: str, key: str) -> float:
        found = [row[key] for row in rows if (row["server"], row["clients"]) == (server, clients)]
        return statistics.median(found) if found else float("nan")

    mine = {key: median(name, key) for key in ("p50", "p95", "per_second")}
    ratios = ""
    if name in {GUARDED, AUDITED}:
        base = {key: min(median(bare, key) for bare in (BARE, MERGED)) for key in ("p50", "p95")}
        rate = max(median(bare, "per_second") for bare in (BARE, MERGED))
        ratios = ", ".join(f"{x:.2f}" for x in (*(mine[k] / base[k] for k in base), rate / mine["per_second"]))
    total = sum(row["requests"] for row in rows if (row["server"], row["clients"]) == (name, clients))
    numbers = [f"{mine['p50']:.1f}", f"{mine['p95']:.1f}", f"{mine['per_second']:.0f}"]
    return [str(clients), name, *numbers, ratios, str(total)]


def _faults_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    lines = [
        [
            row["server"],
            str(row["requests"]),
            str(row["unguarded"]),
            str(row["forwarded"]),
            f"{row['lost']} of {row['answered']}",
            str(row["crashes"]),
            str(row["unexpected"]),
            f"{row['health_p99']:.0f}, {row['health_max']:.0f} ms",
            str(row["upstream_kills"]),
        ]
        for row in rows
    ]
    heads = [
        "server",
        "requests",
        "unguarded answers",
        "blocked yet forwarded",
        "lost audit lines",
        "crashes",
        "unexpected",
        "health p99, max",
        "upstream killed",
    ]
    note = (
        "Bytes on the wire were read for every request; unexpected: an answer of a status that its fault cannot have."
    )
    return Table("Mixed requests with faults", heads, lines, note)


def main() -> None:
    """Measure load, and append rows to a file if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each cell")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the model, in every server")
    parser.add_argument("--out", type=Path, help=f"JSON lines are appended here: {RESULTS / NAME / 'load.jsonl'}")
    args = parser.parse_args()
    for row in load_rows(args):
        row["load"] = round(os.getloadavg()[0], 2)
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
