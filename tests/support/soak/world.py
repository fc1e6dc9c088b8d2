"""The outside of the soak: a small HTTP server that answers by what it is asked and logs who was at work, and when.

A step `POST`s `{"n": …}` to `/steps/<name>`; `answer` says what comes back, here and in the model. Steps of `FLAKY` are
answered 503 the first times that a key comes. The log holds every call's idempotency key and the span in which it was
under way, as the outside saw it: a call ends when it is answered, or its caller has gone.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["FLAKY", "LARGE_BYTES", "Arrival", "World", "answer", "soak_world"]

FLAKY: Final[Mapping[str, int]] = {"flaky": 2}
"""How often the outside answers 503 first, by step."""

LARGE_BYTES: Final = 300_000
"""Of what the step `big` gives: more than a run carries with it."""

_DELAY_S: Final = 0.02
_HOLD_S: Final = 0.06
"""How long calls with a group take: those of runs that share a concurrency key."""


@dataclass(frozen=True)
class Arrival:
    """One call that came in. Times are seconds since the Unix epoch."""

    key: str
    step: str
    group: str
    came_at: float
    left_at: float

    @property
    def run(self) -> str:
        """The run that the key names."""
        return self.key.partition("/")[0]


@dataclass
class World:
    """The log. `arrivals` are in the order of their ends."""

    url: str
    arrivals: list[Arrival] = field(default_factory=list)
    _refused: Counter[str] = field(default_factory=Counter)

    def by_key(self) -> dict[str, list[Arrival]]:
        """Arrivals by idempotency key, in the order in which they came."""
        found: dict[str, list[Arrival]] = defaultdict(list)
        for arrival in sorted(self.arrivals, key=lambda arrival: arrival.came_at):
            found[arrival.key].append(arrival)
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        came_at = time.time()
        request = Request(scope, receive)
        body = orjson.loads(await request.body())
        key, step = request.headers["idempotency-key"], scope["path"].rpartition("/")[2]
        status, content = 200, answer(step, body)
        if self._refused[key] < FLAKY.get(step, 0):
            self._refused[key] += 1
            status, content = 503, {"problem": "not yet"}
        else:
            await _work(_HOLD_S if "group" in body else _DELAY_S, receive)
        self.arrivals.append(Arrival(key, step, str(body.get("group", "")), came_at, time.time()))
        await Response(orjson.dumps(content), status, media_type="application/json")(scope, receive, send)


async def _work(for_s: float, receive: Receive) -> None:
    """Takes its time, unless the caller goes."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.create_task(gone())
    await asyncio.wait({leaving}, timeout=for_s)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)


def answer(step: str, body: Any) -> dict[str, Any]:
    """What a step is answered, in the end."""
    content = {"step": step, "n": int(body["n"]) + 1}
    if step == "big":
        content["text"] = "x" * LARGE_BYTES
    if step == "weigh":
        content["length"] = len(body["text"])
    return content


@asynccontextmanager
async def soak_world() -> AsyncIterator[World]:
    """Serves on a free port within this event loop until the block is left."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    world = World(f"http://127.0.0.1:{sock.getsockname()[1]}")
    config = uvicorn.Config(
        world, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, timeout_keep_alive=300
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield world
    finally:
        server.should_exit = True
        await serving
        sock.close()
