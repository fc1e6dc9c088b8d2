"""Reads of runs, coalesced: one ReadRuns in flight, what is asked for meanwhile is the next one.

States: IDLE (no task) → READING (one task, as long as somebody asks) → IDLE. A failed read fails its askers only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_ops import metrics
from flint_rpc.errors import Refused
from flint_rpc.names import RunName
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import SchedulingServiceAsyncStub

__all__ = ["Answer", "RunReader"]

# 200 runs of 256 KiB output fit one internal message.
_BATCH = 200
_TIMEOUT_S = 15.0

_READ = metrics.histogram("gateway_read_batch", "Runs in one coalesced read", buckets=metrics.COUNT_BUCKETS)

Answer = runs_pb2.Run | Refused | None
"""The run, without input; None when there is none of that name (another namespace's run is none); or why it failed."""


class RunReader:
    """See the module. `close` ends the read under way; its askers hear nothing then."""

    def __init__(self, client: Client[SchedulingServiceAsyncStub]) -> None:
        self._client = client
        self._asked: dict[str, tuple[RunName, list[Callable[[Answer], None]]]] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, name: RunName, answer: Callable[[Answer], None]) -> None:
        """Calls `answer` once, from the event loop, with the run as recorded after this moment."""
        entry = self._asked.get(name.name)
        if entry is None:
            self._asked[name.name] = (name, [answer])
        else:
            entry[1].append(answer)
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="run-reader")

    async def read(self, name: RunName) -> runs_pb2.Run | None:
        """The run as recorded after this moment, without input. Raises `Refused`."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.ask(name, lambda answer: None if future.done() else future.set_result(answer))
        result = await future
        if isinstance(result, Refused):
            raise result
        return result

    async def close(self) -> None:
        """Ends the read under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while self._asked:
                batch = dict(list(self._asked.items())[:_BATCH])
                for name in batch:
                    del self._asked[name]
                await self._read_batch(batch)
        finally:
            self._task = None

    async def _read_batch(self, batch: dict[str, tuple[RunName, list[Callable[[Answer], None]]]]) -> None:
        request = scheduling_pb2.ReadRunsRequest(
            run_ids=[name.run_id for name, _ in batch.values()], without_input=True
        )
        _READ.observe(len(batch))
        found: dict[str, runs_pb2.Run] = {}
        left_out: set[bytes] = set()
        failure: Refused | None = None
        try:
            response = await self._client.call(lambda stub: stub.ReadRuns, request, _TIMEOUT_S)
            found = {run.name: run for run in response.runs}
            left_out = set(response.left_out)
        except Refused as error:
            failure = error
        for key, (name, answers) in batch.items():
            if name.run_id in left_out:
                # It did not fit into one message: it goes into the next read.
                self._asked.setdefault(key, (name, []))[1].extend(answers)
                continue
            for answer in answers:
                answer(failure or found.get(key))
