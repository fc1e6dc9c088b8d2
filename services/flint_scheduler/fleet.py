"""The fleet as the scheduler sees it: who lives, who has room, whose lease has surely ended (R4, R6).

States of an incarnation here: live (its key stands in etcd) → ended. It ends
- at once, when etcd's watch shows the key's deletion: leases end in etcd no earlier than on the worker's own clock,
which
  counts from before the renewal was sent;
- after a whole lease plus a margin, when the key is merely not there (a first look, or a store that was lost): the
worker may
  live on its last renewal until then.
When the watch breaks, nothing is concluded until it stands again. Where legs are sent needs no certainty: none go to an
incarnation once another one of its id has registered on its host.

Several schedulers share a worker's slots evenly; each counts the legs it has open there itself, and may use beyond its
share what the others leave free, by the worker's heartbeats.

Workers are grouped by pool. A part of each pool's room (headroom) is only for urgent levels; off-peak runs get only
what is left over beyond another part. Runs of level 0 also get a few legs beyond the room of workers with many slots
(`slots_beyond`), unless the pool has rules of its own for what is urgent.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.queueing import DEFAULT_POOL, LEVELS, URGENT, slots_beyond
from flint_ops.clock import boottime
from flint_scheduler.crowds import Crowd, crowds_among, lend, vacant_slot
from flint_scheduler.places import NO_RULES, NOBODY, Place, Places, PoolRules, places_of

__all__ = ["FleetView", "WorkerView"]

_MARGIN_S = 1.0


class PoolView:
    """The room of one pool for this scheduler. `room` and `free` are legs; workers that drain have none."""

    __slots__ = ("beyond", "free", "headroom", "name", "order", "places", "regions", "room", "spare", "vacant")

    def __init__(self, name: str) -> None:
        self.name = name
        self.order: list[WorkerView] = []
        self.regions: dict[str, list[WorkerView]] = {}
        self.room = 0
        self.free = 0
        self.beyond = 0  # legs beyond the room that the most urgent level may still get
        self.headroom = 0  # legs kept free for urgent levels
        self.spare = 0  # legs that off-peak runs leave free
        self.places: Places | None = None  # None: no rules count in it
        self.vacant: list[WorkerView] = []  # that have free slots for legs that were asked back: nearly always none

    def workers(self, region: str) -> list[WorkerView]:
        """Those of a region; of all for ""."""
        return self.regions.get(region, []) if region else self.order


@dataclass(slots=True)
class WorkerView:
    """One live incarnation."""

    card: registry_pb2.WorkerCard
    draining: bool = False  # it said so, and will not come back
    followed: bool = False  # another incarnation of its id has registered on its host since: it has died, most likely
    legs: int = 0  # opened by this scheduler and not ended
    held: int = 0  # legs of all schedulers, by the last heartbeat
    heard: int = 0  # those of this scheduler that were open when it came
    directed: int = 0  # those sent to its free slots since, which the next heartbeat may not know of yet
    vacant: int = 0  # for so many looks of recovery its free slots are for legs that were asked back
    beyond: int = 0  # legs that the most urgent level may have beyond the room
    shunned: bool = False  # it was asked for legs that wait there: none is sent before its next heartbeat
    borrowed: int = 0  # room beyond this scheduler's share, which the others do not use
    room: int = 0
    sequence: int = 0  # jobs sent to it in this session
    settled: set[int] = field(default_factory=set)
    watermark: int = 0
    pool: PoolView | None = None
    place: Place | None = None

    @property
    def leaving(self) -> bool:
        """Whether it is sent no legs. What its card says the autoscaler may take back."""
        return self.draining or self.card.draining or self.followed

    @property
    def there(self) -> int:
        """Legs of all schedulers that it has now, by the last heartbeat and what this scheduler did since."""
        return max(self.legs, self.held + self.legs - self.heard)

    def settle(self, sequence: int) -> None:
        """A job's leg has ended: its nonce need not be remembered once all before it are settled too."""
        self.settled.add(sequence)
        while self.watermark + 1 in self.settled:
            self.watermark += 1
            self.settled.discard(self.watermark)


class FleetView:
    """Live workers and their room. Used from one event loop."""

    def __init__(
        self,
        overcommit: float,
        lease_ttl_s: float,
        *,
        headroom: Mapping[str, float] | None = None,
        urgent_level: int = 0,
        spare_share: float = 0.25,
    ) -> None:
        """`headroom`: the part of each pool's room that only levels up to `urgent_level` get, by pool; "*" for those
        that are not named. `spare_share`: the part that off-peak runs leave free.
        """
        self._overcommit = overcommit
        self._lease_ttl_s = lease_ttl_s
        self._headroom = dict(headroom or {})
        self.urgent_level = urgent_level
        self._spare_share = spare_share
        self._pools: dict[str, PoolView] = {}
        self._sticky: OrderedDict[tuple[str, str], str] = OrderedDict()  # the latest 10,000
        self._workers: dict[str, WorkerView] = {}
        self._ttls: dict[str, float] = {}  # lease of each incarnation whose card was seen, the latest 10,000
        self._slots: dict[str, int] = {}  # its slots, likewise
        self._doubts: dict[str, float] = {}  # claimants without a key → boot time after which they have surely ended
        self._ended: dict[str, None] = {}  # the latest 10,000, oldest first
        self._sharers = 1
        self._rules = NO_RULES
        self._known = asyncio.Event()
        self.on_ended: Callable[[str, bool], None] = lambda incarnation, left: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_rules: Callable[[], None] = lambda: None

    # -- what etcd says ------------------------------------------------------------------------------------------------

    def snapshot(self, cards: dict[str, registry_pb2.WorkerCard], claimants: set[str]) -> None:
        """Everything that stands in etcd now. Claimants that are not among it are in doubt for a whole lease."""
        for incarnation in [i for i in self._workers if i not in cards]:
            del self._workers[incarnation]
            self._doubt(incarnation)
        for incarnation in claimants - cards.keys():
            self._doubt(incarnation)
        for incarnation, card in cards.items():
            self._doubts.pop(incarnation, None)
            self._put(incarnation, card)
        self._known.set()
        self._find_followed()
        self._reorder()

    def put(self, incarnation: str, card: registry_pb2.WorkerCard) -> None:
        """A worker registered, or changed its card."""
        self._doubts.pop(incarnation, None)
        self._put(incarnation, card)
        self._find_followed()
        self._reorder()

    def deleted(self, incarnation: str, *, left: bool = False) -> None:
        """Its lease ended, or it `left` in order: nobody executes under this incarnation any more."""
        self._workers.pop(incarnation, None)
        self._doubts.pop(incarnation, None)
        self._find_followed()
        self._reorder()
        self._end(incarnation, left=left)

    def beat(self, beat: registry_pb2.Beat) -> None:
        """A heartbeat: whether the worker takes legs, and how many it holds for all schedulers together."""
        self.beats((beat,))

    def beats(self, beats: Iterable[registry_pb2.Beat]) -> None:
        """The heartbeats of one message: the workers are put in order once, however many have changed."""
        changed = False
        for beat in beats:
            worker = self._workers.get(beat.incarnation)
            if worker is None:
                continue
            worker.held = beat.legs
            worker.heard = worker.legs - worker.directed
            worker.directed = 0
            if worker.shunned:
                worker.shunned, changed = False, True
            else:
                changed |= self._borrow(worker, max(0, beat.legs - worker.legs))
            if beat.draining and not worker.draining:
                worker.draining = changed = True
        if changed:
            self._reorder()

    def drains(self, incarnation: str) -> None:
        """It gives its legs back and takes no more, for the rest of its life."""
        worker = self._workers.get(incarnation)
        if worker is not None and not worker.draining:
            worker.draining = True
            self._reorder()

    def tick(self) -> None:
        """Conclude doubts whose time has come."""
        now = boottime()
        for incarnation in [i for i, until in self._doubts.items() if now >= until]:
            del self._doubts[incarnation]
            self._end(incarnation)

    def _put(self, incarnation: str, card: registry_pb2.WorkerCard) -> None:
        worker = self._workers.get(incarnation)
        self._ttls[incarnation] = card.lease_ttl_ms / 1000
        self._slots[incarnation] = card.slots
        if len(self._ttls) > 10_000:
            self._slots.pop(next(iter(self._ttls)), None)
            del self._ttls[next(iter(self._ttls))]
        if worker is None:
            self._workers[incarnation] = WorkerView(card)
        else:
            worker.card = card

    def _find_followed(self) -> None:
        """Who died and came back is sent no legs under the former incarnation; open ones wait for its lease to end."""
        latest: dict[tuple[str, str], WorkerView] = {}
        for worker in self._workers.values():
            worker.followed = False
            card = worker.card
            if not card.worker_id:
                continue
            other = latest.setdefault((card.worker_id, card.host), worker)
            if other is not worker:
                earlier, later = sorted((other, worker), key=lambda w: w.card.register_time.ToNanoseconds())
                earlier.followed = True
                latest[card.worker_id, card.host] = later

    def _doubt(self, incarnation: str) -> None:
        if incarnation not in self._ended:
            ttl_s = max(self._lease_ttl_s, self._ttls.get(incarnation, 0.0))
            self._doubts.setdefault(incarnation, boottime() + ttl_s + _MARGIN_S)

    def _end(self, incarnation: str, *, left: bool = False) -> None:
        self._ended[incarnation] = None
        if len(self._ended) > 10_000:
            del self._ended[next(iter(self._ended))]
        self.on_ended(incarnation, left)

    # -- room ----------------------------------------------------------------------------------------------------------

    def share_between(self, schedulers: int) -> None:
        """How many schedulers share the slots."""
        self._sharers = max(1, schedulers)
        for worker in self._workers.values():
            worker.vacant = 0
        self._reorder()

    def rule(self, rules: PoolRules) -> None:
        """Which rules of pools count from now on."""
        rules = rules or NO_RULES
        if rules != self._rules:
            self._rules = rules
            self._reorder()
            self.on_rules()

    @property
    def ruled(self) -> bool:
        """Whether any pool has rules."""
        return self._rules is not NO_RULES

    def only(self, pool: str, region: str) -> str | None:
        """The one namespace whose legs begin there (NOBODY: none's do); None: all. `region` empty: any."""
        view = self._pools.get(pool)
        if view is not None and view.order:
            return None if view.places is None else view.places.only(region)
        return self._rules.of(region or self._rules.home, pool).namespace or None

    def _borrow(self, worker: WorkerView, others: int) -> bool:
        """Take half of what the others leave beyond my share, with each heartbeat that finds my room used up.

        Whether the worker's room has changed with it.
        """
        most = int(worker.card.slots * self._overcommit)
        share = most // self._sharers
        left = 0 if worker.leaving else max(0, most - others - share)
        used_up = worker.legs >= worker.room or _all_kept(worker)
        needed = worker.legs > share or used_up or worker.vacant
        wanted = worker.borrowed if needed else 0  # what is not needed is not kept
        if used_up:
            wanted += (left - worker.borrowed + 1) // 2
        borrowed = max(0, min(wanted, left))
        changed = borrowed != worker.borrowed
        worker.borrowed = borrowed
        return changed

    def _reorder(self) -> None:
        for worker in self._workers.values():
            share = int(worker.card.slots * self._overcommit) // self._sharers
            worker.room = 0 if worker.leaving or worker.shunned else max(1, share + worker.borrowed)
            worker.beyond = slots_beyond(worker.card.slots) if worker.room else 0
            worker.place = None
        pools: dict[str, PoolView] = {}
        for worker in self._workers.values():
            name = worker.card.pool or DEFAULT_POOL
            pool = pools.get(name)
            if pool is None:
                pool = pools[name] = PoolView(name)
            worker.pool = pool
            if worker.room:
                pool.order.append(worker)
                pool.regions.setdefault(worker.card.region, []).append(worker)
                pool.room += worker.room
                pool.free += max(0, worker.room - worker.legs)
                if worker.vacant:
                    pool.vacant.append(worker)
                pool.beyond += max(0, min(worker.beyond, worker.room + worker.beyond - worker.legs))
        for pool in pools.values():
            kept = self._headroom.get(pool.name, self._headroom.get("*", 0.0))
            if kept:  # slots, not legs that wait at a worker: the overcommit is not for the others either
                kept = round(1 - (1 - kept) / self._overcommit, 6)
            pool.headroom = min(ceil(pool.room * kept), max(0, pool.room - 1))
            pool.spare = int(pool.room * self._spare_share)
            if self._rules:
                pool.places = places_of(pool.name, pool.regions, self._rules, self._overcommit)
                if pool.places is not None:
                    pool.beyond = 0
        self._pools = pools
        if self.has_room():
            self.on_room()

    def has_room(self) -> bool:
        """Whether any worker may be sent a leg by this scheduler."""
        return any(p.free > 0 or p.beyond > 0 for p in self._pools.values())

    def least(self, pool: str = DEFAULT_POOL, region: str = "") -> int:
        """The least urgent level that may take a slot there now; LEVELS is off-peak; -1: none may."""
        view = self._pools.get(pool)
        if view is None:
            return -1
        if view.free <= 0:
            return URGENT if view.beyond > 0 and (not region or _beyond(view.workers(region)) is not None) else -1
        if view.places is not None:
            return self._least_of_places(view, view.places, region)
        if region and not any(w.legs < w.room for w in view.workers(region)):
            return URGENT if view.beyond > 0 and _beyond(view.workers(region)) is not None else -1
        if view.free <= view.headroom:
            return self.urgent_level
        return LEVELS if view.free > view.headroom + view.spare else LEVELS - 1

    def _least_of_places(self, view: PoolView, places: Places, region: str) -> int:
        free, beyond = places.free(region)
        if free <= 0:
            return -1
        if beyond <= 0 or view.free <= view.headroom:
            return self.urgent_level
        return LEVELS if min(beyond, view.free - view.headroom) > view.spare else LEVELS - 1

    def reserve(
        self, pool: str = DEFAULT_POOL, region: str = "", *, level: int = 0, sticky: tuple[str, str] | None = None
    ) -> WorkerView | None:
        """Take a slot on a lightly loaded worker (the better of two drawn by chance, else any with room).

        `sticky`: namespace and key; the worker that last got a leg with it is taken when it has room.
        """
        view = self._pools.get(pool)
        if view is None:
            return None
        if view.free <= (0 if level <= self.urgent_level else view.headroom):
            return self._reserve_beyond(view, region) if level == URGENT else None
        if view.places is None:
            order = view.workers(region)
        else:
            order = view.places.workers(region, urgent=level <= self.urgent_level)
        if not order:
            return None
        if view.vacant and (found := vacant_slot(view.vacant, order)) is not None:
            found.directed += 1
            return self._taken(view, found, sticky)
        if sticky is not None:
            warm = self._workers.get(self._sticky.get(sticky, ""))
            if warm is not None and warm.pool is view and warm.legs < warm.room and (warm in order):
                return self._taken(view, warm, sticky)
        if len(order) > 2:
            first, second = random.sample(order, 2)
        else:
            first, second = order[0], order[-1]
        worker = first if first.legs * second.room <= second.legs * first.room else second
        if worker.legs >= worker.room:
            found = next((w for w in order if w.legs < w.room), None)
            if found is None:
                return self._reserve_beyond(view, region) if level == URGENT else None
            worker = found
        if sticky is not None or worker.place is not None:
            return self._taken(view, worker, sticky)
        worker.legs += 1
        view.free -= 1
        return worker

    def _reserve_beyond(self, view: PoolView, region: str) -> WorkerView | None:
        worker = _beyond(view.workers(region)) if view.beyond > 0 else None
        if worker is not None:
            worker.legs += 1
            view.beyond -= 1
        return worker

    def _taken(self, view: PoolView, worker: WorkerView, sticky: tuple[str, str] | None) -> WorkerView:
        if sticky is not None:
            self._sticky[sticky] = worker.card.incarnation
            self._sticky.move_to_end(sticky)
            if len(self._sticky) > 10_000:
                self._sticky.popitem(last=False)
        worker.legs += 1
        view.free -= 1
        if worker.place is not None:
            worker.place.free -= 1
        return worker

    def legs(self) -> dict[str, int]:
        """Legs that this scheduler has open, by pool."""
        counts: dict[str, int] = {}
        for worker in self._workers.values():
            if worker.legs:
                name = worker.card.pool or DEFAULT_POOL
                counts[name] = counts.get(name, 0) + worker.legs
        return counts

    def crowds(self) -> list[Crowd]:
        """Where workers have more legs than slots while others of their pool and region have free ones."""
        return crowds_among(self._workers, self._sharers)

    def make_room(self, crowd: Crowd, legs: int) -> None:
        """Slots that are free there are this scheduler's for so many legs that it asks back, and only theirs.

        Where its room is used up they are lent to it at once, within what the others left at the last heartbeat.
        """
        lend(crowd, legs, lambda card: int(card.slots * self._overcommit) // self._sharers)
        self._reorder()

    def forget_vacant(self) -> None:
        """A second has passed: legs that were asked back have come, or go where there is room like all others."""
        for worker in [worker for pool in self._pools.values() for worker in pool.vacant]:
            worker.vacant -= 1
            if not worker.vacant and worker.pool is not None:
                worker.pool.vacant.remove(worker)

    def shun(self, incarnation: str) -> None:
        """Send it no legs before its next heartbeat: those that come back from there are to go elsewhere."""
        worker = self._workers.get(incarnation)
        if worker is not None:
            worker.shunned = True
            self._reorder()

    def why_not(self, pool: str, region: str) -> str:
        """Why no leg can begin there, beyond that all slots are taken; empty when that is all."""
        view = self._pools.get(pool)
        of_pool = [w for w in self._workers.values() if (w.card.pool or DEFAULT_POOL) == pool]
        here = [w for w in of_pool if not region or w.card.region == region]
        if self.ruled and self.only(pool, region) == NOBODY and here:
            return f"each region of pool {pool} is dedicated to another namespace: the step has to name one"
        if here and view is not None:
            return "" if any(not w.leaving for w in here) else f"all workers of pool {pool} drain"
        if of_pool:
            return f"no worker of pool {pool} in region {region}"
        return f"no worker of pool {pool}"

    def release(self, incarnation: str | None, job_sequence: int = 0) -> None:
        """Give a slot back. With the leg's job sequence, its worker may forget the nonce in time."""
        worker = self._workers.get(incarnation or "")
        if worker is None:
            return
        if job_sequence:
            worker.settle(job_sequence)
        if worker.legs > 0:
            worker.legs -= 1
            if worker.legs < worker.room:
                if worker.pool is not None:
                    worker.pool.free += 1
                    if worker.place is not None:
                        worker.place.free += 1
                self.on_room()
            elif worker.pool is not None and worker.legs < worker.room + worker.beyond:
                worker.pool.beyond += worker.pool.places is None
                self.on_room()

    def hold(self, incarnation: str | None) -> bool:
        """Count a leg that was open already when this scheduler took its group over; False for an unknown worker."""
        worker = self._workers.get(incarnation or "")
        if worker is None:
            return False
        if worker.legs < worker.room and worker.pool is not None:
            worker.pool.free -= 1
            if worker.place is not None:
                worker.place.free -= 1
        elif worker.legs < worker.room + worker.beyond and worker.pool is not None and worker.pool.beyond > 0:
            worker.pool.beyond -= 1
        worker.legs += 1
        worker.heard += 1
        return True

    def recount(self) -> None:
        """Forget all counts: this scheduler owns nothing, and its next session counts jobs anew."""
        for worker in self._workers.values():
            worker.legs = worker.heard = worker.directed = worker.sequence = worker.watermark = 0
            worker.settled.clear()
        self._reorder()

    def get(self, incarnation: str | None) -> WorkerView | None:
        """The live incarnation, or None."""
        return self._workers.get(incarnation or "")

    def slots_of(self, incarnation: str) -> int:
        """Slots of an incarnation that lives or lived; 0 when it was not seen."""
        return self._slots.get(incarnation, 0)

    def has_ended(self, incarnation: str) -> bool:
        """Whether its lease has surely ended. False also when it is in doubt; it is told through `on_ended` then."""
        if incarnation in self._workers:
            return False
        if incarnation in self._ended:
            return True
        if self._known.is_set():
            self._doubt(incarnation)
        return False

    @property
    def live(self) -> list[WorkerView]:
        """All live incarnations."""
        return list(self._workers.values())


def _beyond(workers: list[WorkerView]) -> WorkerView | None:
    """The worker that has the fewest legs beyond its room, of those that may have one more."""
    having = [w for w in workers if w.legs < w.room + w.beyond]
    return min(having, key=lambda w: w.legs - w.room) if having else None


def _all_kept(worker: WorkerView) -> bool:
    """Whether all the room that is left where it is is kept for urgent levels."""
    pool, place = worker.pool, worker.place
    return (pool is not None and pool.free <= pool.headroom) or (place is not None and place.free <= place.kept)
