"""Settings of namespaces in a scheduler's memory: weights and shares for the queue, quotas for starts, names of levels.

    read at start ──▶ known ──every 30 s, or when somebody says that they changed──▶ read again

A change is in force at once at the replica that stored it and at those that hear of it; at the latest after 30 s.
While PostgreSQL is away what was read last holds. When the loop dies the service stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, BusError, Message
from flint_bus.subjects import NAMESPACES
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2
from flint_contracts.gen.flint.scheduling.v1 import namespaces_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import namespaces_pb2_grpc
from flint_ops.logging import get_logger
from flint_rpc.errors import ErrorReason, Refused, field_invalid
from flint_scheduler.cards import RunBook
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.refusals import store_refusals
from flint_scheduler.retention import keep_s_of
from flint_scheduler.shares import Shares
from flint_store import namespaces as store
from flint_store import retention
from flint_store.accept import Quota
from flint_store.errors import StoreUnavailable
from flint_store.timestamps import set_timestamp

__all__ = ["NamespaceDesk", "NamespaceSettingsServicer"]

log = get_logger(__name__)

_EVERY_S: Final = 30.0
_MOST_LEVELS: Final = 100
_NUMBERS: Final = ("weight", "max_running", "max_queued", "starts_per_second", "starts_burst", "retention_days")
_MOST_WORKFLOWS: Final = 100

Context = grpc.aio.ServicerContext[Any, Any]
Settings = namespaces_pb2.NamespaceSettings


class NamespaceDesk:
    """What is known of namespaces. Used from one event loop."""

    def __init__(self, engine: AsyncEngine, bus: Bus, queue: ReadyQueue, shares: Shares, book: RunBook) -> None:
        self._engine = engine
        self._bus = bus
        self._queue = queue
        self._shares = shares
        self._book = book
        self._known: dict[str, Settings] = {}
        self._levels: dict[str, dict[str, int]] = {}
        self._changed = asyncio.Event()
        self.quotas: dict[str, Quota] = {}  # of namespaces whose starts are counted

    async def open(self) -> None:
        """Read everything, and hear of changes. Raises StoreUnavailable."""
        await self._bus.subscribe(NAMESPACES, self._heard)
        self._take(await store.read_all_settings(self._engine))

    async def run(self) -> None:
        """Read again, every so often and when something changed."""
        while True:
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                self._take(await store.read_all_settings(self._engine))
            except StoreUnavailable as error:
                log.info("namespaces_not_read", error=str(error))

    def level_named(self, namespace: str, name: str) -> int | None:
        """The level to which the namespace gave this name."""
        return self._levels.get(namespace, {}).get(name)

    def retention_days(self, namespace: str) -> int:
        """How long the namespace keeps its ended runs; 0: as long as the cluster says."""
        known = self._known.get(namespace)
        return known.retention_days if known is not None else 0

    def changed(self, namespace: str, settings: Settings) -> None:
        """This replica changed them: they are in force here from now on, and the others are told."""
        self._take(self._known | {namespace: settings})
        try:
            message = dispatch_pb2.NamespaceChanged(namespace=namespace)
            self._bus.publish_now(NAMESPACES, message.SerializeToString())
        except BusError as error:
            log.info("namespace_change_not_told", error=str(error))

    def _heard(self, message: Message) -> None:
        try:
            dispatch_pb2.NamespaceChanged.FromString(message.data)
        except DecodeError:
            log.warning("namespace_change_undecodable")
            return
        self._changed.set()

    def _take(self, known: Mapping[str, Settings]) -> None:
        self._known = dict(known)
        self._levels = {n: {named.name: named.level for named in s.levels} for n, s in known.items() if s.levels}
        self._queue.weigh({n: s.weight for n, s in known.items() if s.weight})
        self._shares.limit({n: s.max_running for n, s in known.items() if s.max_running}, self._book)
        quotas: dict[str, Quota] = {}
        for namespace, settings in known.items():
            if settings.max_queued or settings.starts_per_second:
                rate = settings.starts_per_second or None
                burst = max(1.0, float(settings.starts_burst or settings.starts_per_second))
                quotas[namespace] = Quota(settings.max_queued or None, rate, burst)
        self.quotas = quotas


class NamespaceSettingsServicer(namespaces_pb2_grpc.NamespaceSettingsServiceServicer):
    """Reads and changes; gateways have authorised the caller and checked the values."""

    def __init__(self, engine: AsyncEngine, desk: NamespaceDesk, keep_s: float) -> None:
        """`keep_s`: how long the cluster keeps ended runs."""
        self._engine = engine
        self._desk = desk
        self._keep_s = keep_s

    async def ReadNamespaceSettings(
        self, request: pb.ReadNamespaceSettingsRequest, context: Context
    ) -> pb.ReadNamespaceSettingsResponse:
        """As they stand in the record."""
        with store_refusals():
            settings = await store.read_settings(self._engine, request.namespace)
        return pb.ReadNamespaceSettingsResponse(settings=settings)

    async def ChangeNamespaceSettings(
        self, request: pb.ChangeNamespaceSettingsRequest, context: Context
    ) -> pb.ChangeNamespaceSettingsResponse:
        """Change them in one commit; in force here when it answers."""
        unknown = [path for path in request.mask.paths if path not in _NUMBERS]
        if unknown:
            raise field_invalid(("mask", f"must hold some of {', '.join(_NUMBERS)}"))

        def change(settings: Settings) -> None:
            for path in request.mask.paths:
                setattr(settings, path, getattr(request.settings, path))
            levels = {named.name: named.level for named in settings.levels}
            levels |= {named.name: named.level for named in request.set_levels}
            for name in request.delete_levels:
                if levels.pop(name, None) is None:
                    raise Refused(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        ErrorReason.ERROR_REASON_LEVEL_UNKNOWN,
                        f"the namespace {request.namespace} has no level {name!r}",
                    )
            if len(levels) > _MOST_LEVELS:
                raise field_invalid(("level", f"there are {_MOST_LEVELS} names of levels already"))
            del settings.levels[:]
            for name, level in sorted(levels.items(), key=lambda item: (item[1], item[0])):
                settings.levels.add(name=name, level=level)

        with store_refusals():
            settings = await store.change_settings(self._engine, request.namespace, change)
        self._desk.changed(request.namespace, settings)
        return pb.ChangeNamespaceSettingsResponse(settings=settings)

    async def ReadRetention(self, request: pb.ReadRetentionRequest, context: Context) -> pb.ReadRetentionResponse:
        """What the record says; how long the cluster keeps runs is this replica's configuration."""
        with store_refusals():
            settings = await store.read_settings(self._engine, request.namespace)
            summary = await retention.read_summary(self._engine, request.namespace, _MOST_WORKFLOWS)
        found = namespaces_pb2.Retention(cluster_s=int(self._keep_s))
        found.namespace_s = int(keep_s_of(self._keep_s, settings.retention_days, None))
        if summary is not None:
            found.runs_deleted, found.rows_deleted = summary.runs, summary.records
            set_timestamp(found.last_deletion_time, summary.deleted_at)
            set_timestamp(found.oldest_run_time, summary.oldest_at)
            set_timestamp(found.last_sweep_time, summary.passed_at)
            for kept in summary.workflows:
                found.workflows.add(workflow_id=kept.workflow_id, retention_s=kept.retention_s)
        return pb.ReadRetentionResponse(retention=found)
