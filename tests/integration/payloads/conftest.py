"""The shared Flint, with an outside that serves and takes large bodies."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support.house import House
from support.houses import Houses


@dataclass
class Bulk:
    """Serves what it is told to, and remembers the size and digest of what is sent to it."""

    url: str
    body: bytes = b"[]"
    taken: list[tuple[int, str]] = field(default_factory=list)
    served: int = 0


@asynccontextmanager
async def bulk_server() -> AsyncIterator[Bulk]:
    bulk = Bulk("")

    async def give(request: Request) -> Response:
        bulk.served += 1
        return Response(bulk.body, media_type="application/json")

    async def take(request: Request) -> Response:
        digest, size = hashlib.sha256(), 0
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
        bulk.taken.append((size, digest.hexdigest()))
        return JSONResponse({"size": size})

    app = Starlette(routes=[Route("/give", give), Route("/take", take, methods=["POST"])])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        bulk.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield bulk
        finally:
            server.should_exit = True
            await serving


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bulk() -> AsyncIterator[Bulk]:
    async with bulk_server() as serving:
        yield serving


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses) -> House:
    return await houses.common()
