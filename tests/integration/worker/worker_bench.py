"""Drives legs with jobs of our own making and reads what they wrote, without any other service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from flint_bus import Bus, StoredMessage, Subscription, journal_stream
from flint_bus.payloads import PayloadClient
from flint_bus.subjects import DEFINITIONS, journal_filter, journal_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.definition import compile_definition
from flint_core.ids import make_run_id
from flint_core.machine import MachineLimits
from flint_core.program import Program
from flint_jq import EvaluatorPool
from flint_ops.clock import boottime, now_ms
from flint_ops.config import LimitSettings, Settings
from flint_worker.branches import BranchInputs
from flint_worker.calls import Caller
from flint_worker.definitions import Definitions
from flint_worker.executors import Executor, ResolvedCall
from flint_worker.executors.noop import NoopExecutor
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.leg import Leg, LegServices
from flint_worker.secrets import SecretResolver
from flint_worker.values import Values

INCARNATION = "0123456789abcdef0123456789abcdef"
STREAM = journal_stream(1)


class Probe:
    """An executor that records its calls and does what the test says."""

    unfinished = 0

    def __init__(self, act: Callable[[ResolvedCall], Any] | None = None) -> None:
        self.calls: list[ResolvedCall] = []
        self.act = act
        self.hold: asyncio.Event | None = None
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def execute(self, call: ResolvedCall) -> Any:
        self.calls.append(call)
        self.begun.set()
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return self.act(call) if self.act is not None else {"n": len(self.calls)}

    async def close(self) -> None:
        pass


class Bench:
    def __init__(self, bus: Bus, services: LegServices, probe: Probe) -> None:
        self.bus = bus
        self.services = services
        self.probe = probe
        self.programs: dict[bytes, Program] = {}
        self.lease = Lease(INCARNATION, 1, boottime(), 300)
        self.lanes = Lanes(bus, self.lease)
        self._answering: Subscription | None = None
        self.evaluators: EvaluatorPool

    @classmethod
    async def open(cls, bus: Bus, settings: Settings | None = None) -> Bench:
        settings = settings or Settings()
        limits: LimitSettings = settings.limits
        evaluators = EvaluatorPool(1, limits.evaluate_ms, limits.evaluate_bytes, limits.value_bytes)
        payloads = PayloadClient(bus, limits.values_in_memory_bytes)
        values = Values(payloads, evaluators, limits)
        await evaluators.start()
        probe = Probe()
        executors: dict[str, Executor] = {"noop": NoopExecutor(), "http": probe}
        services = LegServices(
            bus=bus,
            definitions=Definitions(bus),
            values=values,
            branches=BranchInputs(payloads),
            caller=Caller(executors, SecretResolver(settings.secrets, evaluators), values),
            limits=limits,
            machine_limits=MachineLimits(limits.payload_bytes, limits.state_bytes, limits.steps_per_run),
            inline_wait_ms=200,
        )
        bench = cls(bus, services, probe)
        bench.evaluators = evaluators
        bench._answering = await bus.subscribe(DEFINITIONS, bench._answer)
        return bench

    async def close(self) -> None:
        if self._answering is not None:
            await self._answering.close()
        await self.lanes.close()
        await self.services.definitions.close()
        await self.services.values.close()
        await self.evaluators.close()

    def _answer(self, message: Any) -> None:
        program = self.programs.get(bytes.fromhex(message.subject.rsplit(".", 1)[1]))
        encoded = program.encode() if program is not None else b""
        message.respond(dispatch_pb2.DefinitionResponse(program=encoded).SerializeToString())

    def define(self, do: Sequence[Any], **document: Any) -> Program:
        """Compiles `do:` of a workflow."""
        source = {
            "document": {"dsl": "1.0.3", "namespace": "default", "name": "test", "version": "1.0.0"},
            "do": list(do),
            **document,
        }
        compiled = compile_definition(orjson.dumps(source))
        assert compiled.program is not None, compiled.findings
        self.programs[compiled.program.hash] = compiled.program
        return compiled.program

    def job(self, program: Program, input: Any = None, **fields: Any) -> dispatch_pb2.Job:
        run_id = make_run_id(0, now_ms(), os.urandom(9))
        values: dict[str, Any] = {
            "run_id": run_id,
            "namespace": "default",
            "workflow_id": "test",
            "version": "1.0.0",
            "definition_hash": program.hash,
            "leg": 1,
            "leg_nonce": os.urandom(16),
            "claimant": INCARNATION,
            "generation": 1,
            "input": orjson.dumps(input if input is not None else {}),
            "create_time_ms": now_ms(),
            "trace_id": bytes(16),
            "level": 5,
        }
        values.update(fields)
        return dispatch_pb2.Job(**values)

    def next_job(
        self, job: dispatch_pb2.Job, entries: Sequence[journal_pb2.JournalEntry], seal: int
    ) -> dispatch_pb2.Job:
        """What the owner would send after folding these entries and appending a SEAL at sequence `seal`."""
        following = dispatch_pb2.Job()
        following.CopyFrom(job)
        following.leg += 1
        following.leg_nonce = os.urandom(16)
        following.expected_sequence = seal
        for entry in entries:
            following.position = entry.index
            if entry.snapshot:
                following.snapshot = entry.snapshot
                following.input = b""
                del following.events[:]
            else:
                following.events.append(entry.events)
        return following

    async def seal(self, job: dispatch_pb2.Job) -> int:
        entry = journal_pb2.JournalEntry(run_id=job.run_id, leg_nonce=job.leg_nonce, seal=True)
        return await self.bus.append(
            journal_subject(1, 0, job.run_id),
            entry.SerializeToString(),
            msg_id=f"seal.{job.leg_nonce.hex()}",
            stream=STREAM,
        )

    def leg(self, job: dispatch_pb2.Job, lease: Lease | None = None) -> Leg:
        own = lease is not None or self.services.bus is not self.bus
        lanes = Lanes(self.services.bus, lease or self.lease) if own else self.lanes
        return Leg(job, lease or self.lease, self.services, lanes)

    async def run(self, job: dispatch_pb2.Job, timeout_s: float = 20) -> str:
        """Runs one leg to its end; how it ended."""
        async with asyncio.timeout(timeout_s):
            return await self.leg(job).run()

    async def entries(self, job: dispatch_pb2.Job) -> list[journal_pb2.JournalEntry]:
        """What the journal holds of the run, in order, SEALs included."""
        return [entry for _, entry in await self.stored() if entry.run_id == job.run_id]

    async def stored(self) -> list[tuple[StoredMessage, journal_pb2.JournalEntry]]:
        """What the journal of group 0 holds: each entry, with the message in which it travelled."""
        found: list[tuple[StoredMessage, journal_pb2.JournalEntry]] = []
        last = await self.bus.last_message(STREAM, journal_filter(1, 0))
        if last is None:
            return found
        consumer = self.bus.consume(STREAM, journal_filter(1, 0), 1)
        try:
            async with asyncio.timeout(60):
                while True:
                    for message in await consumer.next_batch():
                        entry = journal_pb2.JournalEntry.FromString(message.data)
                        found += [(message, one) for one in entry.together or (entry,)]
                        if message.sequence == last.sequence:
                            return found
        finally:
            await consumer.close()


def noops(count: int) -> list[dict[str, Any]]:
    return [{f"step{n}": {"call": "noop", "with": {"output": {"n": n}}}} for n in range(count)]


def https(count: int) -> list[dict[str, Any]]:
    return [
        {f"step{n}": {"call": "http", "with": {"method": "get", "endpoint": "http://example.test/"}}}
        for n in range(count)
    ]
