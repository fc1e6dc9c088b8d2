"""NamespaceService: what a namespace may use, what it calls its levels; what waits in the cluster's queue.

Schedulers say what waits on `flint.backlog`; each gateway keeps the latest word of each, for 10 s.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from flint_bus import Bus, Message
from flint_bus.subjects import BACKLOG
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2
from flint_contracts.gen.flint.namespaces.v1.namespaces_pb2_grpc import NamespaceServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import namespaces_pb2 as scheduling_pb2
from flint_ops.clock import boottime
from flint_ops.logging import get_logger
from flint_rpc.errors import FieldViolation, field_invalid
from flint_rpc.names import is_label
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.namespaces_pb2_grpc import NamespaceSettingsServiceAsyncStub

__all__ = ["Backlogs", "NamespaceServicer"]

log = get_logger(__name__)

_TIMEOUT_S: Final = 10.0
_FRESH_S: Final = 10.0
_LEVELS: Final = 10
_LEVEL_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MOST: Final = {
    "weight": 1000,
    "max_running": 10**9,
    "max_queued": 10**9,
    "starts_per_second": 1e6,
    "retention_days": 36_500,
}
_NUMBERS: Final = (*_MOST, "starts_burst")
_LEAST: Final = {"retention_days": -1}

Context = grpc.aio.ServicerContext[Any, Any]


class Backlogs:
    """The latest word of each scheduler. Used from one event loop."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, dispatch_pb2.Backlog]] = {}

    async def open(self, bus: Bus) -> None:
        """Listen from now on."""
        await bus.subscribe(BACKLOG, self._heard)

    def _heard(self, message: Message) -> None:
        try:
            backlog = dispatch_pb2.Backlog.FromString(message.data)
        except DecodeError:
            log.warning("backlog_undecodable")
            return
        self._latest[backlog.scheduler_id] = (boottime(), backlog)

    def pools(self) -> list[namespaces_pb2.QueuedPool]:
        """What waits in the whole cluster, by pool and region."""
        now = boottime()
        self._latest = {s: told for s, told in self._latest.items() if now - told[0] < _FRESH_S}
        found: dict[tuple[str, str], namespaces_pb2.QueuedPool] = {}
        for _, backlog in self._latest.values():
            for told in backlog.pools:
                pool = found.get((told.pool, told.region))
                if pool is None:
                    pool = found[told.pool, told.region] = namespaces_pb2.QueuedPool(
                        pool=told.pool, region=told.region, ready=[0] * _LEVELS
                    )
                for level, count in enumerate(told.ready[:_LEVELS]):
                    pool.ready[level] += count
                pool.held += told.held
                pool.running += told.running
                pool.oldest_wait_ms = max(pool.oldest_wait_ms, told.oldest_wait_ms)
                pool.waiting_for = pool.waiting_for or told.waiting_for
        return [found[key] for key in sorted(found)]

    def waiting_for(self, pool: str, region: str) -> str:
        """Why runs for this place are not executed, beyond that all slots are taken."""
        for _, backlog in self._latest.values():
            for told in backlog.pools:
                if told.waiting_for and (told.pool, told.region) == (pool, region):
                    return told.waiting_for
        return ""


class NamespaceServicer(NamespaceServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(self, client: Client[NamespaceSettingsServiceAsyncStub], backlogs: Backlogs) -> None:
        self._client = client
        self._backlogs = backlogs

    async def GetNamespaceSettings(
        self, request: namespaces_pb2.GetNamespaceSettingsRequest, context: Context
    ) -> namespaces_pb2.GetNamespaceSettingsResponse:
        """As they stand in the record."""
        inner = scheduling_pb2.ReadNamespaceSettingsRequest(namespace=_namespace(request.name))
        response = await self._client.call(lambda stub: stub.ReadNamespaceSettings, inner, _TIMEOUT_S)
        return namespaces_pb2.GetNamespaceSettingsResponse(settings=response.settings)

    async def UpdateNamespaceSettings(
        self, request: namespaces_pb2.UpdateNamespaceSettingsRequest, context: Context
    ) -> namespaces_pb2.UpdateNamespaceSettingsResponse:
        """Weight, quotas and how long runs are kept."""
        namespace = _namespace(request.settings.name, "settings.name")
        paths = list(request.update_mask.paths) or list(_NUMBERS)
        violations = [
            FieldViolation("update_mask", f"holds {path[:80]!r}; it must hold some of {', '.join(_NUMBERS)}")
            for path in paths
            if path not in _NUMBERS
        ]
        for name in _NUMBERS:
            most = _MOST.get(name, 10**6)
            least = _LEAST.get(name, 0)
            if name in paths and not least <= getattr(request.settings, name) <= most:
                violations.append(FieldViolation(f"settings.{name}", f"must be {least} to {most:g}"))
        if violations:
            raise field_invalid(*violations)
        inner = scheduling_pb2.ChangeNamespaceSettingsRequest(namespace=namespace, settings=request.settings)
        inner.mask.paths.extend(paths)
        return namespaces_pb2.UpdateNamespaceSettingsResponse(settings=await self._change(inner))

    async def SetLevel(
        self, request: namespaces_pb2.SetLevelRequest, context: Context
    ) -> namespaces_pb2.SetLevelResponse:
        """Name a level."""
        namespace = _namespace(request.name)
        violations: list[FieldViolation] = []
        if not _LEVEL_NAME.fullmatch(request.level.name):
            rule = "is 1 to 63 characters: a lower-case letter first, then also digits, - and _"
            violations.append(FieldViolation("level.name", rule))
        if not 0 <= request.level.level < _LEVELS:
            violations.append(FieldViolation("level.level", "must be between 0 (most urgent) and 9"))
        if violations:
            raise field_invalid(*violations)
        inner = scheduling_pb2.ChangeNamespaceSettingsRequest(namespace=namespace, set_levels=[request.level])
        return namespaces_pb2.SetLevelResponse(settings=await self._change(inner))

    async def DeleteLevel(
        self, request: namespaces_pb2.DeleteLevelRequest, context: Context
    ) -> namespaces_pb2.DeleteLevelResponse:
        """Forget the name of a level."""
        inner = scheduling_pb2.ChangeNamespaceSettingsRequest(
            namespace=_namespace(request.name), delete_levels=[request.level_name[:63]]
        )
        return namespaces_pb2.DeleteLevelResponse(settings=await self._change(inner))

    async def DescribeQueue(
        self, request: namespaces_pb2.DescribeQueueRequest, context: Context
    ) -> namespaces_pb2.DescribeQueueResponse:
        """What waits, for the whole cluster."""
        return namespaces_pb2.DescribeQueueResponse(pools=self._backlogs.pools())

    async def DescribeRetention(
        self, request: namespaces_pb2.DescribeRetentionRequest, context: Context
    ) -> namespaces_pb2.DescribeRetentionResponse:
        """How long runs are kept, and what was deleted."""
        inner = scheduling_pb2.ReadRetentionRequest(namespace=_namespace(request.name))
        response = await self._client.call(lambda stub: stub.ReadRetention, inner, _TIMEOUT_S)
        return namespaces_pb2.DescribeRetentionResponse(retention=response.retention)

    async def _change(self, request: scheduling_pb2.ChangeNamespaceSettingsRequest) -> namespaces_pb2.NamespaceSettings:
        response = await self._client.call(lambda stub: stub.ChangeNamespaceSettings, request, _TIMEOUT_S)
        return response.settings


def _namespace(name: str, field: str = "name") -> str:
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "namespaces" and parts[2] == "settings" and is_label(parts[1]):
        return parts[1]
    raise field_invalid((field, "must be namespaces/{namespace}/settings"))
