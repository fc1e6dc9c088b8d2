"""The outside of tests of permits: a small HTTP server that sees which runs are at work at the same time.

A step `POST`s to `/hold`; its idempotency key names the run. The server holds the call for a while, or until `gate` is
set, and keeps the most distinct runs that it ever held at once, and the span of each call.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

__all__ = ["Holders", "holders_world", "most_at_once"]


@dataclass
class Holders:
    """What the outside saw. Times are of the monotonic clock."""

    port: int
    delay_s: float
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    now: Counter[str] = field(default_factory=Counter)
    most: int = 0
    calls: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hold"

    @property
    def holding(self) -> set[str]:
        """Runs at work now."""
        return {run for run, calls in self.now.items() if calls}

    async def hold(self, request: Request) -> JSONResponse:
        run = request.headers["idempotency-key"].split("/")[0]
        began = time.monotonic()
        self.now[run] += 1
        self.most = max(self.most, len(self.holding))
        try:
            await asyncio.sleep(self.delay_s)
            await self.gate.wait()
        finally:
            self.now[run] -= 1
            self.calls.append((run, began, time.monotonic()))
        return JSONResponse({})


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many of these spans overlap at most; one that begins when another ends does not overlap it."""
    moments = sorted(itertools.chain.from_iterable(((begun, 1), (ended, -1)) for begun, ended in spans))
    return max(itertools.accumulate(change for _, change in moments), default=0)


@asynccontextmanager
async def holders_world(delay_s: float = 0.02) -> AsyncIterator[Holders]:
    """Serve on a free port within this event loop until the block is left. The gate is open at first."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    world = Holders(sock.getsockname()[1], delay_s)
    world.gate.set()
    app = Starlette(routes=[Route("/hold", world.hold, methods=["POST"])])
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1, timeout_keep_alive=300
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield world
    finally:
        world.gate.set()
        server.should_exit = True
        await serving
        sock.close()
