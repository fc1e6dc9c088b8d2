"""Simulated workers, hundreds in one process: the worker's own protocol without its steps.

Each has its own incarnation and lease, heartbeats, its own consumer of jobs, answers owners' control requests and
writes the journal, by the worker's own code. Only the leg is played: after the `leg_s` of the run's input, at once
without it, it appends the run's end with one recorded step. What a process of its own would have (a connection to
NATS, channels to the registries) is shared by `share` workers, and so are their heartbeats: what comes within a short
moment is one call of the registry.

As a process of its own (`python -m support.simulated_fleet`): settings as one line of JSON on stdin, a line of JSON on
stdout once all have registered, and figures as another one when stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import uvloop

from flint_bus import Bus
from flint_bus.subjects import control_subject, job_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_ops.clock import now_ms
from flint_ops.config import LogSettings, NatsSettings, WorkerSettings
from flint_ops.logging import configure
from flint_rpc.upstream import Upstream
from flint_worker.control import Control
from flint_worker.intake import Intake
from flint_worker.journal import JournalWriter, LegStopped
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.records import timestamp
from flint_worker.registration import Heartbeats, Registrar
from flint_worker.table import LegTable

__all__ = ["FleetPlan", "SimulatedFleet", "SimulatedWorker", "simulated_fleet"]

_BEATS_GATHER_S: Final = 0.05
_REGISTERING: Final = 50
"""Registrations under way at the same time in one process."""


@dataclass(frozen=True)
class FleetPlan:
    """What to simulate, and where Flint is."""

    nats_urls: list[str]
    nats_user: str
    nats_password: str
    registries: list[str]
    token: str
    workers: int
    slots: int = 10
    pool: str = "default"
    region: str = "local"
    share: int = 1
    """Workers to one connection; 1: as in reality."""
    first: int = 1
    """Number of the first worker, for its id."""


class SimulatedLeg:
    """What `LegTable` needs of a leg: it ends after its time, and gives the run back when it is told to."""

    def __init__(self, bus: Bus, job: dispatch_pb2.Job, lease: Lease, lanes: Lanes) -> None:
        self.job = job
        self.run_id = job.run_id.hex()
        self.begun = False
        self.in_progress = False
        self.task: asyncio.Task[str] | None = None
        self._journal = JournalWriter(bus, lease, job, lanes)
        self._back = asyncio.Event()
        self._asked = False

    def start(self) -> asyncio.Task[str]:
        self.task = asyncio.create_task(self._run())
        return self.task

    async def _run(self) -> str:
        began = now_ms()
        leg_s = (json.loads(self.job.input) or {}).get("leg_s", 0) if self.job.input else 0
        if leg_s:
            self.begun = self.in_progress = True  # as in a step: the leg is not given back because somebody asks
            with suppress(TimeoutError):
                async with asyncio.timeout(leg_s):
                    await self._back.wait()
            self.in_progress = False
        entry = journal_pb2.JournalEntry()
        if self._back.is_set():
            entry.end.yielded.asked = self._asked
        else:
            entry.end.succeeded.output = b"null"
            entry.steps.add(
                step="/do/0/simulated",
                attempt=1,
                state=runs_pb2.StepRecord.STATE_SUCCEEDED,
                kind="call",
                function="noop",
                start_time=timestamp(began),
                end_time=timestamp(now_ms()),
            )
        self.begun = True
        try:
            await self._journal.append(entry.SerializeToString())
        except LegStopped as stopped:
            return stopped.reason
        return "yielded" if self._back.is_set() else "succeeded"

    def drain(self) -> None:
        self._back.set()

    def pause(self) -> None:
        self._asked = True
        self._back.set()

    def give_up(self) -> None:
        self._journal.give_up()
        self._back.set()

    def drop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def request_cancel(self, grace_ms: int = 0) -> None:
        """It is over soon anyway."""

    def deliver(self, messages: Iterable[dispatch_pb2.InboxMessage]) -> None:
        """It waits for nothing."""


class BeatGatherer:
    """Heartbeats of several workers as one call. Each waits for its own result."""

    def __init__(self, upstream: Upstream) -> None:
        self._client = upstream.client(registry_pb2_grpc.RegistryServiceStub)
        self._waiting: list[tuple[registry_pb2.Beat, asyncio.Future[registry_pb2.BeatResult]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def beat(self, beat: registry_pb2.Beat, timeout_s: float) -> registry_pb2.BeatResult:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[registry_pb2.BeatResult] = loop.create_future()
        self._waiting.append((beat, future))
        if self._timer is None:
            self._timer = loop.call_later(_BEATS_GATHER_S, self._send, timeout_s)
        return await future

    def _send(self, timeout_s: float) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._call(waiting, timeout_s))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(
        self, waiting: Sequence[tuple[registry_pb2.Beat, asyncio.Future[registry_pb2.BeatResult]]], timeout_s: float
    ) -> None:
        request = registry_pb2.HeartbeatRequest(beats=[beat for beat, _ in waiting])
        try:
            response = await self._client.call(
                lambda stub: stub.Heartbeat, request, timeout_s, attempt_timeout_s=max(0.2, timeout_s / 2)
            )
        except Exception as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(waiting, response.results, strict=True):
            if not future.done():
                future.set_result(result)


class GatheringRegistrar(Registrar):
    """The worker's registrar, whose heartbeats go out together with others'."""

    def __init__(self, settings: WorkerSettings, upstream: Upstream, gatherer: BeatGatherer) -> None:
        super().__init__(settings, upstream, ["noop"])
        self._gatherer = gatherer

    async def heartbeat(self, beat: registry_pb2.Beat, timeout_s: float) -> registry_pb2.BeatResult:
        return await self._gatherer.beat(beat, timeout_s)


class SimulatedWorker:
    """One worker: registers, again when its lease has lapsed, until it is closed."""

    def __init__(self, settings: WorkerSettings, bus: Bus, registrar: Registrar) -> None:
        self._settings = settings
        self._bus = bus
        self._registrar = registrar
        self.incarnations: list[str] = []
        """All lives, the present one last."""
        self.open = asyncio.Event()
        """Set while jobs can arrive."""
        self.drain_requested = asyncio.Event()
        self.legs = 0
        self._table: LegTable | None = None
        self._leaving = asyncio.Event()

    @property
    def held(self) -> int:
        """Legs it holds now."""
        return self._table.held if self._table is not None else 0

    def leave(self) -> None:
        """Deregister, and end."""
        self._leaving.set()

    async def run(self) -> None:
        while not self._leaving.is_set():
            lease, interval_s = await self._registrar.register()
            self.incarnations.append(lease.incarnation)
            await self._live(lease, interval_s)

    async def _live(self, lease: Lease, interval_s: float) -> None:
        lanes = Lanes(self._bus, lease)
        slots = self._settings.slots
        table = self._table = LegTable(lease.incarnation, slots, lambda job: self._leg(job, lease, lanes))
        subject = job_subject(self._settings.region, self._settings.pool, lease.incarnation)
        intake = Intake(self._bus, subject, table)
        beats = Heartbeats(self._registrar, lease, interval_s, lambda: table.held, self.drain_requested.set)
        control = Control(lease.incarnation, table)
        subscription = await self._bus.subscribe(control_subject(lease.incarnation), control.handle)
        tasks = [asyncio.create_task(work) for work in (beats.run(), intake.run())]
        ends = [asyncio.create_task(event.wait()) for event in (lease.ended, self._leaving)]
        reading = asyncio.create_task(intake.reading.wait())
        try:
            await asyncio.wait([*ends, reading], return_when=asyncio.FIRST_COMPLETED)
            self.open.set()
            await asyncio.wait([*ends, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if lease.valid():
                table.drain()
                await asyncio.wait([asyncio.create_task(table.idle.wait()), ends[0]], return_when="FIRST_COMPLETED")
        finally:
            self.open.clear()
            left = lease.valid()
            lease.end()
            legs = table.drop_all()
            for task in (*tasks, *ends, reading):
                task.cancel()
            await asyncio.gather(*legs, *tasks, *ends, reading, return_exceptions=True)
            await lanes.close()
            await subscription.close()
        if left:
            await self._registrar.deregister(lease)

    def _leg(self, job: dispatch_pb2.Job, lease: Lease, lanes: Lanes) -> Any:
        self.legs += 1
        return SimulatedLeg(self._bus, job, lease, lanes)


class SimulatedFleet:
    """The workers of one process."""

    def __init__(self, workers: list[SimulatedWorker]) -> None:
        self.workers = workers

    @property
    def legs(self) -> int:
        """Legs that were taken."""
        return sum(worker.legs for worker in self.workers)

    @property
    def held(self) -> int:
        """Legs that are held now."""
        return sum(worker.held for worker in self.workers)

    @property
    def lapses(self) -> int:
        """Leases that were lost."""
        return sum(max(0, len(worker.incarnations) - 1) for worker in self.workers)


@asynccontextmanager
async def simulated_fleet(plan: FleetPlan) -> AsyncIterator[SimulatedFleet]:
    """The fleet, registered and reading; its workers deregister when the block is left."""
    nats = NatsSettings(urls=plan.nats_urls, user=plan.nats_user, password=plan.nats_password)
    workers: list[SimulatedWorker] = []
    async with AsyncExitStack() as stack:
        for at in range(0, plan.workers, plan.share):
            bus = await Bus.connect(nats, name=f"simulated-{plan.first + at}")
            stack.push_async_callback(bus.close)
            upstream = Upstream(plan.registries, plan.token, name="registry")
            stack.push_async_callback(upstream.close)
            gatherer = BeatGatherer(upstream)
            for number in range(plan.first + at, plan.first + min(at + plan.share, plan.workers)):
                settings = WorkerSettings(
                    id=f"simulated-{number}", pool=plan.pool, region=plan.region, slots=plan.slots
                )
                if plan.share > 1:
                    registrar: Registrar = GatheringRegistrar(settings, upstream, gatherer)
                else:
                    registrar = Registrar(settings, upstream, ["noop"])
                workers.append(SimulatedWorker(settings, bus, registrar))
        tasks: list[asyncio.Task[None]] = []
        try:
            waiting = asyncio.Semaphore(_REGISTERING)

            async def begin(worker: SimulatedWorker) -> None:
                async with waiting:
                    tasks.append(asyncio.create_task(worker.run()))
                    await worker.open.wait()

            await asyncio.gather(*(begin(worker) for worker in workers))
            yield SimulatedFleet(workers)
        finally:
            for worker in workers:
                worker.leave()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=60)
                for task in late:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    configure(LogSettings(level="warning"), "simulated", "fleet")
    plan = FleetPlan(**json.loads(sys.stdin.readline()))
    began = time.perf_counter()
    async with simulated_fleet(plan) as fleet:
        print(json.dumps({"registered_s": time.perf_counter() - began}), flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps({"legs": fleet.legs, "held": fleet.held, "lapses": fleet.lapses}), flush=True)


def plan_json(plan: FleetPlan) -> str:
    """The line that a process of its own reads."""
    return json.dumps(asdict(plan))


if __name__ == "__main__":
    uvloop.run(_main())
