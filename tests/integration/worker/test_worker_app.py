"""The whole worker with real NATS, a registry of the test's own over real gRPC, and jobs over JetStream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from eventually import eventually
from nats_server import NatsServer
from worker_bench import STREAM, Bench, noops

from flint_bus import JOBS_STREAM, Bus
from flint_bus.subjects import control_subject, hints_subject, job_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_ops.config import ClusterSettings, JournalSettings, NatsSettings, Settings, WorkerSettings
from flint_ops.lifecycle import Lifecycle
from flint_rpc.server import Service, TokenInterceptor, create_server
from flint_worker import reporting
from flint_worker.app import main

TOKEN = "t" * 32


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Grants leases and remembers what it heard."""

    def __init__(self) -> None:
        self.cards: list[registry_pb2.WorkerCard] = []
        self.beats: list[registry_pb2.Beat] = []
        self.ended: set[str] = set()
        self.deregistered: list[str] = []
        self.drain = False

    async def Register(self, request: Any, context: Any) -> registry_pb2.RegisterResponse:
        card = registry_pb2.WorkerCard()
        card.CopyFrom(request.card)
        card.incarnation = uuid.uuid4().hex
        card.lease_id = len(self.cards) + 1
        self.cards.append(card)
        return registry_pb2.RegisterResponse(card=card, lease_ttl_ms=30_000, heartbeat_interval_ms=50)

    async def Heartbeat(self, request: Any, context: Any) -> registry_pb2.HeartbeatResponse:
        self.beats.extend(request.beats)
        return registry_pb2.HeartbeatResponse(
            results=[
                registry_pb2.BeatResult(renewed=beat.incarnation not in self.ended, drain=self.drain)
                for beat in request.beats
            ]
        )

    async def Deregister(self, request: Any, context: Any) -> registry_pb2.DeregisterResponse:
        self.deregistered.append(request.incarnation)
        return registry_pb2.DeregisterResponse()


class Room:
    def __init__(self, bench: Bench, registry: Registry, settings: Settings) -> None:
        self.bench = bench
        self.registry = registry
        self.settings = settings
        self.lifecycle = Lifecycle("worker", "worker-1")
        self.worker = asyncio.create_task(main(settings, self.lifecycle))

    @property
    def incarnation(self) -> str:
        return self.registry.cards[-1].incarnation

    async def ready(self) -> None:
        self.lifecycle.readiness.set("main")
        await eventually(lambda: not self.lifecycle.readiness.failing())

    async def send(self, job: dispatch_pb2.Job) -> dispatch_pb2.Job:
        job.claimant = self.incarnation
        await self.bench.bus.append(
            job_subject("local", "default", self.incarnation),
            job.SerializeToString(),
            msg_id=job.leg_nonce.hex(),
            stream=JOBS_STREAM,
        )
        return job

    async def control(self, request: dispatch_pb2.ControlRequest) -> dispatch_pb2.ControlResponse:
        data = await self.bench.bus.request(control_subject(self.incarnation), request.SerializeToString(), 60)
        return dispatch_pb2.ControlResponse.FromString(data)

    async def entries_until_end(self, job: dispatch_pb2.Job) -> list[Any]:
        async with asyncio.timeout(60):
            while True:
                entries = await self.bench.entries(job)
                if entries and entries[-1].HasField("end"):
                    return entries
                await asyncio.sleep(0.01)


@pytest.fixture
async def room(own_nats: NatsServer) -> AsyncIterator[Room]:
    registry = Registry()
    server = create_server(
        "127.0.0.1:0",
        [
            Service(
                registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
                registry_pb2_grpc.add_RegistryServiceServicer_to_server,
                registry,
            )
        ],
        interceptors=[TokenInterceptor(TOKEN)],
    )
    await server.start()
    settings = Settings(
        cluster=ClusterSettings(internal_token=TOKEN),  # type: ignore[arg-type]
        nats=NatsSettings(urls=[own_nats.url]),
        worker=WorkerSettings(registries=[server.address], slots=4, drain_s=60, evaluators=1),
    )
    bus = await Bus.connect(settings.nats, name="owner")
    await bus.create_journal(1, JournalSettings())
    await bus.create_jobs(JournalSettings())
    bench = await Bench.open(bus)
    room = Room(bench, registry, settings)
    yield room
    room.lifecycle.stop()
    async with asyncio.timeout(60):
        await room.worker
    await bench.close()
    await bus.close()
    await server.stop(0)


def slow(ms: int) -> list[dict[str, Any]]:
    return [{"slow": {"call": "noop", "with": {"delay_ms": ms, "output": {"slow": True}}}}, *noops(1)]


async def test_jobs_run_and_heartbeats_tell_the_load(room: Room) -> None:
    await room.ready()
    program = room.bench.define(noops(3))
    jobs = [await room.send(room.bench.job(program)) for _ in range(20)]
    for job in jobs:
        entries = await room.entries_until_end(job)
        assert [entry.index for entry in entries] == [1, 2, 3]
        assert entries[-1].end.HasField("succeeded")
    card = room.registry.cards[0]
    assert (card.worker_id, card.pool, card.region, card.slots) == ("worker-1", "default", "local", 4)
    assert "noop" in card.functions
    await eventually(lambda: bool(room.registry.beats) and room.registry.beats[-1].legs == 0)
    assert room.registry.beats[-1].memory_bytes > 10_000_000


async def test_a_job_of_an_older_incarnation_is_refused_and_a_lapsed_lease_drops_its_legs(room: Room) -> None:
    await room.ready()
    old = room.incarnation
    job = await room.send(room.bench.job(room.bench.define(slow(60_000))))
    await eventually(lambda: bool(room.registry.beats) and room.registry.beats[-1].legs == 1)
    room.registry.ended.add(old)
    await eventually(lambda: room.incarnation != old)
    await room.ready()
    stale = room.bench.job(room.bench.define(noops(1)))
    stale.claimant = old
    await room.bench.bus.append(
        job_subject("local", "default", room.incarnation),
        stale.SerializeToString(),
        msg_id=stale.leg_nonce.hex(),
        stream=JOBS_STREAM,
    )
    after = await room.send(room.bench.job(room.bench.define(noops(1))))
    await room.entries_until_end(after)
    assert await room.bench.entries(stale) == []
    assert await room.bench.entries(job) == []


async def test_jobs_that_come_together_again_and_mixed_with_lone_ones_are_taken_once(room: Room) -> None:
    await room.ready()
    program = room.bench.define(noops(2))
    session = bytes(16)
    jobs = [room.bench.job(program, owner_session=session, sequence=n) for n in range(1, 13)]
    for job in jobs:
        job.claimant = room.incarnation
    together = dispatch_pb2.JobBatch(jobs=[job.SerializeToString() for job in jobs[:8]]).SerializeToString()
    subject = job_subject("local", "default", room.incarnation)
    name = jobs[0].leg_nonce.hex()

    async def append(data: bytes, msg_id: str) -> int:
        return await room.bench.bus.append(subject, data, msg_id=msg_id, stream=JOBS_STREAM)

    stored = await append(together, name)
    assert await append(together, name) == stored  # its answer was lost: stored once
    await append(together, "another name")  # e.g. after the duplicate window: taken once
    for job in jobs[4:]:  # some of them were in it
        await append(job.SerializeToString(), f"alone {job.leg_nonce.hex()}")
    for job in jobs:
        entries = await room.entries_until_end(job)
        assert [entry.index for entry in entries] == [1, 2]
    await eventually(lambda: bool(room.registry.beats) and room.registry.beats[-1].legs == 0)
    last = await room.send(room.bench.job(program, owner_session=session, sequence=13, watermark=12))
    await room.entries_until_end(last)
    await append(together, "after the watermark")  # forgotten, and settled
    end = await room.send(room.bench.job(program, owner_session=session, sequence=14, watermark=12))
    await room.entries_until_end(end)
    assert [len(await room.bench.entries(job)) for job in jobs] == [2] * len(jobs)
    assert room.registry.cards[0].job_batches


async def test_release_and_cancel(room: Room) -> None:
    await room.ready()
    running = await room.send(room.bench.job(room.bench.define(slow(60_000))))
    await eventually(lambda: bool(room.registry.beats) and room.registry.beats[-1].legs == 1)
    never_sent = room.bench.job(room.bench.define(noops(1)))
    refs = [dispatch_pb2.LegRef(run_id=job.run_id, leg_nonce=job.leg_nonce) for job in (running, never_sent)]
    answer = await room.control(dispatch_pb2.ControlRequest(release=dispatch_pb2.ReleaseLegs(legs=refs)))
    assert (answer.incarnation, list(answer.released)) == (room.incarnation, [False, True])
    await room.send(never_sent)
    await room.control(dispatch_pb2.ControlRequest(cancel=dispatch_pb2.CancelLegs(legs=refs[:1])))
    entries = await room.entries_until_end(running)
    assert entries[-1].end.HasField("cancelled")
    assert await room.bench.entries(never_sent) == []


async def test_stopping_gives_legs_back_and_deregisters(room: Room) -> None:
    await room.ready()
    program = room.bench.define(slow(4_000))
    jobs = [await room.send(room.bench.job(program)) for _ in range(6)]
    await eventually(lambda: bool(room.registry.beats) and room.registry.beats[-1].legs == 6)
    room.lifecycle.stop()
    async with asyncio.timeout(60):
        await room.worker
    ends = [(await room.entries_until_end(job))[-1] for job in jobs]
    assert [entry.end.WhichOneof("end") for entry in ends] == ["yielded"] * 6
    assert sorted(bool(entry.snapshot) for entry in ends) == [False, False, True, True, True, True]
    assert room.registry.deregistered == [room.registry.cards[0].incarnation]


async def test_the_registry_can_ask_it_to_drain(room: Room) -> None:
    await room.ready()
    room.registry.drain = True
    async with asyncio.timeout(60):
        await room.worker
    assert room.lifecycle.stopping.is_set()
    assert room.lifecycle.failure is None
    assert len(room.registry.deregistered) == 1


async def test_hints_tell_slow_steps_only(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_SLOW_MS", 1_000)  # a quick step may be held up for less than that
    await room.ready()
    hints: list[dispatch_pb2.StepHints] = []
    job = room.bench.job(room.bench.define([*noops(2), *slow(4_000)[:1]]))
    run = str(uuid.UUID(bytes=job.run_id))
    await room.bench.bus.subscribe(
        hints_subject(run), lambda message: hints.append(dispatch_pb2.StepHints.FromString(message.data))
    )
    await room.send(job)
    await room.entries_until_end(job)
    (hint,) = hints
    assert [(step.step, step.provisional) for step in hint.steps] == [("/do/2/slow", True)]


async def test_a_wiped_jetstream_store_is_survived(room: Room, own_nats: NatsServer) -> None:
    await room.ready()
    program = room.bench.define(noops(2))
    await room.entries_until_end(await room.send(room.bench.job(program)))
    own_nats.kill()
    own_nats.wipe()
    await eventually(lambda: not room.bench.bus.connected.is_set())
    own_nats.start()
    await eventually(room.bench.bus.connected.is_set)
    await room.bench.bus.create_journal(1, JournalSettings())
    await room.bench.bus.create_jobs(JournalSettings())
    job = await room.send(room.bench.job(program))
    entries = await room.entries_until_end(job)
    assert orjson.loads(entries[-1].end.succeeded.output) == {"n": 1}
    state = await room.bench.bus.stream_state(STREAM)
    assert state is not None
    assert state.messages == 2
