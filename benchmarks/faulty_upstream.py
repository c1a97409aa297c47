"""An upstream that is slow, breaks off, fails and says harmful things when asked to: `PORT FORWARDED`.

A request that holds `HARMFUL` should have been blocked: it is answered with the canary, and noted in the file
FORWARDED. What is said is decided by words in the request. Plain asyncio, so that it is back soon after it was killed.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HARMFUL = b"bomb"
CANARY = "canary-7f3a-said-what-nobody-may-read"
SAID = "marker-51c9-an-answer-of-the-model"
SLOW, BREAK, FAIL, EVIL = "slowword", "breakword", "failword", "evilword"
SECONDS = 1.5  # of a slow answer


def says(body: bytes) -> str:
    """The words of an answer."""
    if HARMFUL in body:
        return f"{CANARY} forwarded"
    return f"It is a bomb, {CANARY}." if EVIL.encode() in body else f"{SAID}, and then it goes on for a while."


def answer(path: str, body: bytes) -> tuple[int, str, list[bytes]]:
    """Status, type and pieces of an answer in the form of its path."""
    text = says(body)
    if FAIL.encode() in body:
        return 500, "application/json", [json.dumps({"error": CANARY}).encode()]
    if path.endswith("embeddings") and text.startswith(SAID):
        row = {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}
        return 200, "application/json", [json.dumps({"object": "list", "data": [row], "model": SAID}).encode()]
    if not json.loads(body).get("stream") or path.endswith("embeddings"):  # harm has the form of a chat even there
        return 200, "application/json", [json.dumps(_whole(path, text)).encode()]
    events = [_event(path, text[at : at + 6]) for at in range(0, len(text), 6)]
    lines = [b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events]
    return 200, "text/event-stream", [*lines, b"data: [DONE]\n\n"]


def _whole(path: str, text: str) -> dict[str, Any]:
    if path.endswith("responses"):
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": [part]}
        return {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [item]}
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if path.endswith("/completions") and not path.endswith("chat/completions"):
        said = {"text": text}
    return {"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", **said}]}


def _event(path: str, text: str) -> dict[str, Any]:
    if path.endswith("responses"):
        return {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": text}
    said = {"delta": {"content": text}} if path.endswith("chat/completions") else {"text": text}
    return {"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": None, **said}]}


async def serve(port: int, forwarded: Path) -> None:
    """Until killed."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields.get(b"content-length", 0)))
                if HARMFUL in body:
                    with forwarded.open("ab", buffering=0) as log:
                        log.write(b"forwarded\n")
                if SLOW.encode() in body:
                    await asyncio.sleep(SECONDS)
                await _send(writer, head.split(b" ", 2)[1].decode(), body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", port)
    print("listening", flush=True)
    await server.serve_forever()


async def _send(writer: asyncio.StreamWriter, path: str, body: bytes) -> None:
    status, kind, pieces = answer(path, body)
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for number, piece in enumerate(pieces):
        if BREAK.encode() in body and number == len(pieces) // 2:
            writer.transport.abort()
            raise ConnectionResetError
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


class Upstream:
    """The model's process, on a port that stays."""

    def __init__(self, forwarded: Path) -> None:
        self.port = _quiet_port()
        self._forwarded = forwarded
        self._one_at_a_time = threading.Lock()
        self.kills = 0
        self._running = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.faulty_upstream", str(self.port), str(self._forwarded)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE)
        if running.stdout is None or not running.stdout.readline():
            raise SystemExit("the upstream does not start")
        return running

    def kill(self) -> None:
        """End it at once, and start it again."""
        with self._one_at_a_time:
            self.stop()
            self.kills += 1
            time.sleep(0.2)
            self._running = self._start()

    def stop(self) -> None:
        """End it at once."""
        self._running.kill()
        self._running.wait()
        if self._running.stdout:
            self._running.stdout.close()

    @property
    def forwarded(self) -> int:
        """Requests that it should not have got."""
        return self._forwarded.read_bytes().count(b"\n") if self._forwarded.exists() else 0


def _quiet_port() -> int:
    """A free port below those that connections get, so that none of them takes it while the upstream is down."""
    for port in random.SystemRandom().sample(range(15_000, 32_000), 100):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise SystemExit("no port is free")


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
