"""A Starlette application behind a guard; FastAPI's are the same.

pip install certified-promptguard starlette uvicorn, then: uvicorn examples.asgi_app:app
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from promptguard.middleware.asgi import PromptGuardMiddleware


async def chat(request: Request) -> JSONResponse:
    """Stands for your model; it is called with allowed requests only."""
    question = (await request.json())["prompt"]
    return JSONResponse({"answer": f"You asked: {question}"})


app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
app.add_middleware(PromptGuardMiddleware)  # the default guard, or what PGUARD_FILTER names; guard=... is yours
