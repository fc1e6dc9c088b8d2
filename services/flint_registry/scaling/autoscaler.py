"""The autoscaler, in the registry that leads: looks at each pool, decides, does, writes down.

States: **following** (not leading: only queues are heard) → elected: **looking** every `fleet.decide_s`, and at once
when runs wait while no worker is there or when a worker's end was seen → resigns or dies: what it knew is gone, what it
did stands in etcd, the provisioner and the record, and the next leader goes on from there. Two leaders that overlap for
a moment may both start workers; the surplus is drained like any other.

When a look fails because something is away, the next one is made a moment later; a defect ends the service, whose
supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import Coord, Lease
from flint_elastic import Decision, PoolState, decide
from flint_elastic.rates import RateEstimate
from flint_ops.clock import boottime
from flint_ops.config import FleetSettings
from flint_ops.logging import get_logger
from flint_registry import metrics
from flint_registry.provisioners import Provisioned, Provisioner, ProvisionerRefused, ProvisionerUnavailable
from flint_registry.scaling.acting import Actor
from flint_registry.scaling.backlogs import Backlogs, PoolQueue
from flint_registry.scaling.ends import Ends
from flint_registry.scaling.ledger import Ledger
from flint_registry.scaling.observing import Observer, PoolSight
from flint_registry.scaling.outlook import Outlooks
from flint_registry.scaling.patterns import Patterns
from flint_registry.scaling.policies import Policies, PoolKey, policy_of
from flint_registry.view import FleetView
from flint_store import scaling
from flint_store.errors import StoreUnavailable

__all__ = ["Autoscaler"]

_LEAST_PAUSE_S: Final = 0.1
_REFRESH_S: Final = 5.0
_COMING_S: Final = 10.0
_CLEAR_S: Final = 10.0
_PRUNE_S: Final = 600.0
_HORIZON_MARGIN_S: Final = 60.0
_LONGEST_HORIZON_S: Final = 900.0

_log = get_logger("flint_registry.scaling")


class Autoscaler:
    """What a leading registry does about the number of workers. `lead` runs while it leads, at most once at a time."""

    def __init__(
        self,
        settings: FleetSettings,
        coord: Coord,
        engine: AsyncEngine,
        view: FleetView,
        backlogs: Backlogs,
        outlooks: Outlooks,
        policies: Policies,
        provisioner: Provisioner,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._view = view
        self._backlogs = backlogs
        self._outlooks = outlooks
        self._policies = policies
        self._provisioner = provisioner
        self._coord = coord
        self._wake = asyncio.Event()
        self._states: dict[PoolKey, PoolState] = {}
        self._coming: list[scaling.ComingRow] = []
        self._told = ""
        self.bus: Bus | None = None
        """Where outlooks are published; None while there is no connection."""

    def wake(self) -> None:
        """Something changed that should be looked at now."""
        self._wake.set()

    def queues_changed(self) -> None:
        """A scheduler told what waits: worth a look at once when there is nobody to take it."""
        waiting = {key for key, queue in self._backlogs.queues().items() if queue.waiting}
        if waiting - {(worker.card.region, worker.card.pool) for worker in self._view.live()}:
            self._wake.set()

    async def lead(self, lease: Lease) -> None:
        """Until cancelled."""
        await self._view.known.wait()
        self._states.clear()
        ends = Ends(self._coord, self._view, self._provisioner, self.wake)
        ledger = Ledger(self._engine, self._settings.evaluate_s, self._settings.decisions_kept_days)
        patterns = Patterns(self._engine)
        async with asyncio.TaskGroup() as group:
            group.create_task(ends.follow(), name="provisioner-ends")
            group.create_task(ledger.run(), name="scaling-ledger")
            group.create_task(self._keep_house(ledger, patterns), name="scaling-house")
            group.create_task(self._look_on(ends, ledger, patterns), name="scaling")

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _look_on(self, ends: Ends, ledger: Ledger, patterns: Patterns) -> None:
        observer = Observer(self._view, self._settings.region, self._settings.startup_s, self._settings.drain_s)
        actor = Actor(self._coord, self._provisioner)
        cleared_at = 0.0
        while True:
            self._wake.clear()
            await ends.settle()
            if boottime() - cleared_at > _CLEAR_S:
                cleared_at = boottime()
                await ends.clear()
            provisioned = await self._provisioned()
            if provisioned is not None:
                await self._look(observer, actor, ledger, patterns, provisioned)
            await asyncio.sleep(_LEAST_PAUSE_S)
            try:
                async with asyncio.timeout(self._settings.decide_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(
        self, observer: Observer, actor: Actor, ledger: Ledger, patterns: Patterns, provisioned: list[Provisioned]
    ) -> None:
        at = time.time()
        plans = {key: self._policies.plan(key) for key in self._policies.pools()}
        queues = self._backlogs.queues()
        slots = {key: plan.settings.worker_slots for key, plan in plans.items()}
        sights = observer.look(at, slots, queues, provisioned, self._coming)
        wanted: dict[PoolKey, int] = {}
        for key, sight in sights.items():
            plan, memory = plans[key], observer.pool(key)
            await actor.end_overdue(sight)
            if plan.mode == "fixed" or (plan.mode == "automatic" and self._provisioner.name == "none"):
                self._states.pop(key, None)
                continue
            policy = policy_of(plan.settings, memory.slots, self._settings.decide_s)
            forecast = patterns.count(key, at, sight.queue.arrivals_per_s, self._policies.learned(key))
            state = self._states.get(key, PoolState())
            if memory.quiet_since is not None and at - memory.quiet_since >= plan.settings.idle_s:
                # Nothing at all for so long is no chance: what was learned of arrivals before keeps nobody.
                state = replace(state, rate=RateEstimate(), peaks=())
            decision = decide(policy, state, sight.observation, forecast)
            decision = replace(decision, end=tuple(worker for worker in decision.end if worker not in sight.unsettled))
            self._states[key] = decision.state
            wanted[key] = decision.wanted
            metrics.WANTED.labels(key[1]).set(decision.wanted)
            acts = _acts(decision, sight, shadow=policy.shadow)
            failure = ""
            if acts and not policy.shadow:
                metrics.DECISIONS.labels(key[1], decision.action).inc()
                failure = await actor.carry_out(key, decision, sight, plan.settings.worker_slots)
                _log.info(
                    "scaled",
                    pool=key[1],
                    start=decision.start,
                    revive=len(decision.revive),
                    drain=len(decision.drain),
                    end=len(decision.end),
                    why=decision.why,
                    failure=failure,
                )
            ledger.observe(key, sight.observation)
            ledger.write(key, policy, decision, sight.observation, acts=acts, failure=failure)
        self._tell(queues, sights, wanted)

    async def _provisioned(self) -> list[Provisioned] | None:
        """What runs; None when nobody can say, and then nothing is decided."""
        try:
            provisioned = await self._provisioner.list()
        except (ProvisionerUnavailable, ProvisionerRefused) as error:
            if str(error) != self._told:
                self._told = str(error)
                _log.warning("provisioner_away", provisioner=self._provisioner.name, error=self._told)
            return None
        self._told = ""
        return provisioned

    def _tell(
        self, queues: dict[PoolKey, PoolQueue], sights: dict[PoolKey, PoolSight], wanted: dict[PoolKey, int]
    ) -> None:
        outlooks = registry_pb2.PoolOutlooks()
        for key in sorted(queues.keys() | sights.keys()):
            queue = queues.get(key) or PoolQueue()
            sight = sights.get(key)
            outlooks.pools.add(
                region=key[0],
                pool=key[1],
                starting_workers=sight.starting if sight is not None else 0,
                waiting_runs=queue.waiting,
                longest_wait_ms=round(queue.oldest_wait_s * 1000) if queue.waiting else 0,
                wanted_workers=wanted.get(key),
            )
        self._outlooks.tell(self.bus, outlooks)

    # -- what may wait ------------------------------------------------------------------------------------------------

    async def _keep_house(self, ledger: Ledger, patterns: Patterns) -> None:
        """Reads settings and what is known to come, judges, prunes, keeps and learns patterns. For ever."""
        coming_at = pruned_at = -1e9
        try:
            while True:
                now = boottime()
                try:
                    await self._policies.refresh()
                    if now - coming_at >= _COMING_S:
                        coming_at = now
                        self._coming = await self._read_coming()
                    await ledger.judge(time.time())
                    if now - pruned_at >= _PRUNE_S:
                        pruned_at = now
                        await ledger.prune()
                    await patterns.keep(time.time())
                except StoreUnavailable as error:
                    _log.warning("scaling_without_record", error=str(error))
                await patterns.learn(time.time())
                await asyncio.sleep(_REFRESH_S)
        finally:
            try:
                async with asyncio.timeout(1.0):
                    await patterns.keep(time.time(), all_=True)
            except (StoreUnavailable, TimeoutError) as error:
                _log.warning("patterns_not_kept", error=str(error))

    async def _read_coming(self) -> list[scaling.ComingRow]:
        """Nothing is asked while nothing is scaled."""
        plans = [self._policies.plan(key) for key in self._policies.pools()]
        if not any(plan.mode == "shadow" or self._provisioner.name != "none" for plan in plans):
            return []
        longest = max((plan.settings.idle_s for plan in plans), default=0.0)
        return await scaling.coming(self._engine, min(_LONGEST_HORIZON_S, longest + _HORIZON_MARGIN_S))


def _acts(decision: Decision, sight: PoolSight, *, shadow: bool) -> bool:
    """Whether something is done: others than the provisioner's workers are left alone."""
    named = {*decision.revive, *decision.drain, *decision.end}
    return decision.start > 0 or bool(named if shadow else named & sight.managed)
