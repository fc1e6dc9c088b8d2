"""Registering with the fleet and keeping the lease.

States: REGISTERING (tried for ever, with a bounded wait: the registry may come later) → HELD (a heartbeat each
interval, to any replica) → LAPSED (our own validity has passed, or the registry says that the incarnation ended): the
lease's `ended` is set and the caller begins anew with another incarnation. When the heartbeat task dies the lease
lapses.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import psutil

from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_ops.clock import boottime
from flint_ops.config import WorkerSettings
from flint_ops.logging import get_logger
from flint_rpc.errors import ErrorReason, Refused
from flint_rpc.upstream import Upstream
from flint_worker.figures import BeatFigures
from flint_worker.lease import Lease
from flint_worker.telemetry import LEASE_RENEWALS

__all__ = ["Heartbeats", "Registrar"]

_REGISTER_TIMEOUT_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_DEREGISTER_TIMEOUT_S: Final = 3.0
_RETRY_S: Final = 0.1

_log = get_logger("flint_worker.registration")


class Registrar:
    """Registers incarnations of this worker."""

    def __init__(self, settings: WorkerSettings, upstream: Upstream, functions: list[str]) -> None:
        self._client = upstream.client(registry_pb2_grpc.RegistryServiceStub)
        self._card = registry_pb2.WorkerCard(
            worker_id=settings.id,
            pool=settings.pool,
            region=settings.region,
            slots=settings.slots,
            build_id=_build_id(),
            host=socket.gethostname(),
            pid=os.getpid(),
            labels=settings.labels,
            functions=sorted(functions),
            job_batches=True,
        )

    async def register(self) -> tuple[Lease, float]:
        """A new incarnation's lease and its heartbeat interval in seconds. Tries for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            sent_at = boottime()
            try:
                response = await self._client.call(
                    lambda stub: stub.Register,
                    registry_pb2.RegisterRequest(card=self._card),
                    _REGISTER_TIMEOUT_S,
                )
            except Refused as refused:
                _log.warning("not_registered", error=str(refused))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            card = response.card
            lease = Lease(card.incarnation, card.lease_id, sent_at, response.lease_ttl_ms / 1000)
            _log.info("registered", incarnation=card.incarnation, ttl_ms=response.lease_ttl_ms)
            return lease, response.heartbeat_interval_ms / 1000

    async def heartbeat(self, beat: registry_pb2.Beat, timeout_s: float) -> registry_pb2.BeatResult:
        """One renewal. Raises Refused when no registry answered."""
        response = await self._client.call(
            lambda stub: stub.Heartbeat,
            registry_pb2.HeartbeatRequest(beats=[beat]),
            timeout_s,
            attempt_timeout_s=max(0.2, timeout_s / 2),
        )
        return response.results[0]

    async def deregister(self, lease: Lease) -> None:
        """Ends the incarnation. When no registry answers, its lease runs out by itself."""
        try:
            await self._client.call(
                lambda stub: stub.Deregister,
                registry_pb2.DeregisterRequest(incarnation=lease.incarnation, lease_id=lease.lease_id),
                _DEREGISTER_TIMEOUT_S,
            )
        except Refused as refused:
            _log.warning("not_deregistered", incarnation=lease.incarnation, error=str(refused))


class Heartbeats:
    """Keeps one lease alive and tells the registry what the worker does."""

    def __init__(
        self,
        registrar: Registrar,
        lease: Lease,
        interval_s: float,
        legs: Callable[[], int],
        on_drain: Callable[[], None],
        on_give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_give_back = on_give_back
        self._registrar = registrar
        self._lease = lease
        self._interval_s = interval_s
        self._legs = legs
        self._on_drain = on_drain
        self._process = psutil.Process()
        self._cpu_s = self._cpu_seconds()
        self._cpu_at = boottime()
        self._figures = BeatFigures()
        self.draining = False
        """Told to the registry with each beat."""

    async def run(self) -> None:
        """Until the lease has ended; then `lease.ended` is set."""
        lease = self._lease
        try:
            while lease.valid():
                await asyncio.sleep(min(self._interval_s, lease.remaining_s))
                await self._beat()
        finally:
            lease.end()

    async def _beat(self) -> None:
        lease = self._lease
        while lease.valid():
            sent_at = boottime()
            try:
                result = await self._registrar.heartbeat(self._make_beat(), lease.remaining_s)
            except Refused as refused:
                LEASE_RENEWALS.labels("failed").inc()
                self._figures.unsaid()
                _log.warning("heartbeat_failed", error=str(refused), remaining_s=round(lease.remaining_s, 3))
                if refused.reason == ErrorReason.ERROR_REASON_INCARNATION_ENDED:
                    lease.end()
                    return
                await asyncio.sleep(min(_RETRY_S, lease.remaining_s))
                continue
            if not result.renewed:
                LEASE_RENEWALS.labels("ended").inc()
                _log.warning("incarnation_ended", incarnation=lease.incarnation)
                lease.end()
                return
            lease.renewed(sent_at)
            LEASE_RENEWALS.labels("renewed").inc()
            if result.drain:
                self._on_drain()
            elif result.give_back:
                self._on_give_back()
            return

    def _make_beat(self) -> registry_pb2.Beat:
        now, cpu_s = boottime(), self._cpu_seconds()
        elapsed_s = max(0.001, now - self._cpu_at)
        cores = max(0.0, cpu_s - self._cpu_s) / elapsed_s
        self._cpu_at, self._cpu_s = now, cpu_s
        beat = registry_pb2.Beat(
            incarnation=self._lease.incarnation,
            lease_id=self._lease.lease_id,
            legs=self._legs(),
            draining=self.draining,
            cpu_cores=cores,
            memory_bytes=self._process.memory_info().rss,
        )
        self._figures.fill(beat)
        return beat

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _build_id() -> str:
    try:
        return version("flint-engine")
    except PackageNotFoundError:
        return "unknown"
