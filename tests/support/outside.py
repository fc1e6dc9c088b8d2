"""The outside world of robustness tests: a small HTTP server that keeps a log of every call that reaches it.

A step `POST`s to `/steps/<run>/<step>`; the server holds the call for as long as the test told it to, then answers.
The log has each call's idempotency key and the moment it came, so a test can say which steps were executed more than
once, and when.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

__all__ = ["Execution", "Outside", "outside_world"]


@dataclass(frozen=True)
class Execution:
    """One call that came in. Times are seconds since the Unix epoch."""

    key: str
    step: str
    came_at: float


@dataclass
class Outside:
    """The log, how long calls take, and how many first calls with a key are answered 503, by step."""

    port: int
    delay_s: float = 0.05
    failures: dict[str, int] = field(default_factory=dict)
    executions: list[Execution] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def by_key(self) -> dict[str, list[Execution]]:
        """Executions by idempotency key, in order of arrival."""
        found: dict[str, list[Execution]] = defaultdict(list)
        for execution in self.executions:
            found[execution.key].append(execution)
        return found

    async def heard(self) -> None:
        """Returns when every call that was sent before is in the log: one of our own has been answered after them."""
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                for _ in range(2):  # the first may be served in the turn that serves them
                    writer.write(b"GET /heard HTTP/1.1\r\nHost: outside\r\n\r\n")
                    await reader.readuntil(b"heard")
            finally:
                writer.close()


@asynccontextmanager
async def outside_world(delay_s: float = 0.05) -> AsyncIterator[Outside]:
    """Serve on a free port within this event loop until the block is left. The gate is open at first."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    world = Outside(sock.getsockname()[1], delay_s)
    world.gate.set()

    async def step(request: Request) -> JSONResponse:
        key, name = request.headers["idempotency-key"], request.path_params["step"]
        before = sum(e.key == key for e in world.executions) if name in world.failures else 0
        world.executions.append(Execution(key, name, time.time()))
        if before < world.failures.get(name, 0):
            return JSONResponse({"problem": "not yet"}, status_code=503)
        await asyncio.sleep(world.delay_s)
        await world.gate.wait()
        return JSONResponse({"key": key})

    async def heard(request: Request) -> PlainTextResponse:
        return PlainTextResponse("heard")

    app = Starlette(routes=[Route("/steps/{step}", step, methods=["POST"]), Route("/heard", heard)])
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
