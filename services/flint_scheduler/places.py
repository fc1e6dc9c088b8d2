"""The places of a pool (its regions) of which some have rules: standby slots, a namespace that they are dedicated to.

**Standby.** So many slots of a place are left to urgent levels (`scheduler.headroom_level` and more urgent ones). They
are slots, not legs that wait at a worker: other levels do not get the overcommit either. Each scheduler keeps the part
of them that its room is of the whole, so together they keep at least as many, however the slots are lent. A place all
of whose slots are standby takes urgent legs alone; in any other each scheduler with room leaves one to the others.

**Dedicated.** A place takes only legs of its namespace. Legs that name no region go where the place is nobody's own;
if every place of the pool is dedicated to the same namespace, they go anywhere and are of that namespace; if to
several, nowhere: such legs have to name a region.

Pools without rules have no places here, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flint_scheduler.fleet import WorkerView

__all__ = ["NOBODY", "NO_RULE", "NO_RULES", "Place", "Places", "PoolRule", "PoolRules", "places_of"]

NOBODY = ""
"""No namespace has this name: a place that it is dedicated to takes nobody's legs."""


@dataclass(frozen=True, slots=True)
class PoolRule:
    """What counts for a pool in a region. `namespace` empty: it is for all."""

    standby: int = 0
    namespace: str = ""

    def __bool__(self) -> bool:
        return self.standby > 0 or bool(self.namespace)


NO_RULE = PoolRule()


@dataclass(frozen=True, slots=True)
class PoolRules:
    """Rules of all pools: those of a region and pool, else those of the pool, else the usual one."""

    home: str = ""  # the region for which legs count that name none while the pool has no worker
    usual: PoolRule = NO_RULE
    by_pool: Mapping[str, PoolRule] = field(default_factory=dict)
    by_place: Mapping[tuple[str, str], PoolRule] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.usual) or any(self.by_pool.values()) or any(self.by_place.values())

    def of(self, region: str, pool: str) -> PoolRule:
        """The rule of a pool in a region."""
        found = self.by_place.get((region, pool))
        return found if found is not None else self.by_pool.get(pool, self.usual)


NO_RULES = PoolRules()


class Place:
    """A pool's workers in one region that take legs. `free` and `kept` are legs of this scheduler's room."""

    __slots__ = ("free", "kept", "namespace", "workers")

    def __init__(self, rule: PoolRule, workers: list[WorkerView], overcommit: float) -> None:
        self.workers = workers
        self.namespace = rule.namespace
        self.free = sum(max(0, w.room - w.legs) for w in workers)
        room = sum(w.room for w in workers)
        slots = sum(w.card.slots for w in workers)
        most = sum(int(w.card.slots * overcommit) for w in workers)
        self.kept = 0
        if rule.standby >= slots:
            self.kept = room
        elif rule.standby:
            self.kept = min(ceil((rule.standby + most - slots) * room / most), max(0, room - 1))


class Places:
    """The places of one pool, by region."""

    __slots__ = ("_by_region", "_common", "_only")

    def __init__(self, by_region: dict[str, Place]) -> None:
        self._by_region = by_region
        owners = {place.namespace for place in by_region.values()}
        self._only: str | None = None
        if "" in owners:
            self._common = [place for place in by_region.values() if not place.namespace]
        elif len(owners) == 1:
            self._common = list(by_region.values())
            self._only = owners.pop()
        else:
            self._common = []
            self._only = NOBODY

    def only(self, region: str) -> str | None:
        """The one namespace whose legs for this region (empty: for any) begin here; None: all."""
        if not region:
            return self._only
        place = self._by_region.get(region)
        return place.namespace or None if place is not None else None

    def free(self, region: str) -> tuple[int, int]:
        """(legs of urgent levels, legs of others) for which there is room."""
        places = self._of(region)
        return sum(p.free for p in places), sum(max(0, p.free - p.kept) for p in places)

    def workers(self, region: str, *, urgent: bool) -> list[WorkerView]:
        """The workers of places that have room for such a leg."""
        having = [p for p in self._of(region) if p.free > (0 if urgent else p.kept)]
        if len(having) == 1:
            return having[0].workers
        return [worker for place in having for worker in place.workers]

    def _of(self, region: str) -> list[Place]:
        if not region:
            return self._common
        place = self._by_region.get(region)
        return [place] if place is not None else []


def places_of(pool: str, regions: Mapping[str, list[WorkerView]], rules: PoolRules, overcommit: float) -> Places | None:
    """The places of a pool, told to their workers; None when no rule counts in any."""
    found = {region: rules.of(region, pool) for region in regions}
    if not any(found.values()):
        return None
    places = {region: Place(found[region], workers, overcommit) for region, workers in regions.items()}
    for place in places.values():
        for worker in place.workers:
            worker.place = place
    return Places(places)
