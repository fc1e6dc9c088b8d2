"""Composition root of the scheduler: constructors wired by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, Message
from flint_bus.subjects import FLEET_BEATS, WORKFLOWS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import (
    functions_pb2,
    functions_pb2_grpc,
    limits_pb2,
    limits_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    scheduling_pb2,
    scheduling_pb2_grpc,
)
from flint_coord import Coord
from flint_core.problems import ProblemType
from flint_core.windows import parse_window
from flint_ops.config import ConfigError, ConfigProblem, Settings
from flint_ops.lifecycle import Lifecycle
from flint_ops.logging import get_logger
from flint_rpc.server import Service, TokenInterceptor, create_server
from flint_scheduler.accept import Acceptor
from flint_scheduler.announce import Announcer
from flint_scheduler.attention import Attention
from flint_scheduler.awaits import Agent
from flint_scheduler.backlog import publish_backlog
from flint_scheduler.branches import BranchRuns
from flint_scheduler.cards import RunBook, RunCard
from flint_scheduler.children import ChildRuns
from flint_scheduler.clock import RecordClock
from flint_scheduler.control.commander import Commander
from flint_scheduler.control.holds import Holds
from flint_scheduler.control.room import CONTROL_LANES, RunControl
from flint_scheduler.definitions import DefinitionDesk
from flint_scheduler.delivery import Delivery
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.drafts import Command, CommandKind
from flint_scheduler.eventing import EVENTING_LANES, Eventing
from flint_scheduler.fleet import FleetView
from flint_scheduler.fold import Folder
from flint_scheduler.functions import FunctionRegistryServicer
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.limits import LimitStoreServicer
from flint_scheduler.metrics import RUNS_PARKED
from flint_scheduler.namespaces import NamespaceDesk, NamespaceSettingsServicer
from flint_scheduler.nudges import nudge_forks, nudge_inboxes
from flint_scheduler.owned_runs import OwnedRuns
from flint_scheduler.payloads import PayloadDesk
from flint_scheduler.permits import Permits
from flint_scheduler.pool_rules import PoolDesk
from flint_scheduler.principals import PrincipalServicer
from flint_scheduler.purging import Purger
from flint_scheduler.readers import Readers
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record
from flint_scheduler.recovery import Recovery
from flint_scheduler.retention import Retention
from flint_scheduler.roster import follow_workers, on_beats
from flint_scheduler.servicer import SchedulingServicer
from flint_scheduler.shares import Shares
from flint_scheduler.steward import Steward
from flint_scheduler.timers import Timers
from flint_scheduler.timetable import TIMETABLE_LANES, Timetable
from flint_store.awaits import Target
from flint_store.definitions import DefinitionCache
from flint_store.engine import GRACE_S, create_engine
from flint_store.migrate import check_schema

__all__ = ["serve"]

log = get_logger(__name__)

_LANES = 5  # accept, open, fold, sweep, generation
_OWN_READS = 3  # the orchestrator's own reads never wait behind those of clients
_MIN_PAYLOAD_BYTES = 4 * 2**20  # a job with its state, a compiled definition


async def serve(settings: Settings, lifecycle: Lifecycle) -> None:
    """Run one scheduler until it is told to stop."""
    mine = settings.scheduler
    lifecycle.readiness.require("start")
    connecting = asyncio.create_task(_connect(settings))
    stopping = asyncio.create_task(lifecycle.stopping.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not connecting.done():  # told to stop while NATS or PostgreSQL could not be reached
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        return
    bus, coord, engine, record = connecting.result()

    clock = RecordClock()
    holdings = Holdings(settings.cluster.shard_groups)
    book = RunBook()
    queue = ReadyQueue(
        ageing_s=mine.ageing_s,
        off_peak=parse_window(mine.off_peak) if mine.off_peak else None,
        now_ms=clock.now_ms,
    )
    shares = Shares(queue)
    fleet = FleetView(
        mine.overcommit,
        settings.registry.lease_ttl_s,
        headroom=mine.headroom,
        urgent_level=mine.headroom_level,
        spare_share=mine.off_peak_spare,
    )
    announcer = Announcer(bus)
    holds = Holds(record, book)
    permits = Permits(record, holdings, book, queue, fleet, bus)
    dispatcher = Dispatcher(record, holdings, book, queue, fleet, bus, clock, announcer, shares, permits)
    acceptor = Acceptor(record, holdings, book, queue, fleet, dispatcher, bus, clock, shares)
    folder = Folder(record, holdings, book, queue, fleet, clock, announcer, settings.limits.leg_losses, shares)
    timers = Timers(book, queue, dispatcher, clock, 2 * mine.sweep_interval_s)
    readers = Readers(bus, record, holdings, folder, settings.journal)
    recovery = Recovery(bus, holdings, book, fleet, readers, mine.begin_deadline_s)
    agent = Agent(record, bus, holdings)
    attention = Attention(
        record,
        bus,
        holdings,
        book,
        queue,
        fleet,
        dispatcher,
        folder,
        timers,
        announcer,
        clock,
        Delivery(record, bus),
        agent,
        shares,
        mine.sweep_interval_s,
    )
    purger = Purger(bus, record, holdings, settings.journal)
    definitions = DefinitionCache(engine)
    children = ChildRuns(record, bus, definitions, acceptor, queue, settings.limits, mine.queue_limit)
    agent.serve(journal_pb2.AwaitOpened.KIND_RUN, children)
    branches = BranchRuns(record, bus, acceptor, queue, mine.queue_limit)
    agent.serve(journal_pb2.AwaitOpened.KIND_BRANCHES, branches)
    eventing = Eventing(settings, record, engine, bus, agent, announcer)
    commander = Commander(record, bus, holdings, book, queue, folder, announcer, clock)
    control = RunControl(settings, engine, record, bus, holdings, commander, holds, eventing, clock)
    namespaces = NamespaceDesk(engine, bus, queue, shares, book)
    pool_desk = PoolDesk(settings.fleet, engine, bus, fleet)
    timetable = Timetable(settings, engine, record, holdings, acceptor, queue, clock, bus, namespaces.level_named)
    retention = Retention(record, holdings, clock, settings.retention, namespaces.retention_days)
    acceptor.quotas = lambda: namespaces.quotas
    folder.level_named = namespaces.level_named
    servicer = SchedulingServicer(
        settings, engine, record, definitions, acceptor, holdings, book, queue, bus, namespaces
    )
    server = create_server(
        mine.listen,
        [
            Service(
                scheduling_pb2.DESCRIPTOR.services_by_name["SchedulingService"],
                scheduling_pb2_grpc.add_SchedulingServiceServicer_to_server,
                servicer,
            ),
            Service(
                scheduling_pb2.DESCRIPTOR.services_by_name["PrincipalService"],
                scheduling_pb2_grpc.add_PrincipalServiceServicer_to_server,
                PrincipalServicer(engine),
            ),
            Service(
                functions_pb2.DESCRIPTOR.services_by_name["FunctionRegistryService"],
                functions_pb2_grpc.add_FunctionRegistryServiceServicer_to_server,
                FunctionRegistryServicer(engine),
            ),
            Service(
                limits_pb2.DESCRIPTOR.services_by_name["LimitStoreService"],
                limits_pb2_grpc.add_LimitStoreServiceServicer_to_server,
                LimitStoreServicer(engine),
            ),
            Service(
                namespaces_pb2.DESCRIPTOR.services_by_name["NamespaceSettingsService"],
                namespaces_pb2_grpc.add_NamespaceSettingsServiceServicer_to_server,
                NamespaceSettingsServicer(engine, namespaces, settings.retention.keep_s),
            ),
            *eventing.services,
            *control.services,
            *timetable.services,
        ],
        interceptors=[TokenInterceptor(settings.cluster.internal_token.get_secret_value())],
    )
    runs = OwnedRuns(record, holdings, book, queue, fleet, shares, timers, acceptor, dispatcher, attention)
    steward = Steward(
        scheduler_id=mine.id,
        address=server.address,
        lease_ttl_s=settings.etcd.lease_ttl_s,
        coord=coord,
        record=record,
        bus=bus,
        holdings=holdings,
        runs=runs,
        acceptor=acceptor,
        dispatcher=dispatcher,
        folder=folder,
        attention=attention,
        recovery=recovery,
        readers=readers,
    )

    # Who tells whom: each room knows only what it calls; what calls back is wired here.
    fleet.on_ended = recovery.worker_ended
    fleet.on_room = dispatcher.wake
    fleet.on_rules = queue.admit_all
    queue.on_ready = dispatcher.wake
    folder.on_ready = dispatcher.wake
    folder.on_waiting = timers.add
    folder.on_permits = permits.ended
    permits.on_ready = dispatcher.wake
    queue.parked = lambda: permits.waiting
    permits.on_replaced = lambda run_id, group: nudge_inboxes(bus, [Target(run_id, group)])
    attention.on_after = permits.look_after
    folder.on_mail = attention.look_at
    folder.on_awaits = agent.tell
    folder.on_answered = partial(nudge_inboxes, bus)
    folder.on_branches = partial(nudge_forks, bus)
    folder.on_cancel = recovery.cancel_leg
    control.attach(attention, folder, recovery, dispatcher, acceptor, queue, timers)
    timetable.attach(attention, folder)
    folder.reload = runs.reload
    folder.on_cancel_nonce = recovery.cancel_nonce
    dispatcher.on_stream_missing = readers.suspect
    readers.failed = lifecycle.fail
    steward.failed = lifecycle.fail

    def generation_opened() -> None:
        recovery.reseal()
        dispatcher.wake()

    def given_up(group: int) -> None:
        spawn(f"reader-again-{group}", readers.restart_soon(group))

    readers.on_generation = generation_opened
    folder.on_given_up = given_up
    bus.on_reconnect(dispatcher.wake)
    bus.on_reconnect(readers.suspect)

    def undeliverable(card: RunCard, why: str) -> None:
        problem = runs_pb2.Problem(
            type=ProblemType.PAYLOAD_TOO_LARGE,
            status=413,
            title="The run's state is too large to be sent to a worker",
            detail=why,
        )
        folder.command(Command(card, CommandKind.FAIL, problem))

    dispatcher.on_undeliverable = undeliverable

    def refused(card: RunCard, key: str) -> None:
        problem = runs_pb2.Problem(
            type=ProblemType.CONCURRENCY,
            status=429,
            title="Another run has the run's place",
            detail=f"as many runs as its concurrency key {key!r} allows were under way, and its overflow is 'refuse'",
        )
        with contextlib.suppress(LaneClosed):
            folder.command(Command(card, CommandKind.CANCEL, problem))

    permits.on_refused = refused

    def workflows_changed(message: Message) -> None:
        changed = dispatch_pb2.WorkflowsChanged()
        try:
            changed.ParseFromString(message.data)
        except DecodeError:
            log.warning("workflows_changed_undecodable")
            return
        definitions.invalidate(changed.namespace, changed.workflow_id)
        control.look_soon()

    await bus.subscribe(FLEET_BEATS, on_beats(fleet))
    await bus.subscribe(WORKFLOWS, workflows_changed)
    await namespaces.open()
    await pool_desk.open()
    await DefinitionDesk(bus, engine).open()
    payload_desk = PayloadDesk(bus, engine, settings.payloads)
    await payload_desk.open()
    await eventing.open()
    await control.open()
    tasks: list[asyncio.Task[Any]] = []

    def spawn(name: str, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work, name=name)
        lifecycle.watch(task)
        tasks.append(task)

    def claimants() -> set[str]:
        return {c.claimant for c in book if c.claimant is not None}

    spawn("accept", acceptor.run())
    spawn("dispatch", dispatcher.run())
    spawn("fold", folder.run())
    spawn("timers", timers.run())
    spawn("namespaces", namespaces.run())
    spawn("pools", pool_desk.run())
    spawn("backlog", publish_backlog(queue, fleet, bus, mine.id, clock))
    spawn("recovery", recovery.run())
    spawn("attention", attention.run())
    spawn("permits", permits.run())
    RUNS_PARKED.set_function(lambda: permits.waiting)
    spawn("awaits", agent.run())
    spawn("generation", readers.keep())
    spawn("purging", purger.run())
    spawn("roster", follow_workers(coord, fleet, claimants))
    spawn("steward", steward.run())
    spawn("payloads", payload_desk.sweep())
    spawn("retention", retention.run())
    eventing.spawn(spawn)
    control.spawn(spawn)
    timetable.spawn(spawn)

    lifecycle.readiness.require("nats", lambda: None if bus.connected.is_set() else "not connected to NATS")
    lifecycle.readiness.require("session", lambda: None if steward.owning.is_set() else "no owner session yet")
    await server.start()
    lifecycle.readiness.set("start")
    log.info("serving", address=server.address)
    try:
        await lifecycle.stopping.wait()
        servicer.streams.close()
        await server.stop(mine.drain_s / 2)
        async with asyncio.timeout(mine.drain_s):
            await steward.stop()
    except TimeoutError:
        log.warning("drain_cut_short")
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await definitions.close()
        await record.close()
        await coord.close()
        await bus.close()
        await engine.dispose()


async def _connect(settings: Settings) -> tuple[Bus, Coord, AsyncEngine, Record]:
    """Reach NATS (waiting for it), check what it allows and the schema. Raises ConfigError, StoreError."""
    bus = await Bus.connect(settings.nats, name=settings.scheduler.id)
    try:
        if bus.max_payload < _MIN_PAYLOAD_BYTES:
            problem = f"this NATS takes messages of {bus.max_payload} bytes; set its max_payload to 8MB"
            raise ConfigError([ConfigProblem("nats.urls", "the server", problem)])
        coord = await Coord.connect(settings.etcd, cluster=settings.cluster.name)
        engine = create_engine(settings.postgres, "reading")
        await check_schema(engine, settings.cluster.shard_groups)
    except BaseException:
        await bus.close()
        raise
    record = Record(
        create_engine(settings.postgres, "lane", pool_size=_LANES + EVENTING_LANES + CONTROL_LANES + TIMETABLE_LANES),
        create_engine(settings.postgres, "reading", pool_size=_OWN_READS),
        settings.postgres.statement_timeout_ms / 1000 + GRACE_S,
    )
    return bus, coord, engine, record
