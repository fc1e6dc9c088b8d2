"""What a leg costs its worker: microseconds of CPU per leg and step, without servers.

The worker's own table, legs, calls and machine take jobs and write entries to a bus that acknowledges in the next turn
of the event loop; so what NATS and its client cost is left out, and the figures are steady on a busy machine. For those
who tune these rooms: run it in two clones in turns, compare the smallest.

    python benchmarks/legs.py [--rounds 40] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import os
import pstats
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import orjson
import uvloop

from flint_bus import Bus
from flint_bus.pace import Pace
from flint_bus.subjects import definition_subject
from flint_bus.telling import Telling
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.definition import compile_definition
from flint_core.ids import make_run_id
from flint_core.machine import MachineLimits
from flint_core.program import Program
from flint_jq import EvaluatorPool
from flint_ops.clock import boottime, now_ms
from flint_ops.config import Settings
from flint_worker.branches import BranchInputs
from flint_worker.calls import Caller
from flint_worker.definitions import Definitions
from flint_worker.executors.noop import NoopExecutor
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.leg import Leg, LegServices
from flint_worker.secrets import SecretResolver
from flint_worker.table import LegTable
from flint_worker.values import Values

_INCARNATION = "0123456789abcdef0123456789abcdef"
_AT_ONCE = 200
_LEGS = 400

_NOOP: dict[str, Any] = {"call": "noop"}
_EXPRESSION: dict[str, Any] = {"call": "noop", "with": {"output": {"n": "${ .n }", "id": "${ .id }"}}}
_SHAPES: dict[str, tuple[list[dict[str, Any]], bytes]] = {
    "one": ([{"s": _NOOP}], b"{}"),
    "ten": ([{f"s{n}": _NOOP} for n in range(10)], b"{}"),
    "ten, expressions": ([{f"s{n}": _EXPRESSION} for n in range(10)], b'{"n": 1, "id": "4711"}'),
    "ten, caught": ([{f"s{n}": {"try": [{"a": _NOOP}], "catch": {}}} for n in range(10)], b"{}"),
    "a loop of ten": (
        [{"f": {"for": {"in": "${ .list }", "each": "n"}, "do": [{"s": _NOOP}]}}],
        b'{"list": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}',
    ),
}


class _Acknowledging:
    """As much of a bus as legs need."""

    max_append = 2**20

    def __init__(self) -> None:
        self.appends = 0
        self.bytes = 0
        self.programs: dict[str, Program] = {}
        self.telling = Telling(Pace())

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """The only request of a leg: for its definition."""
        encoded = self.programs[subject].encode()
        return dispatch_pb2.DefinitionResponse(program=encoded).SerializeToString()

    def append_now(self, subject: str, data: bytes, **_: Any) -> asyncio.Future[int]:
        """Stored in the next turn of the event loop."""
        self.appends += 1
        self.bytes += len(data)
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[int] = loop.create_future()
        loop.call_soon(stored.set_result, self.appends)
        return stored


def _program(do: list[dict[str, Any]]) -> Program:
    document = {"dsl": "1.0.3", "namespace": "default", "name": "t", "version": "1.0.0"}
    compiled = compile_definition(orjson.dumps({"document": document, "do": do}))
    if compiled.program is None:
        raise ValueError(str(compiled.findings))
    return compiled.program


class _Worker:
    """The parts of a worker that execute legs."""

    def __init__(self, evaluators: EvaluatorPool, settings: Settings) -> None:
        self.bus = _Acknowledging()
        limits = settings.limits
        bus = cast("Bus", self.bus)
        payloads = SimpleNamespace()
        values = Values(cast("Any", payloads), evaluators, limits)
        self.definitions = Definitions(bus)
        services = LegServices(
            bus=bus,
            definitions=self.definitions,
            values=values,
            branches=BranchInputs(cast("Any", payloads)),
            caller=Caller({"noop": NoopExecutor()}, SecretResolver({}, evaluators), values),
            limits=limits,
            machine_limits=MachineLimits(),
            inline_wait_ms=200,
        )
        self._lease = Lease(_INCARNATION, 1, boottime(), 86_400)
        self._table = LegTable(_INCARNATION, 512, self._leg(services))
        self._sequence = 0

    def _leg(self, services: LegServices) -> Callable[[dispatch_pb2.Job], Leg]:
        lanes = Lanes(services.bus, self._lease)
        return lambda job: Leg(job, self._lease, services, lanes)

    def jobs(self, program: Program, given: bytes, count: int) -> list[bytes]:
        """Jobs as they come from the stream."""
        made = []
        for _ in range(count):
            self._sequence += 1
            job = dispatch_pb2.Job(
                run_id=make_run_id(0, now_ms(), os.urandom(9)),
                namespace="default",
                workflow_id="t",
                version="1.0.0",
                definition_hash=program.hash,
                leg=1,
                leg_nonce=os.urandom(16),
                claimant=_INCARNATION,
                generation=1,
                input=given,
                create_time_ms=now_ms(),
                level=4,
                trace_id=os.urandom(16),
                sequence=self._sequence,
                owner_session=b"x" * 16,
                watermark=max(0, self._sequence - 2 * _AT_ONCE),
            )
            made.append(job.SerializeToString())
        return made

    async def execute(self, jobs: list[bytes]) -> None:
        """All of them, so many at the same time."""
        for first in range(0, len(jobs), _AT_ONCE):
            for data in jobs[first : first + _AT_ONCE]:
                self._table.offer(dispatch_pb2.Job.FromString(data))
            await self._table.idle.wait()


async def _main(rounds: int, shapes: list[str], profile: bool) -> None:
    settings = Settings()
    limits = settings.limits
    evaluators = EvaluatorPool(1, limits.evaluate_ms, limits.evaluate_bytes, limits.value_bytes)
    await evaluators.start()
    worker = _Worker(evaluators, settings)
    try:
        programs = {name: (_program(_SHAPES[name][0]), _SHAPES[name][1]) for name in shapes}
        for program, given in programs.values():
            worker.bus.programs[definition_subject(program.hash)] = program
            await worker.execute(worker.jobs(program, given, _AT_ONCE))
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        for name, (program, given) in programs.items():
            took = []
            before = worker.bus.appends, worker.bus.bytes
            for _ in range(rounds):
                jobs = worker.jobs(program, given, _LEGS)
                began = time.process_time()
                await worker.execute(jobs)
                took.append((time.process_time() - began) / _LEGS * 1e6)
            legs = rounds * _LEGS
            entries = (worker.bus.appends - before[0]) / legs
            size = (worker.bus.bytes - before[1]) / legs
            least, middle = min(took), statistics.median(took)
            print(f"{name:18} {least:7.1f} µs/leg least, {middle:7.1f} median; {entries:.1f} entries, {size:.0f} bytes")
            if profile:
                jobs = worker.jobs(program, given, _LEGS)
                profiler = cProfile.Profile()
                profiler.enable()
                await worker.execute(jobs)
                profiler.disable()
                pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    finally:
        await worker.definitions.close()
        await evaluators.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", action="append", choices=list(_SHAPES), help="shapes of runs; repeated for several")
    parser.add_argument("--profile", action="store_true", help="cProfile of one round of each")
    given = parser.parse_args()
    uvloop.run(_main(given.rounds, given.only or list(_SHAPES), given.profile))
