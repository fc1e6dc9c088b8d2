"""The gateway's composition root: builds the parts by hand, serves, and takes them down in order.

On a stop: waits and watches end with UNAVAILABLE and RetryInfo (clients go on at another gateway), new calls are
refused, calls under way get `GRACE_S`; then the parts that served them are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from flint_bus.bus import Bus
from flint_bus.payloads import PayloadClient
from flint_bus.subjects import watcher_subject
from flint_contracts.gen.flint.approvals.v1 import approvals_pb2, approvals_pb2_grpc
from flint_contracts.gen.flint.events.v1 import events_pb2, events_pb2_grpc
from flint_contracts.gen.flint.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from flint_contracts.gen.flint.functions.v1 import functions_pb2, functions_pb2_grpc
from flint_contracts.gen.flint.identity.v1 import identity_pb2, identity_pb2_grpc
from flint_contracts.gen.flint.limits.v1 import limits_pb2, limits_pb2_grpc
from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2, namespaces_pb2_grpc
from flint_contracts.gen.flint.payloads.v1 import payloads_pb2, payloads_pb2_grpc
from flint_contracts.gen.flint.registry.v1.registry_pb2_grpc import RegistryServiceStub
from flint_contracts.gen.flint.runs.v1 import control_pb2, control_pb2_grpc, runs_pb2, runs_pb2_grpc
from flint_contracts.gen.flint.schedules.v1 import schedules_pb2, schedules_pb2_grpc
from flint_contracts.gen.flint.scheduling.v1.control_pb2_grpc import ControlServiceStub
from flint_contracts.gen.flint.scheduling.v1.events_pb2_grpc import (
    ApprovalStoreServiceStub,
    EventStoreServiceStub,
)
from flint_contracts.gen.flint.scheduling.v1.functions_pb2_grpc import FunctionRegistryServiceStub
from flint_contracts.gen.flint.scheduling.v1.limits_pb2_grpc import LimitStoreServiceStub
from flint_contracts.gen.flint.scheduling.v1.namespaces_pb2_grpc import NamespaceSettingsServiceStub
from flint_contracts.gen.flint.scheduling.v1.schedules_pb2_grpc import ScheduleStoreServiceStub
from flint_contracts.gen.flint.scheduling.v1.scheduling_pb2_grpc import PrincipalServiceStub, SchedulingServiceStub
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2, workflows_pb2_grpc
from flint_gateway.approvals import ApprovalServicer
from flint_gateway.auth import AuthInterceptor, check_policies
from flint_gateway.definitions import DefinitionChecker
from flint_gateway.event_feeds import EventFeeds
from flint_gateway.events import EventServicer
from flint_gateway.fleet import FleetServicer
from flint_gateway.fleet_advice import FleetAdvice
from flint_gateway.functions import FunctionServicer, FunctionWorkerServicer
from flint_gateway.functions_advice import FunctionAdvice
from flint_gateway.functions_catalog import FunctionCatalog
from flint_gateway.functions_hub import FunctionHub
from flint_gateway.identity import IdentityServicer
from flint_gateway.limits import LimitServicer
from flint_gateway.namespaces import Backlogs, NamespaceServicer
from flint_gateway.payloads import LargeInputs, PayloadServicer
from flint_gateway.principals import KeyCache
from flint_gateway.reading import RunReader
from flint_gateway.results import ResultCache
from flint_gateway.run_control import RunControlServicer
from flint_gateway.runs import RunServicer
from flint_gateway.schedules import ScheduleServicer
from flint_gateway.starts import StartBatcher
from flint_gateway.watching import Hub
from flint_gateway.workflows import WorkflowServicer
from flint_ops.config import ConfigError, ConfigProblem, Settings
from flint_ops.lifecycle import Lifecycle
from flint_ops.logging import get_logger
from flint_rpc.server import RpcServer, Service, create_server
from flint_rpc.upstream import Upstream

__all__ = ["GRACE_S", "REQUIRED", "Gateway", "main"]

GRACE_S = 10.0
"""Calls under way may take this long to finish after a stop."""

REQUIRED = ("cluster.internal_token",)
"""Settings without which a gateway cannot start."""

_PROBE_S = 2.0

_log = get_logger("flint_gateway")


class Gateway:
    """A gateway from `open` to `close`. `address` is where it listens."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle, bus: Bus) -> None:
        token = settings.cluster.internal_token.get_secret_value()
        section = settings.gateway
        watcher = watcher_subject(uuid.uuid4().hex)
        self._lifecycle = lifecycle
        self._bus = bus
        self._schedulers = Upstream(section.schedulers, token, "scheduler")
        self._registries = Upstream(section.registries, token, "registry")
        scheduling = self._schedulers.client(SchedulingServiceStub)
        principals = self._schedulers.client(PrincipalServiceStub)
        self._keys = KeyCache(principals, ttl_s=settings.identity.cache_ttl_s, entries=settings.identity.cache_entries)
        self._reader = RunReader(scheduling)
        self._hub = Hub(
            bus,
            self._reader,
            ResultCache(section.result_cache_bytes),
            watcher=watcher,
            groups=settings.cluster.shard_groups,
            watches=settings.limits.watches,
        )
        self._batcher = StartBatcher(
            scheduling, lanes=self._schedulers.size, watcher=watcher, batch_size=settings.limits.batch_size
        )
        self._checker = DefinitionChecker(settings.limits, settings.gateway)
        payloads = PayloadClient(bus, settings.limits.values_in_memory_bytes)
        inputs = LargeInputs(payloads, settings.limits)
        events = self._schedulers.client(EventStoreServiceStub)
        self._feeds = EventFeeds(bus, events)
        runs = RunServicer(scheduling, self._batcher, self._hub, self._reader, bus, settings.limits, inputs)
        self._start_streams = runs.start_streams
        self._backlogs = runs.backlogs = Backlogs()
        self._functions = FunctionHub(bus)
        registry = self._schedulers.client(FunctionRegistryServiceStub)
        self._catalog = FunctionCatalog(bus, registry, self._functions.served)
        self._functions.catalog = self._catalog
        services = [
            Service(
                runs_pb2.DESCRIPTOR.services_by_name["RunService"], runs_pb2_grpc.add_RunServiceServicer_to_server, runs
            ),
            Service(
                control_pb2.DESCRIPTOR.services_by_name["RunControlService"],
                control_pb2_grpc.add_RunControlServiceServicer_to_server,
                RunControlServicer(
                    self._schedulers.client(ControlServiceStub), self._hub, self._reader, settings.limits
                ),
            ),
            Service(
                workflows_pb2.DESCRIPTOR.services_by_name["WorkflowService"],
                workflows_pb2_grpc.add_WorkflowServiceServicer_to_server,
                WorkflowServicer(
                    scheduling,
                    self._checker,
                    settings.limits,
                    FunctionAdvice(registry),
                    FleetAdvice(self._registries.client(RegistryServiceStub)),
                ),
            ),
            Service(
                fleet_pb2.DESCRIPTOR.services_by_name["FleetService"],
                fleet_pb2_grpc.add_FleetServiceServicer_to_server,
                FleetServicer(self._registries.client(RegistryServiceStub)),
            ),
            Service(
                payloads_pb2.DESCRIPTOR.services_by_name["PayloadService"],
                payloads_pb2_grpc.add_PayloadServiceServicer_to_server,
                PayloadServicer(payloads, settings.limits),
            ),
            Service(
                identity_pb2.DESCRIPTOR.services_by_name["IdentityService"],
                identity_pb2_grpc.add_IdentityServiceServicer_to_server,
                IdentityServicer(principals),
            ),
            Service(
                functions_pb2.DESCRIPTOR.services_by_name["FunctionService"],
                functions_pb2_grpc.add_FunctionServiceServicer_to_server,
                FunctionServicer(registry),
            ),
            Service(
                functions_pb2.DESCRIPTOR.services_by_name["FunctionWorkerService"],
                functions_pb2_grpc.add_FunctionWorkerServiceServicer_to_server,
                FunctionWorkerServicer(self._functions, self._catalog, settings.limits),
            ),
            Service(
                events_pb2.DESCRIPTOR.services_by_name["EventService"],
                events_pb2_grpc.add_EventServiceServicer_to_server,
                EventServicer(events, self._feeds, self._hub, settings),
            ),
            Service(
                approvals_pb2.DESCRIPTOR.services_by_name["ApprovalService"],
                approvals_pb2_grpc.add_ApprovalServiceServicer_to_server,
                ApprovalServicer(self._schedulers.client(ApprovalStoreServiceStub)),
            ),
            Service(
                namespaces_pb2.DESCRIPTOR.services_by_name["NamespaceService"],
                namespaces_pb2_grpc.add_NamespaceServiceServicer_to_server,
                NamespaceServicer(self._schedulers.client(NamespaceSettingsServiceStub), self._backlogs),
            ),
            Service(
                limits_pb2.DESCRIPTOR.services_by_name["LimitService"],
                limits_pb2_grpc.add_LimitServiceServicer_to_server,
                LimitServicer(self._schedulers.client(LimitStoreServiceStub)),
            ),
            Service(
                schedules_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
                schedules_pb2_grpc.add_ScheduleServiceServicer_to_server,
                ScheduleServicer(self._schedulers.client(ScheduleStoreServiceStub), self._checker, settings.limits),
            ),
        ]
        check_policies(services)
        self._server: RpcServer = create_server(
            section.listen,
            services,
            interceptors=[AuthInterceptor(self._keys)],
            message_bytes=settings.limits.message_bytes,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """`host:port` as bound."""
        return self._server.address

    async def open(self) -> None:
        """Begins to serve. Ready when it listens, a scheduler is reached and NATS is connected."""
        readiness = self._lifecycle.readiness
        readiness.require("api")
        connected = self._bus.connected
        readiness.require("nats", lambda: None if connected.is_set() else "not connected")
        readiness.require("scheduler", self._schedulers.problem)
        self._tasks = [await self._hub.start(), *self._batcher.start()]
        await self._backlogs.open(self._bus)
        await self._functions.open()
        await self._catalog.open()
        self._tasks.append(asyncio.create_task(self._catalog.keep(), name="function-catalog"))
        self._tasks.append(await self._feeds.start())
        self._tasks.append(asyncio.create_task(self._reach_scheduler(), name="scheduler-probe"))
        for task in self._tasks:
            self._lifecycle.watch(task)
        await self._server.start()
        readiness.set("api")
        _log.info("serving", address=self.address)

    async def close(self) -> None:
        """Drains and ends everything; see the module."""
        stopping = asyncio.create_task(self._server.stop(GRACE_S), name="server-stop")
        self._start_streams.close()
        await self._hub.close()
        await self._feeds.close()
        await self._functions.close()
        await stopping
        await self._catalog.close()
        await self._batcher.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()
        await self._keys.close()
        await self._checker.close()
        await self._schedulers.close()
        await self._registries.close()

    async def _reach_scheduler(self) -> None:
        """Connects before the first client calls, and keeps /readyz true while nobody calls; then costs nothing."""
        while True:
            if self._schedulers.problem() is not None:
                await self._schedulers.probe(_PROBE_S)
            await asyncio.sleep(_PROBE_S)


async def main(settings: Settings, lifecycle: Lifecycle) -> None:
    """One gateway until `lifecycle.stopping` is set."""
    bus = await _connect(settings, lifecycle)
    if bus is None:
        return
    try:
        try:
            gateway = Gateway(settings, lifecycle, bus)
        except OSError as error:
            raise ConfigError([ConfigProblem("gateway.listen", "its value", str(error))]) from None
        try:
            await gateway.open()
            await lifecycle.stopping.wait()
        finally:
            await gateway.close()
    finally:
        await bus.close()


async def _connect(settings: Settings, lifecycle: Lifecycle) -> Bus | None:
    """The bus, or None when the gateway was stopped before NATS could be reached."""
    lifecycle.readiness.require("nats", lambda: "not connected")
    connecting = asyncio.create_task(Bus.connect(settings.nats, name=f"gateway-{lifecycle.instance}"))
    stopping = asyncio.create_task(lifecycle.stopping.wait())
    try:
        await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done():
            return connecting.result()
        return None
    finally:
        for task in (connecting, stopping):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
