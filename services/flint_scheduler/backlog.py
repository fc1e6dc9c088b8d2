"""What waits, told once a second: to the autoscaler and the gateways on `flint.backlog`, and as metrics.

    asleep ──every second, or when a held run's moment comes──▶ tick the queue ──▶ does something wait, is something
    executed, or was it so when it was told last? ──▶ publish

The same task moves the queue's time on (`ReadyQueue.tick`). When it dies the service stops. A message that is lost is
followed by the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flint_bus import Bus, BusError
from flint_bus.subjects import BACKLOG
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import LEVELS
from flint_ops.logging import get_logger
from flint_scheduler.clock import RecordClock
from flint_scheduler.fleet import FleetView
from flint_scheduler.metrics import QUEUE_DEPTH
from flint_scheduler.places import NOBODY
from flint_scheduler.ready import SPARE, ReadyQueue

__all__ = ["backlog_of", "publish_backlog"]

log = get_logger(__name__)

_EVERY_S = 1.0
_MOST = 1000


def backlog_of(queue: ReadyQueue, fleet: FleetView, scheduler_id: str, now: float, now_ms: int) -> dispatch_pb2.Backlog:
    """What is to be told now; without pools when nothing waits and nothing is executed. `now`: loop time."""
    backlog = dispatch_pb2.Backlog(scheduler_id=scheduler_id, time_ms=now_ms)
    running = fleet.legs()
    lanes = {(lane.pool, lane.region): lane for lane in queue.lanes}
    moment_ms = queue.next_moment_ms or 0
    for pool, region in [*lanes, *((p, "") for p in running if (p, "") not in lanes)][:_MOST]:
        lane = lanes.get((pool, region))
        legs = running.get(pool, 0) if not region else 0
        if lane is None:
            backlog.pools.add(pool=pool, region=region, ready=[0] * LEVELS, running=legs)
            continue
        held = lane.held + lane.live[SPARE]
        live = lane.live[:LEVELS]
        only = fleet.only(pool, region) if fleet.ruled else None
        foreign = lane.foreign(only) if only is not None else None
        if foreign is not None:  # theirs are no reason for more workers
            live = [max(0, count - others) for count, others in zip(live, foreign, strict=True)]
            held += lane.ready - sum(live)
        ready = sum(live) if foreign is not None else lane.ready
        if not (ready or held or legs or lane.rate >= 0.05):
            continue
        oldest = lane.oldest(only) if ready else None
        backlog.pools.add(
            pool=pool,
            region=region,
            ready=live,
            held=held,
            oldest_wait_ms=max(0, int((now - oldest) * 1000)) if oldest is not None else 0,
            arrivals_per_s=round(lane.rate, 2),
            running=legs,
            next_ready_ms=moment_ms if held else 0,
            waiting_for=_why(fleet, pool, region, ready, foreign, only),
        )
    return backlog


def _why(fleet: FleetView, pool: str, region: str, ready: int, foreign: Sequence[int] | None, only: str | None) -> str:
    why = fleet.why_not(pool, region) if ready or only == NOBODY else ""
    if why or not only or foreign is None or not sum(foreign):
        return why
    return f"pool {pool} is dedicated to the namespace {only}; runs of others wait in vain"


async def publish_backlog(queue: ReadyQueue, fleet: FleetView, bus: Bus, scheduler_id: str, clock: RecordClock) -> None:
    """Tick and tell until cancelled."""
    loop = asyncio.get_running_loop()
    told = False
    gauges: set[str] = set()
    while True:
        moment_ms = queue.next_moment_ms
        until_s = _EVERY_S if moment_ms is None else (moment_ms - clock.now_ms()) / 1000
        await asyncio.sleep(min(_EVERY_S, max(0.005, until_s)))
        queue.tick(loop.time())
        backlog = backlog_of(queue, fleet, scheduler_id, loop.time(), clock.now_ms())
        if not backlog.pools and not told:
            continue
        told = bool(backlog.pools)
        _measure(backlog, gauges)
        try:
            bus.publish_now(BACKLOG, backlog.SerializeToString())
        except BusError as error:
            log.info("backlog_not_told", error=str(error))


def _measure(backlog: dispatch_pb2.Backlog, gauges: set[str]) -> None:
    depths: dict[str, list[int]] = {pool: [0] * LEVELS for pool in gauges}
    for pool in backlog.pools:
        levels = depths.setdefault(pool.pool, [0] * LEVELS)
        for level, count in enumerate(pool.ready):
            levels[level] += count
    for name, levels in depths.items():
        if name in gauges or len(gauges) < 100:  # names of pools come from definitions: no more than so many series
            gauges.add(name)
            for level, count in enumerate(levels):
                QUEUE_DEPTH.labels(name, str(level)).set(count)
