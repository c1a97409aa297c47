"""Whether `promptguard serve` answers `/healthz` while the model's answers are as large as it takes them, 16 MiB.

Answers of a few shapes, whole and streamed, come from an upstream in a process of its own, one after the other; their
output is checked with a keyword; a text of that size is over the budget, and blocked. A third process asks `/healthz`
all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.health import polled
from benchmarks.tasks.serving import guard_command, process

SIZE = 16 * 2**20 - 4096  # as much as the server takes
_PATIENCE = 120.0
_CHECKED = {"output": {"check": True}}
_WINDOW = {**_CHECKED, "streaming": {"release": "window"}}
SETTINGS: dict[str, dict[str, Any]] = {"not checked": {}, "checked": _CHECKED, "checked, windows": _WINDOW}


def _text() -> bytes:
    message = {"role": "assistant", "content": "word " * (SIZE // 5)}
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


def _numbers() -> bytes:
    row = {"object": "embedding", "index": 1000, "embedding": [round(0.0123456789 * n % 1, 8) for n in range(1536)]}
    rows = [row] * (SIZE // len(json.dumps(row) + ", "))
    return json.dumps({"object": "list", "data": rows, "model": "m"}).encode()


def _probabilities() -> bytes:
    one = {"token": "word", "bytes": [1, 2, 3], "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -1.5}] * 3}
    tokens = [one] * (SIZE // len(json.dumps(one) + ", "))
    message = {"role": "assistant", "content": "word"}
    return json.dumps({"choices": [{"index": 0, "message": message, "logprobs": {"content": tokens}}]}).encode()


def _chunks() -> bytes:
    made = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a word or two "}}]}
    event = f"data: {json.dumps(made)}\n\n".encode()
    return event * (SIZE // len(event) - 1) + b"data: [DONE]\n\n"


def _chunk() -> bytes:
    made = {"choices": [{"index": 0, "delta": {"content": "word " * (SIZE // 5 - 200)}}]}
    return f"data: {json.dumps(made)}\n\ndata: [DONE]\n\n".encode()


SHAPES: dict[str, Callable[[], bytes]] = {
    "one text": _text,
    "embeddings": _numbers,
    "log-probabilities": _probabilities,
    "many events": _chunks,
    "one event": _chunk,
}


def answering(port: Any) -> None:
    """An upstream whose answer is of the shape that the request names as its model."""
    bodies = {name: make() for name, make in SHAPES.items()}

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
        shape = json.loads(await reader.readexactly(int(fields[b"content-length"])))["model"]
        kind = "text/event-stream" if "event" in shape else "application/json"
        length = len(bodies[shape])
        writer.write(f"HTTP/1.1 200 X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode())
        writer.write(bodies[shape])
        await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def measure(name: str, upstream: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of one setting: a row for each shape."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = {
            "certifier": {"filter": "keyword:bomb"},
            "upstream": {"url": f"http://127.0.0.1:{upstream}/v1"},
            "playground": False,
            **SETTINGS[name],
        }
        with process(guard_command(folder, settings), folder / "log", {}) as (_, url):
            for shape in SHAPES:
                health: list[float] = []
                statuses = set()
                path = "embeddings" if shape == "embeddings" else "chat/completions"
                with polled(int(url.rpartition(":")[2]), health):
                    begun = time.perf_counter()
                    for _ in range(repeats):
                        asked = {"model": shape, "messages": [{"role": "user", "content": "hi"}]}
                        answer = httpx2.post(f"{url}/v1/{path}", json=asked, timeout=_PATIENCE, trust_env=False)
                        statuses.add(answer.status_code)
                    took = (time.perf_counter() - begun) / repeats
                health.sort()
                about = {"setting": name, "shape": shape, "repeats": repeats, "seconds": took, "polls": len(health)}
                rows.append(
                    about
                    | {"statuses": sorted(statuses), "health_max": health[-1], "health_p50": health[len(health) // 2]}
                )
    return rows


def main() -> None:
    """Measure every setting, and say the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args = parser.parse_args()
    context = get_context("spawn")
    port = context.Queue()
    upstream = context.Process(target=answering, args=(port,), daemon=True)
    upstream.start()
    try:
        at = port.get(timeout=_PATIENCE)
        for name in args.settings:
            for row in measure(name, at, args.repeats):
                print(json.dumps(row), flush=True)
    finally:
        upstream.kill()
        upstream.join()


if __name__ == "__main__":
    main()
