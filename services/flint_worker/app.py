"""Composition root of the worker.

States: CONNECTING (bus, evaluators) → REGISTERING → OPEN → LAPSED → REGISTERING …, until it is told to stop (SIGTERM,
or a drain asked for by the registry): DRAINING → DEREGISTERED → exit code 0. When a task that an incarnation needs
dies, the service stops with exit code 1: its supervisor starts a fresh one, and the owners find its legs by its
lease.
"""

from __future__ import annotations

import asyncio

from flint_bus import Bus
from flint_bus.payloads import PayloadClient
from flint_core.branches import Spread
from flint_core.machine import MachineLimits
from flint_jq import EvaluatorPool
from flint_ops.config import Settings
from flint_ops.lifecycle import Lifecycle
from flint_ops.logging import get_logger
from flint_rpc.upstream import Upstream
from flint_worker.branches import BranchInputs
from flint_worker.calls import Caller
from flint_worker.definitions import Definitions
from flint_worker.executors import build_executors
from flint_worker.executors.emit import EmitExecutor
from flint_worker.executors.function import FunctionExecutor
from flint_worker.incarnation import Incarnation
from flint_worker.leg import LegServices
from flint_worker.registration import Registrar
from flint_worker.secrets import SecretResolver
from flint_worker.values import Values

__all__ = ["main"]

_log = get_logger("flint_worker")


async def main(settings: Settings, lifecycle: Lifecycle) -> None:
    """Runs the worker until `lifecycle.stopping` is set or the registry asks it to drain."""
    readiness = lifecycle.readiness
    readiness.require("nats")
    readiness.require("registry")
    connecting = asyncio.create_task(Bus.connect(settings.nats, name=settings.worker.id))
    if not await _unless_stopping(connecting, lifecycle):
        return
    bus = connecting.result()
    readiness.require("nats", lambda: None if bus.connected.is_set() else "not connected to NATS")
    readiness.set("nats")
    limits = settings.limits
    evaluators = EvaluatorPool(
        settings.worker.evaluators,
        limits.evaluate_ms,
        limits.evaluate_bytes,
        limits.value_bytes,
        patience=limits.evaluate_patience,
    )
    payloads = PayloadClient(bus, limits.values_in_memory_bytes)
    values = Values(payloads, evaluators, limits)
    executors = build_executors(settings, evaluators)
    executors["function"] = FunctionExecutor(settings, bus)
    executors["emit"] = EmitExecutor(settings, bus)
    upstream = Upstream(settings.worker.registries, settings.cluster.internal_token.get_secret_value(), name="registry")
    definitions = Definitions(bus)
    try:
        await evaluators.start()
        services = LegServices(
            bus=bus,
            definitions=definitions,
            values=values,
            branches=BranchInputs(payloads),
            caller=Caller(executors, SecretResolver(settings.secrets, evaluators), values),
            limits=limits,
            machine_limits=MachineLimits(
                payload_bytes=limits.payload_bytes,
                state_bytes=limits.state_bytes,
                steps_per_run=limits.steps_per_run,
                parallel=limits.parallel,
                value_bytes=limits.value_bytes,
                run_ms=int(limits.run_s * 1000),
                spread=Spread(
                    limits.spread_above,
                    limits.spread_chunks,
                    limits.spread_least,
                    max(limits.spread_least, limits.spread_most),
                    limits.spread_window,
                ),
            ),
            inline_wait_ms=int(settings.worker.inline_wait_s * 1000),
        )
        registrar = Registrar(settings.worker, upstream, list(executors))
        while not lifecycle.stopping.is_set():
            await _live(settings, lifecycle, bus, services, registrar)
    finally:
        await definitions.close()
        for executor in executors.values():
            await executor.close()
        await values.close()
        await evaluators.close()
        await upstream.close()
        await bus.close()


async def _live(
    settings: Settings, lifecycle: Lifecycle, bus: Bus, services: LegServices, registrar: Registrar
) -> None:
    """One incarnation, from registering to its end."""
    lifecycle.readiness.set("registry", "not registered")
    registering = asyncio.create_task(registrar.register())
    if not await _unless_stopping(registering, lifecycle):
        return
    lease, interval_s = registering.result()
    incarnation = Incarnation(bus, settings.worker, services, registrar, lease, interval_s)
    waits: list[asyncio.Task[bool]] = []
    try:
        for task in await incarnation.open():
            lifecycle.watch(task)
        lifecycle.readiness.set("registry")
        waits = [
            asyncio.create_task(event.wait())
            for event in (lease.ended, incarnation.drain_requested, lifecycle.stopping)
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if lease.ended.is_set():
            _log.warning("lease_lapsed", incarnation=lease.incarnation, legs=incarnation.table.held)
            return
        lifecycle.stop()
        _log.info("drains", legs=incarnation.table.held)
        await incarnation.drain(settings.worker.drain_s)
    finally:
        for wait in waits:
            wait.cancel()
        await incarnation.close()


async def _unless_stopping(task: asyncio.Task[object], lifecycle: Lifecycle) -> bool:
    """Waits for a task; cancels it and answers False when the service is told to stop first."""
    stopping = asyncio.create_task(lifecycle.stopping.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    finally:
        stopping.cancel()
