"""What random workflows meet: an outside that answers by what it is asked, and the same answers for the core.

    async with random_world() as world:
        expected = expect(workflow, batch, {"url": world.url, "key": "k1", "n": 3})

Paths: `/ok/NAME` answers, `/fail/STATUS/NAME` never does, `/flaky/N/KEY/NAME` answers 503 so many times first.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flint_core.problems import ProblemType
from flint_sdk.testing import Approval, Failure, Result, simulate
from support.random_workflows import Workflow, approves

__all__ = ["Outcome", "World", "expect", "outcome_of", "random_world"]


@dataclass
class World:
    """The log: when calls came (Unix epoch, seconds), by idempotency key."""

    url: str
    came: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        self.came[request.headers["idempotency-key"]].append(time.time())
        status, content = _answer(scope["path"], orjson.loads(body), self.refused)
        await Response(orjson.dumps(content), status, media_type="application/json")(scope, receive, send)


def _answer(path: str, body: Any, refused: Counter[str]) -> tuple[int, Any]:
    kind, *rest = path.strip("/").split("/")
    if kind == "fail":
        return int(rest[0]), {"problem": "always"}
    if kind == "flaky" and refused[path] < int(rest[0]):
        refused[path] += 1
        return 503, {"problem": "not yet"}
    return 200, {"step": rest[-1], "echo": body}


@asynccontextmanager
async def random_world() -> AsyncIterator[World]:
    """Serves on a free port within this event loop until the block is left."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    world = World(f"http://127.0.0.1:{sock.getsockname()[1]}")
    server = uvicorn.Server(
        uvicorn.Config(world, log_level="critical", lifespan="off", timeout_keep_alive=60, timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve([sock]))
    try:
        yield world
    finally:
        server.should_exit = True
        await serving


@dataclass(frozen=True)
class Outcome:
    """How a run ended, without what differs between two runs of the same."""

    state: str
    output: Any = None
    error: tuple[str, int, str] | None = None


def outcome_of(state: str, output: Any, error: Mapping[str, Any] | None) -> Outcome:
    """Of what either side says. `state` in any case of letters."""
    problem = None if error is None else (str(error["type"]), int(error["status"]), str(error.get("instance", "")))
    return Outcome(state.lower(), output if problem is None else None, problem)


def expect(workflow: Workflow, batch: Mapping[str, Workflow], given: Mapping[str, Any]) -> tuple[Outcome, Result]:
    """What the core makes of it."""
    family = [workflow, *(batch[name] for name in sorted(workflow.children))]
    refused: Counter[str] = Counter()

    def call(arguments: Mapping[str, Any]) -> Any:
        endpoint = arguments["endpoint"]
        path = urlsplit(endpoint if isinstance(endpoint, str) else endpoint["uri"]).path
        status, content = _answer(path, arguments.get("body"), refused)
        return content if status == 200 else Failure(status, type=str(ProblemType.COMMUNICATION))

    stubs: dict[str, Any] = {}
    for member in family:
        stubs |= dict.fromkeys(member.http, call)
        stubs |= {name: Approval("approved" if approves(name) else "rejected") for name in member.approvals}
    result = simulate(
        workflow.document,
        dict(given),
        stubs=stubs,
        workflows={name: batch[name].document for name in workflow.children},
    )
    return outcome_of(result.state, result.output, result.error), result
