"""A bare endpoint around the `causal` filter, one plain score per request: what the guard server is compared with."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from promptguard import load_filter
from promptguard.score.shared import shared
from promptguard.view import canonical


def bare(score: Callable[[Sequence[str]], Sequence[float]], threshold: float) -> Starlette:
    """The application: a text in, its score out."""

    async def certify(request: Request) -> JSONResponse:
        text = (await request.json())["text"]
        found = (await run_in_threadpool(score, [canonical(text)]))[0]
        return JSONResponse({"score": found, "flagged": found >= threshold})

    return Starlette(routes=[Route("/v1/certify", certify, methods=["POST"])])


def main() -> None:
    """Serve on a free port of the loopback; the address goes to stderr, as that of `promptguard serve` does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--merged", action="store_true", help="requests that arrive together share a call of the model")
    is_merged = parser.parse_args().merged
    filter_ = load_filter("causal")
    app = bare(shared(filter_, max_texts=64) if is_merged else filter_, filter_.threshold)
    # With the protocol named, or asyncio does not turn Nagle's algorithm off, and each answer waits 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    settings = uvicorn.Config(app, log_config=None, access_log=False, ws="none", server_header=False, date_header=False)
    uvicorn.Server(settings).run(sockets=[listening])


if __name__ == "__main__":
    main()
