"""RegistryService: registration, heartbeats, departure, listing, drain. Any replica answers any call.

Nothing is kept between calls that another replica would need: leases and keys are etcd's. When etcd does not answer, a
call is refused with UNAVAILABLE and RetryInfo; a worker then lives on until its own count of its lease ends (R6).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_coord import Coord, CoordUnavailable, Lease, LeaseEnded, keys
from flint_ops.clock import now_ms
from flint_ops.config import RegistrySettings
from flint_ops.logging import get_logger
from flint_registry import metrics
from flint_registry.beats import BeatExchange
from flint_registry.cards import check_card, check_incarnation, shown, sorted_workers
from flint_registry.pools import Pools
from flint_registry.view import FleetView, LiveWorker, read_card, read_quarantine
from flint_rpc.errors import ErrorReason, Refused, component_unavailable, field_invalid
from flint_store import fleet
from flint_store.errors import StoreUnavailable

__all__ = ["RegistryServicer"]

_log = get_logger("flint_registry.servicer")

_ETCD_TIMEOUT_S = 2.0
_RETRY_AFTER_S = 0.5
_MAX_BEATS = 1000
_DEPARTURE_TTL_S = 600
_ENDED_FOR = timedelta(hours=1)

Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Serves one replica. Used from one event loop."""

    def __init__(
        self,
        settings: RegistrySettings,
        coord: Coord,
        view: FleetView,
        beats: BeatExchange,
        engine: AsyncEngine,
        pools: Pools,
    ) -> None:
        self._pools = pools
        self._settings = settings
        self._coord = coord
        self._view = view
        self._beats = beats
        self._engine = engine
        self._cleanups: set[asyncio.Task[None]] = set()
        self._renewed = metrics.RENEWALS.labels("renewed")
        self._ended = metrics.RENEWALS.labels("ended")
        self._unavailable = metrics.RENEWALS.labels("unavailable")

    async def close(self) -> None:
        """Waits for what abandoned registrations left to clean up (bounded by its deadlines)."""
        if self._cleanups:
            await asyncio.wait(self._cleanups)

    async def Register(self, request: registry_pb2.RegisterRequest, context: Context) -> registry_pb2.RegisterResponse:
        """A new incarnation under a new lease. One whose caller went away meanwhile is taken back."""
        check_card(request.card)
        card = registry_pb2.WorkerCard()
        card.CopyFrom(request.card)
        card.incarnation = uuid.uuid4().hex
        card.register_time.FromMilliseconds(now_ms())
        try:
            lease = await self._coord.grant(self._settings.lease_ttl_s, timeout_s=_ETCD_TIMEOUT_S)
        except CoordUnavailable as error:
            raise _etcd_away(error) from error
        card.lease_id = lease.id
        card.lease_ttl_ms = lease.ttl_s * 1000
        try:
            await self._coord.put(
                keys.worker(card.incarnation),
                card.SerializeToString(deterministic=True),
                lease.id,
                timeout_s=_ETCD_TIMEOUT_S,
            )
        except (CoordUnavailable, LeaseEnded) as error:
            self._later(self._take_back(lease))
            raise _etcd_away(error) from error
        except asyncio.CancelledError:
            self._later(self._take_back(lease))
            raise
        metrics.REGISTRATIONS.inc()
        _log.info("worker_registered", incarnation=card.incarnation, worker=card.worker_id, pool=card.pool)
        return registry_pb2.RegisterResponse(
            card=card,
            lease_ttl_ms=lease.ttl_s * 1000,
            heartbeat_interval_ms=round(self._settings.heartbeat_interval_s * 1000),
        )

    async def Heartbeat(
        self, request: registry_pb2.HeartbeatRequest, context: Context
    ) -> registry_pb2.HeartbeatResponse:
        """Renews all leases of the call as one batch. All are answered, or the call fails and none is known."""
        beats = request.beats
        if len(beats) > _MAX_BEATS:
            raise field_invalid(("beats", f"has more than {_MAX_BEATS} entries"))
        for number, beat in enumerate(beats):
            check_incarnation(beat.incarnation, f"beats[{number}].incarnation")
        metrics.BEATS.observe(len(beats))
        try:
            async with asyncio.timeout(_ETCD_TIMEOUT_S):
                standing = [await self._stands(beat.incarnation, beat.lease_id) for beat in beats]
                alive = [beat.lease_id for beat, stands in zip(beats, standing, strict=True) if stands]
                ttls = iter(await self._coord.renew_many(alive, timeout_s=_ETCD_TIMEOUT_S))
        except (CoordUnavailable, TimeoutError) as error:
            self._unavailable.inc(len(beats))
            raise _etcd_away(error) from error
        response = registry_pb2.HeartbeatResponse()
        told: list[registry_pb2.Beat] = []
        for beat, stands in zip(beats, standing, strict=True):
            renewed = stands and next(ttls) > 0
            response.results.add(
                renewed=renewed,
                drain=renewed and self._view.drain_asked(beat.incarnation),
                give_back=renewed and self._view.aside(beat.incarnation),
            )
            if renewed:
                told.append(beat)
        self._renewed.inc(len(told))
        self._ended.inc(len(beats) - len(told))
        self._beats.offer(told)
        return response

    async def Deregister(
        self, request: registry_pb2.DeregisterRequest, context: Context
    ) -> registry_pb2.DeregisterResponse:
        """Ends an incarnation at once. Repeating it, also at another replica, does no harm."""
        check_incarnation(request.incarnation)
        try:
            worker = await self._find(request.incarnation)
            if worker is not None and worker.card.lease_id == request.lease_id:
                note = await self._coord.grant(_DEPARTURE_TTL_S, timeout_s=_ETCD_TIMEOUT_S)
                departure, card = keys.departure(request.incarnation), worker.card.SerializeToString(deterministic=True)
                await self._coord.put(departure, card, note.id, timeout_s=_ETCD_TIMEOUT_S)
                await self._coord.revoke(request.lease_id, timeout_s=_ETCD_TIMEOUT_S)
                _log.info("worker_deregistered", incarnation=request.incarnation)
        except CoordUnavailable as error:
            raise _etcd_away(error) from error
        return registry_pb2.DeregisterResponse()

    async def ListWorkers(
        self, request: registry_pb2.ListWorkersRequest, context: Context
    ) -> registry_pb2.ListWorkersResponse:
        """Live workers from this replica's view; those that ended within the last hour from the history."""
        if not self._view.known.is_set():
            raise component_unavailable("etcd", "the fleet has not been read yet", retry_after_s=_RETRY_AFTER_S)
        workers = {worker.name: worker for worker in self._view.shown()}
        if request.show_ended:
            try:
                rows = await fleet.list_ended(self._engine, datetime.now(UTC) - _ENDED_FOR)
            except StoreUnavailable as error:
                raise component_unavailable("PostgreSQL", str(error), retry_after_s=_RETRY_AFTER_S) from error
            for row in rows:
                card = read_card(row.card)
                if card is None or row.ended_at is None:
                    continue
                ended = Timestamp()
                ended.FromDatetime(row.ended_at)
                worker = shown(card, row.state, ended=ended)
                workers.setdefault(worker.name, worker)
        return registry_pb2.ListWorkersResponse(workers=sorted_workers(workers.values()))

    async def DrainWorker(
        self, request: registry_pb2.DrainWorkerRequest, context: Context
    ) -> registry_pb2.DrainWorkerResponse:
        """Writes the wish under the worker's lease; the worker reads it in its next heartbeat's answer."""
        check_incarnation(request.incarnation)
        try:
            worker = await self._find(request.incarnation)
            if worker is None:
                raise _no_worker(request.incarnation)
            await self._coord.put(keys.drain(request.incarnation), b"", worker.card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
        except LeaseEnded:
            raise _no_worker(request.incarnation) from None
        except CoordUnavailable as error:
            raise _etcd_away(error) from error
        _log.info("worker_asked_to_drain", incarnation=request.incarnation)
        draining = shown(worker.card, fleet_pb2.Worker.STATE_DRAINING, beat=worker.beat, beat_ms=worker.beat_ms)
        return registry_pb2.DrainWorkerResponse(worker=draining)

    async def ReleaseWorker(
        self, request: registry_pb2.ReleaseWorkerRequest, context: Context
    ) -> registry_pb2.ReleaseWorkerResponse:
        """Forgets the quarantine; the leader sees to it that the worker gets legs again."""
        check_incarnation(request.incarnation)
        key = keys.quarantine(request.incarnation)
        try:
            worker = await self._find(request.incarnation)
            if worker is None:
                raise _no_worker(request.incarnation)
            item = await self._coord.get(key, timeout_s=_ETCD_TIMEOUT_S)
            quarantine = None if item is None else read_quarantine(item.value)
            released = quarantine is not None and quarantine.state == registry_pb2.Quarantine.STATE_ASIDE
            if released:
                await self._coord.delete(key, timeout_s=_ETCD_TIMEOUT_S)
                _log.info("worker_released", incarnation=request.incarnation)
        except CoordUnavailable as error:
            raise _etcd_away(error) from error
        told = shown(worker.card, self._view.state(worker), beat=worker.beat, beat_ms=worker.beat_ms)
        return registry_pb2.ReleaseWorkerResponse(worker=told, released=released)

    async def ListPools(
        self, request: registry_pb2.ListPoolsRequest, context: Context
    ) -> registry_pb2.ListPoolsResponse:
        """Live figures from this replica's view, settings from the record."""
        if not self._view.known.is_set():
            raise component_unavailable("etcd", "the fleet has not been read yet", retry_after_s=_RETRY_AFTER_S)
        return registry_pb2.ListPoolsResponse(pools=await self._pools.listed())

    async def UpdatePool(
        self, request: registry_pb2.UpdatePoolRequest, context: Context
    ) -> registry_pb2.UpdatePoolResponse:
        """In the record with the answer; the leader reads it within seconds."""
        pool = await self._pools.update(request.region, request.pool, request.settings, dict.fromkeys(request.fields))
        return registry_pb2.UpdatePoolResponse(pool=pool)

    async def ListScalingDecisions(
        self, request: registry_pb2.ListScalingDecisionsRequest, context: Context
    ) -> registry_pb2.ListScalingDecisionsResponse:
        """From the record."""
        return registry_pb2.ListScalingDecisionsResponse(decisions=await self._pools.decisions(request))

    # -- private

    async def _find(self, incarnation: str) -> LiveWorker | None:
        """The live worker by this replica's view, else by etcd itself: the view may be a moment behind."""
        worker = self._view.get(incarnation)
        if worker is not None:
            return worker
        item = await self._coord.get(keys.worker(incarnation), timeout_s=_ETCD_TIMEOUT_S)
        card = read_card(item.value) if item is not None else None
        return None if card is None else LiveWorker(card)

    async def _stands(self, incarnation: str, lease_id: int) -> bool:
        """Whether the incarnation's key stands under this lease.

        Without its key a worker has ended for everybody else, so its lease alone must not keep it believing.
        """
        worker = await self._find(incarnation)
        return worker is not None and worker.card.lease_id == lease_id

    async def _take_back(self, lease: Lease) -> None:
        try:
            await lease.revoke(timeout_s=_ETCD_TIMEOUT_S)
        except CoordUnavailable as error:
            _log.info("registration_left_to_expire", lease=f"{lease.id:x}", error=str(error))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="registry-take-back")
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)


def _etcd_away(error: Exception) -> Refused:
    return component_unavailable("etcd", str(error), retry_after_s=_RETRY_AFTER_S)


def _no_worker(incarnation: str) -> Refused:
    return Refused(
        grpc.StatusCode.NOT_FOUND,
        ErrorReason.ERROR_REASON_WORKER_NOT_FOUND,
        f"there is no live worker workers/{incarnation}",
    )
