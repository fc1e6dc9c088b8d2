"""The registry's composition root: wires one replica, serves, and takes it down in order.

Serving begins at once. Without etcd calls are refused with RetryInfo; without NATS beats are not passed on; without
PostgreSQL the history waits: leases, which keep the fleet alive, need etcd alone. SIGTERM: leadership is resigned
first (another replica leads within milliseconds), then the server stops with a grace.
"""

from __future__ import annotations

import asyncio
import contextlib

from flint_bus import Bus, Message
from flint_bus.subjects import BACKLOG, FLEET_POOLS
from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_coord import Coord, Election, Lease, keys
from flint_ops.config import Settings
from flint_ops.lifecycle import Lifecycle
from flint_ops.logging import get_logger
from flint_registry.beats import BeatExchange
from flint_registry.historian import Historian
from flint_registry.pools import Pools
from flint_registry.provisioners.choice import choose
from flint_registry.quarantine import Quarantine
from flint_registry.scaling.autoscaler import Autoscaler
from flint_registry.scaling.backlogs import Backlogs
from flint_registry.scaling.outlook import Outlooks
from flint_registry.scaling.policies import Policies
from flint_registry.servicer import RegistryServicer
from flint_registry.view import FleetView
from flint_rpc.server import Service, TokenInterceptor, create_server
from flint_store.engine import create_engine

__all__ = ["serve"]

_log = get_logger("flint_registry")

_GRACE_S = 2.0
_READINESS_S = 2.0
_DATABASE_CONNECTIONS = 4


async def serve(settings: Settings, lifecycle: Lifecycle) -> None:
    """Runs one registry until `lifecycle.stopping` is set."""
    me = settings.registry
    readiness = lifecycle.readiness
    for check in ("etcd", "nats"):
        readiness.require(check)
    async with contextlib.AsyncExitStack() as stack:
        coord = await Coord.connect(settings.etcd, cluster=settings.cluster.name)
        stack.push_async_callback(coord.close)
        engine = create_engine(settings.postgres, "reading", pool_size=_DATABASE_CONNECTIONS)
        stack.push_async_callback(engine.dispose)
        view = FleetView(coord)
        beats = BeatExchange(view)
        fleet = settings.fleet
        provisioner = choose(fleet)
        stack.push_async_callback(provisioner.close)
        backlogs, outlooks, policies = Backlogs(fleet.region), Outlooks(), Policies(fleet, engine)
        autoscaler = Autoscaler(fleet, coord, engine, view, backlogs, outlooks, policies, provisioner)
        quarantine = Quarantine(fleet.quarantine, coord, view)
        pools = Pools(fleet, engine, view, outlooks, policies)
        servicer = RegistryServicer(me, coord, view, beats, engine, pools)
        stack.push_async_callback(servicer.close)
        server = create_server(
            me.listen,
            [
                Service(
                    registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
                    registry_pb2_grpc.add_RegistryServiceServicer_to_server,
                    servicer,
                )
            ],
            interceptors=[TokenInterceptor(settings.cluster.internal_token.get_secret_value())],
        )
        historian = Historian(coord, engine)

        async def lead(lease: Lease) -> None:
            async with asyncio.TaskGroup() as group:
                for duty in (historian.lead(lease), autoscaler.lead(lease), quarantine.lead()):
                    group.create_task(duty)

        election = Election(coord, keys.REGISTRY_LEADER, me.id, settings.etcd.lease_ttl_s)
        await server.start()
        stack.push_async_callback(server.stop, _GRACE_S)
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(work, name=name)
            for name, work in (
                ("election", election.run(lead)),
                ("view-workers", view.follow_workers()),
                ("view-drains", view.follow_drains()),
                ("view-quarantines", view.follow_quarantines()),
                ("bus", _exchange(settings, beats, autoscaler, quarantine, pools, backlogs, outlooks)),
                ("readiness", _report_readiness(lifecycle, coord, view, beats)),
            )
        ]
        for task in tasks:
            lifecycle.watch(task)
        _log.info("serving", address=server.address)
        try:
            await lifecycle.stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _exchange(
    settings: Settings,
    beats: BeatExchange,
    autoscaler: Autoscaler,
    quarantine: Quarantine,
    pools: Pools,
    backlogs: Backlogs,
    outlooks: Outlooks,
) -> None:
    """Connects to NATS, however long it takes, passes beats and hears of queues and pools until cancelled."""
    bus = await Bus.connect(settings.nats, name=settings.registry.id)

    def hear_backlog(message: Message) -> None:
        backlogs.hear(message)
        autoscaler.queues_changed()

    subscriptions = []
    try:
        await beats.attach(bus)
        subscriptions.append(await bus.subscribe(BACKLOG, hear_backlog))
        subscriptions.append(await bus.subscribe(FLEET_POOLS, outlooks.hear))
        autoscaler.bus = quarantine.bus = pools.bus = bus
        await asyncio.Event().wait()
    finally:
        autoscaler.bus = quarantine.bus = pools.bus = None
        for subscription in subscriptions:
            await subscription.close()
        await beats.close()
        await bus.close()


async def _report_readiness(lifecycle: Lifecycle, coord: Coord, view: FleetView, beats: BeatExchange) -> None:
    """Tells /readyz, which is answered by another thread, what only this loop may look at."""
    await view.known.wait()
    while True:
        lifecycle.readiness.set("etcd", None if coord.connected else "not reachable")
        lifecycle.readiness.set("nats", None if beats.connected else "not connected")
        await asyncio.sleep(_READINESS_S)
