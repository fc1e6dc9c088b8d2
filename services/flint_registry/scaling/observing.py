"""What is seen of each pool at one moment: queues, workers, what the provisioner runs, what is known to come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flint_elastic import Coming, Observation, WorkerState, WorkerView
from flint_registry.provisioners import Provisioned
from flint_registry.scaling.backlogs import PoolQueue
from flint_registry.scaling.memory import PoolMemory, Staying, WorkerMemory, legs_that_stay
from flint_registry.scaling.policies import DEFAULT_POOL, USUAL_SLOTS, PoolKey
from flint_registry.view import FleetView, LiveWorker
from flint_store.scaling import ComingRow

__all__ = ["Observer", "PoolSight"]

_SETTLED_MS: Final = 1_000
"""A beat this long after a worker was told to take no more legs shows what it really holds."""
_MOST_STARTED: Final = 20_000
_USUAL_LEG_S: Final = 1.0


@dataclass(slots=True)
class PoolSight:
    """One pool now."""

    observation: Observation
    queue: PoolQueue
    cards: dict[str, LiveWorker] = field(default_factory=dict)
    """Live workers by incarnation."""
    managed: set[str] = field(default_factory=set)
    """Incarnations that the provisioner started."""
    unsettled: set[str] = field(default_factory=set)
    """Incarnations of which the last beat may not show what was on its way when they were told to take no more legs."""
    starting: int = 0
    overdue: list[str] = field(default_factory=list)
    """Worker ids that are to be told to end: they did not register, or drained for too long."""


class Observer:
    """A leader's eyes. Used from one event loop."""

    def __init__(self, view: FleetView, region: str, startup_s: float, drain_s: float) -> None:
        self._view = view
        self._region = region
        self._startup_s = startup_s
        self._drain_s = drain_s
        self._workers: dict[str, WorkerMemory] = {}
        self._pools: dict[PoolKey, PoolMemory] = defaultdict(PoolMemory)
        self._came: dict[str, None] = {}  # worker ids that registered, the latest
        self._failed: dict[str, None] = {}  # worker ids whose failed start was counted, the latest

    def pool(self, key: PoolKey) -> PoolMemory:
        """What is remembered of a pool."""
        return self._pools[key]

    def look(
        self,
        at: float,
        keys: Mapping[PoolKey, int],
        queues: dict[PoolKey, PoolQueue],
        provisioned: Sequence[Provisioned],
        coming: Sequence[ComingRow],
    ) -> dict[PoolKey, PoolSight]:
        """Everything at a moment (epoch seconds). `keys`: pools, and the slots that a new worker is ordered with."""
        live: dict[PoolKey, list[LiveWorker]] = defaultdict(list)
        for worker in self._view.live():
            live[worker.card.region, worker.card.pool].append(worker)
        ordered: dict[PoolKey, list[Provisioned]] = defaultdict(list)
        for order in provisioned:
            ordered[order.region, order.pool].append(order)
        expected: dict[PoolKey, list[Coming]] = defaultdict(list)
        for row in coming:
            expected[row.region or self._region, row.pool or DEFAULT_POOL].append(Coming(row.at, row.legs))
        present = {worker.card.incarnation for workers in live.values() for worker in workers}
        self._workers = {known: memory for known, memory in self._workers.items() if known in present}
        return {
            key: self._look_at(key, at, queues.get(key) or PoolQueue(), live[key], ordered[key], expected[key], slots)
            for key, slots in keys.items()
        }

    def _look_at(
        self,
        key: PoolKey,
        at: float,
        queue: PoolQueue,
        live: list[LiveWorker],
        ordered: list[Provisioned],
        coming: list[Coming],
        ordered_slots: int,
    ) -> PoolSight:
        pool = self._pools[key]
        pool.slots = ordered_slots or pool.slots
        running = {order.worker_id: order for order in ordered if not order.ended}
        workers: list[WorkerView] = []
        sight = PoolSight(Observation(at), queue)
        here = set()
        held: list[tuple[int, Staying]] = []
        for worker in live:
            card = worker.card
            here.add(card.worker_id)
            pool.slots = ordered_slots or card.slots
            memory = self._workers.setdefault(card.incarnation, WorkerMemory())
            memory.look(worker, at, pool.times)
            held.append((worker.beat.legs if worker.beat is not None else 0, memory.staying))
            order = running.get(card.worker_id)
            if order is not None:
                sight.managed.add(card.incarnation)
                if card.worker_id not in self._came:
                    self._remember(self._came, card.worker_id)
                    pool.registered(card, order.started_ms, at)
            sight.cards[card.incarnation] = worker
            workers.append(self._shown(worker, memory, at))
            if worker.beat_ms < memory.cordoned_at * 1000 + _SETTLED_MS:
                sight.unsettled.add(card.incarnation)
            if order is not None and memory.drained_at and at - memory.drained_at > self._drain_s:
                sight.overdue.append(card.worker_id)
        for order in ordered:
            if order.worker_id in here:
                continue
            workers.extend(self._unregistered(order, pool, sight, at))
        sight.observation = Observation(
            at=at,
            backlog=queue.backlog(),
            arrivals_per_s=queue.arrivals_per_s,
            leg_s=pool.times.mean_s or _USUAL_LEG_S,
            leg_spread=pool.times.spread,
            overstaying=legs_that_stay(held),
            workers=tuple(workers),
            coming=tuple(sorted(coming, key=lambda legs: legs.at)),
            startup_s=pool.startup_s,
            start_failures=pool.start_failures,
        )
        seen = sight.observation
        pool.listen(seen.waiting > 0 or seen.running > 0 or seen.arrivals_per_s > 0, at)
        return sight

    def _shown(self, worker: LiveWorker, memory: WorkerMemory, at: float) -> WorkerView:
        card = worker.card
        legs = worker.beat.legs if worker.beat is not None else 0
        state = WorkerState.READY
        if self._view.leaves(worker):
            state = WorkerState.LEAVING
            if self._view.ends(worker):  # who only stands aside comes back, and takes as long as that takes
                memory.drained_at = memory.drained_at or at
        elif card.draining:
            state = WorkerState.DRAINING
            memory.cordoned_at = memory.cordoned_at or at
        else:
            memory.cordoned_at = 0.0
        registered_s = card.register_time.ToMilliseconds() / 1000
        idle_since = None if legs else memory.idle_since
        return WorkerView(card.incarnation, state, card.slots, legs, idle_since, registered_s)

    def _unregistered(self, order: Provisioned, pool: PoolMemory, sight: PoolSight, at: float) -> list[WorkerView]:
        """A worker of the provisioner's that is not live: it starts, it ends, or it has ended."""
        came = order.worker_id in self._came
        started = order.started_ms / 1000
        late = not came and at - started > self._startup_s
        if (late or (order.ended and order.failed)) and not came and order.worker_id not in self._failed:
            self._remember(self._failed, order.worker_id)
            pool.start_failures += 1
        if order.ended:
            return []
        if late:
            sight.overdue.append(order.worker_id)
        slots = pool.slots or USUAL_SLOTS
        if came or late:
            return [WorkerView(order.worker_id, WorkerState.LEAVING, slots, started_at=started)]
        sight.starting += 1
        return [WorkerView(order.worker_id, WorkerState.STARTING, slots, started_at=started)]

    @staticmethod
    def _remember(known: dict[str, None], worker_id: str) -> None:
        known[worker_id] = None
        if len(known) > _MOST_STARTED:
            del known[next(iter(known))]
