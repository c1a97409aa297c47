"""An upstream that is slow, breaks off, fails and says harmful things when asked to: `PORT FORWARDED`.

A request that holds `HARMFUL` should have been blocked: it is answered with the canary, and noted in the file
FORWARDED. What is said is decided by words in the request. Plain asyncio, so that it is back soon after it was killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
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


def answer(body: bytes) -> tuple[int, str, list[bytes]]:
    """Status, type and pieces of an answer."""
    text = says(body)
    if FAIL.encode() in body:
        return 500, "application/json", [json.dumps({"error": CANARY}).encode()]
    about: dict[str, Any] = {"id": "c", "created": 1, "model": "m"}
    if not json.loads(body).get("stream"):
        message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return (
            200,
            "application/json",
            [json.dumps(about | {"object": "chat.completion", "choices": [message]}).encode()],
        )
    deltas = [{"content": text[at : at + 6]} for at in range(0, len(text), 6)]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks = [about | {"object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
    return (
        200,
        "text/event-stream",
        [b"data: " + json.dumps(c, separators=(",", ":")).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"],
    )


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
                await _send(writer, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", port)
    print("listening", flush=True)
    await server.serve_forever()


async def _send(writer: asyncio.StreamWriter, body: bytes) -> None:
    status, kind, pieces = answer(body)
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


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
