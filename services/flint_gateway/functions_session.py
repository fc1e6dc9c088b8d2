"""One function worker's stream: its credit, the tasks it holds, and what is on its way to it.

States: OPEN → FINISHING (what is queued still goes out, then the stream ends) or FAILED (it ends with an error). A
session has no task of its own; it lives in its RPC's, and holds nothing that cannot be lost: the function worker lists
its tasks when it connects again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from flint_contracts.gen.flint.dispatch.v1 import functions_pb2 as dispatch
from flint_contracts.gen.flint.functions.v1 import functions_pb2 as pb
from flint_gateway.functions_schemas import Declared

__all__ = ["CREDIT", "Held", "Session"]

CREDIT: Final = 1_000
"""The most credit of one stream."""
_QUEUED: Final = 20_000
_QUEUED_BYTES: Final = 16 * 2**20
_SETTLING_BYTES: Final = 32 * 2**20


class Held:
    """A task that the function worker of a session holds."""

    __slots__ = ("beat", "beating", "key", "session", "settling", "text", "token", "unanswered_since")

    def __init__(self, session: Session, text: str, token: dispatch.FunctionToken) -> None:
        self.session = session
        self.text = text
        self.token = token
        self.key = (token.call, token.dispatch)
        self.beating = False
        self.settling = False
        self.beat: dispatch.FunctionBeat | None = None
        """The newest heartbeat that is not passed on yet."""
        self.unanswered_since: float | None = None


class Session:
    """See the module. One event loop."""

    def __init__(self, namespace: str, worker: str, functions: Mapping[tuple[str, str], Declared]) -> None:
        self.namespace = namespace
        self.worker = worker
        self.functions = functions
        self.credit = 0
        self.held: dict[str, Held] = {}
        self.open = True
        """Whether anything may be sent."""
        self.draining = False
        """Whether the function worker wants no more tasks."""
        self._queue: deque[pb.ConnectResponse] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._settling_bytes = 0
        self._settled = asyncio.Event()

    @property
    def room(self) -> int:
        """How many tasks may be taken for it now; none while it does not read what it was sent."""
        ready = self.open and not self.draining and self._queued_bytes < _QUEUED_BYTES
        return self.credit if ready else 0

    def add_credit(self, tasks: int) -> None:
        """More room, up to the limit."""
        self.credit = min(CREDIT, self.credit + tasks)

    def settling(self, size: int) -> None:
        """An outcome of so many bytes is on its way to who waits for it; negative: it has arrived."""
        self._settling_bytes += size
        self._settled.set()

    async def calm(self) -> None:
        """Until not too much is on its way: whoever reads from the function worker waits here."""
        while self._settling_bytes > _SETTLING_BYTES:
            self._settled.clear()
            await self._settled.wait()

    def send(self, response: pb.ConnectResponse) -> None:
        """Queues a message. A function worker that reads nothing for too long is cut off."""
        if len(self._queue) >= _QUEUED:
            self.fail(RuntimeError("the function worker does not read"))
            return
        self._queue.append(response)
        self._queued_bytes += response.ByteSize()
        self._wake.set()

    def finish(self) -> None:
        """Ends the stream after what is queued."""
        self.open = False
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Ends the stream now."""
        self.open = False
        if self._failure is None:
            self._failure = error
        self._wake.set()

    async def next(self) -> pb.ConnectResponse | None:
        """The next message; None at the end of the stream. Raises what `fail` was given."""
        while True:
            if self._failure is not None:
                raise self._failure
            if self._queue:
                response = self._queue.popleft()
                self._queued_bytes -= response.ByteSize()
                return response
            if not self.open:
                return None
            self._wake.clear()
            await self._wake.wait()
