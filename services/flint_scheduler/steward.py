"""The steward: which shard groups this scheduler owns, and under which right (R1, R2, R7).

States, each session anew:
    OUT ── etcd lease, session row ──▶ IN ── wins etcd keys ──▶ takes groups in PostgreSQL ──▶ reads their runs ──▶ owns
     ▲                                                                                                     │
     └── steps down: lease lost · a commit found the session ended · stopping ◀────────────────────────────┘

etcd decides who may try, and how groups are spread over the live schedulers; a move between two live ones is a commit
of the giver. What counts is PostgreSQL: a takeover ends the former owner's session first, unless somebody else took the
group since its term was read, before its key was won. Whoever is fenced forgets everything and begins again with a new
session. When the steward dies, the service stops; its lease ends and others
take over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from flint_bus import Bus, BusError
from flint_bus.subjects import OWNERS
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_coord import Coord, CoordError, Lease, keys
from flint_ops import failpoints
from flint_ops.logging import get_logger
from flint_scheduler.accept import Acceptor
from flint_scheduler.attention import Attention
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.fold import Folder
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.metrics import COMMITS_REFUSED, GROUPS, STEP_DOWNS, TAKEOVERS
from flint_scheduler.owned_runs import OwnedRuns
from flint_scheduler.readers import Readers
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.recovery import Recovery
from flint_scheduler.spread import Spread
from flint_store.errors import StoreError
from flint_store.fence import Fenced, OwnerSession
from flint_store.legs import load_unfinished
from flint_store.ownership import GroupTerm, begin_session, end_session, give_groups, read_terms, take_groups

__all__ = ["Steward"]

log = get_logger(__name__)

_LOOK_S = 3.0
_RETRY_S = 0.5
_TOGETHER_S = 0.002  # what etcd tells on two streams of one change comes within this: it is answered at once


class Steward:
    """Owns, takes and gives shard groups for one scheduler."""

    def __init__(
        self,
        *,
        scheduler_id: str,
        address: str,
        lease_ttl_s: int,
        coord: Coord,
        record: Record,
        bus: Bus,
        holdings: Holdings,
        runs: OwnedRuns,
        acceptor: Acceptor,
        dispatcher: Dispatcher,
        folder: Folder,
        attention: Attention,
        recovery: Recovery,
        readers: Readers,
    ) -> None:
        self._id = scheduler_id
        self._address = address
        self._lease_ttl_s = lease_ttl_s
        self._coord = coord
        self._record = record
        self._bus = bus
        self._holdings = holdings
        self._runs = runs
        self._acceptor = acceptor
        self._dispatcher = dispatcher
        self._folder = folder
        self._attention = attention
        self._recovery = recovery
        self._readers = readers
        self._spread = Spread(scheduler_id, holdings.group_count)
        self._spread.on_members = runs.share_between
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self.failed: Callable[[BaseException], None] = lambda error: None
        self.owning = asyncio.Event()  # set once a session stands

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Own groups until `stop`, through any number of sessions."""
        watchers = [
            asyncio.create_task(self._spread.watch_members(self._coord), name="steward-members"),
            asyncio.create_task(self._spread.watch_groups(self._coord), name="steward-groups"),
        ]
        for watcher in watchers:
            watcher.add_done_callback(self._watcher_ended)
        try:
            while not self._stopping.is_set():
                lease: Lease | None = None
                reason = "error"
                try:
                    lease = await self._begin()
                    reason = await self._hold(lease)
                except (CoordError, RecordUnavailable, StoreError) as error:
                    log.warning("session_failed", error=str(error))
                except Fenced:
                    reason = "fenced"
                finally:
                    await self._step_down(lease, reason)
                if not self._stopping.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_RETRY_S):
                            await self._stopping.wait()
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._stopped.set()

    def _watcher_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    async def stop(self) -> None:
        """Give everything back and return when others may take it."""
        self._stopping.set()
        self._spread.changed.set()
        await self._stopped.wait()

    async def _begin(self) -> Lease:
        lease = await self._coord.grant(self._lease_ttl_s)
        lease.keep()
        try:
            self._holdings.session = await self._record.transaction(
                lambda engine: begin_session(engine, self._id, self._address)
            )
            self._holdings.lost.clear()
            await self._coord.put(keys.scheduler(self._id), self._address, lease.id)
            await self._free_former(lease)
        except BaseException:
            await self._revoke(lease)
            raise
        log.info("session_began", session=str(self._holdings.session.session_id))
        try:
            await self._readers.establish()
        except BusError as error:
            log.warning("journal_not_reachable", error=str(error))
            self._readers.suspect()
        self.owning.set()
        return lease

    async def _free_former(self, lease: Lease) -> None:
        """Delete the keys of the groups that a scheduler of my id held before: nobody need wait for its lease's end.

        My session has ended every session of my id in PostgreSQL, so whatever still runs under one commits nothing.
        """
        held = [
            (item.key, item.lease_id)
            for item in await self._coord.scan(keys.GROUPS)
            if item.value.decode() == self._id and item.lease_id != lease.id
        ]
        if held:
            await asyncio.gather(*(self._coord.delete(key, only_lease=former) for key, former in held))
            log.info("former_keys_freed", groups=len(held))

    async def _hold(self, lease: Lease) -> str:
        """Follow the members until the right to own ends; answers why it did."""
        lost = asyncio.create_task(lease.lost.wait())
        fenced = asyncio.create_task(self._holdings.lost.wait())
        try:
            while True:
                if self._spread.changed.is_set():
                    await asyncio.sleep(_TOGETHER_S)
                self._spread.changed.clear()
                if self._holdings.unread:
                    self._holdings.unread_signal.clear()
                    groups, self._holdings.unread = self._holdings.unread, set()
                    await self._runs.reload(groups)
                await self._balance(lease)
                changed = asyncio.create_task(self._spread.changed.wait())
                unread = asyncio.create_task(self._holdings.unread_signal.wait())
                try:
                    await asyncio.wait(
                        {lost, fenced, changed, unread}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    changed.cancel()
                    unread.cancel()
                if self._stopping.is_set():
                    return "stopping"
                if self._holdings.lost.is_set():
                    return "fenced"
                if lease.lost.is_set():
                    return "lease_lost"
        finally:
            lost.cancel()
            fenced.cancel()

    # -- members -------------------------------------------------------------------------------------------------------

    async def _balance(self, lease: Lease) -> None:
        give, take = self._spread.moves(self._holdings.groups)
        if give:
            await self._give(give, lease)
        if take:
            await self._take(take, lease)

    # -- taking and giving ---------------------------------------------------------------------------------------------

    async def _take(self, groups: list[int], lease: Lease) -> None:
        """Take those of the groups whose keys I win, unless another took them since I looked.

        The terms are read before the keys are won: should my lease end before my commit, whoever wins them next either
        takes before me, and I find another term, or after me, and ends a session without a lease.
        """
        session = self._holdings.session
        if session is None:
            return
        since = await self._record.read(lambda c: read_terms(c, groups))
        # At once: nobody owns them meanwhile.
        asked = [self._coord.create(keys.group(group), self._id, lease.id) for group in groups]
        won = [group for group, mine in zip(groups, await asyncio.gather(*asked), strict=True) if mine]
        if not won:
            return
        if failpoints.ARMED:
            failpoints.reach("takeover.won")
        terms = await self._record.transaction(lambda engine: take_groups(engine, session, won, since))
        taken = [term.group for term in terms]
        if len(taken) < len(won):
            # That their keys are gone is told to me too: I try again, if it is my turn still.
            others = sorted(set(won).difference(taken))
            log.info("groups_taken_by_another", groups=others)
            await self._delete_keys(others, lease)
        if not taken:
            return
        try:
            for group in taken:
                await self._attention.listen(group)
            rows = await self._record.read(lambda c: load_unfinished(c, taken))
        except BaseException:
            for group in taken:
                await self._attention.unlisten(group)
            raise
        self._runs.adopt(rows)
        self._own(terms)
        log.info("groups_taken", groups=sorted(taken), runs=len(rows), terms={t.group: t.term for t in terms})

    async def _delete_keys(self, groups: Sequence[int], lease: Lease) -> None:
        await asyncio.gather(*(self._coord.delete(keys.group(group), only_lease=lease.id) for group in groups))

    def _own(self, terms: Sequence[GroupTerm]) -> None:
        generation = self._holdings.generation
        for term in terms:
            folded = term.watermark if term.watermark_generation == generation else 0
            holding = GroupHolding(term.group, term.term, folded, folded, settled=True, received=folded)
            self._holdings.groups[term.group] = holding
            if generation:
                self._readers.start(holding)
        TAKEOVERS.inc(len(terms))
        GROUPS.set(len(self._holdings.groups))
        self._announce([t.group for t in terms])
        self._attention.sweep_soon()
        self._recovery.look_now()
        self._dispatcher.wake()

    def _announce(self, groups: Sequence[int]) -> None:
        with contextlib.suppress(BusError):  # watchers read again by themselves
            self._bus.publish_now(OWNERS, dispatch_pb2.OwnerChanged(groups=groups).SerializeToString())

    async def _give(self, groups: list[int], lease: Lease) -> None:
        """Hand groups to their new owner: nothing of mine for them is under way after my commit."""
        session = self._holdings.session
        if session is None:
            return
        for group in groups:
            self._holdings.groups[group].settled = False
            self._readers.stop_soon(group)
        log.info("groups_released", groups=sorted(groups))
        await self._settle_lanes()
        self._runs.forget(groups)
        await self._give_in_record(session, {g: self._holdings.groups[g].folded for g in groups})
        for group in groups:
            del self._holdings.groups[group]
        await self._delete_keys(groups, lease)
        for group in groups:
            await self._attention.unlisten(group)
        GROUPS.set(len(self._holdings.groups))
        log.info("groups_given", groups=sorted(groups))

    async def _settle_lanes(self) -> None:
        await asyncio.gather(self._acceptor.barrier(), self._dispatcher.barrier(), self._folder.barrier())

    async def _give_in_record(self, session: OwnerSession, watermarks: Mapping[int, int]) -> None:
        """Groups without an owner, each with how far it is folded. Raises Fenced and RecordUnavailable."""
        folded, generation = dict(watermarks), self._holdings.generation
        await self._record.lane("generation", lambda c: give_groups(c, session, folded, generation))

    # -- stepping down -------------------------------------------------------------------------------------------------

    async def _step_down(self, lease: Lease | None, reason: str) -> None:
        """Own nothing any more. Whoever comes next finds everything in PostgreSQL and the journal."""
        self.owning.clear()
        session = self._holdings.session
        groups = list(self._holdings.groups)
        leaving = session is not None and reason == "stopping"
        if leaving and lease is not None:
            await self._depart(lease)
        for holding in self._holdings.groups.values():
            holding.settled = False
        if groups:
            log.info("groups_released", groups=sorted(groups), reason=reason)
        self._readers.stop_all()
        if leaving:
            await self._settle_lanes()
        watermarks = {g: h.folded for g, h in self._holdings.groups.items()}
        self._holdings.session = None
        if session is not None and leaving:
            # The heirs wait for the key alone: what is left to do here is done while they take over.
            if watermarks:
                with self._parting(session):
                    await self._give_in_record(session, watermarks)
            await asyncio.gather(self._end(session), self._revoke(lease))
            await self._dispatcher.drain()
        self._runs.forget_all(groups)
        self._holdings.groups.clear()
        with contextlib.suppress(BusError):
            await self._attention.unlisten_all()
        GROUPS.set(0)
        if session is not None:
            STEP_DOWNS.labels(reason).inc()
            log.info("session_ends", reason=reason, groups=len(groups))
        if not leaving:
            if session is not None and reason != "fenced":
                await self._end(session)
            await self._revoke(lease)

    async def _depart(self, lease: Lease) -> None:
        """Say that I am about to go: the others know what each will take before I let go of it."""
        try:
            await self._coord.delete(keys.scheduler(self._id), only_lease=lease.id)
        except CoordError as error:
            log.info("departure_not_told", error=str(error))  # the end of the lease tells it

    async def _end(self, session: OwnerSession) -> None:
        with self._parting(session):
            await self._record.transaction(lambda engine: end_session(engine, session))

    @contextlib.contextmanager
    def _parting(self, session: OwnerSession) -> Iterator[None]:
        """Whatever cannot be recorded on the way out, the next owner finds out: it ends the session."""
        try:
            yield
        except RecordUnavailable as error:
            log.info("session_not_ended", error=str(error))
        except Fenced:
            COMMITS_REFUSED.inc()
            log.warning("commit_refused", session=str(session.session_id))

    async def _revoke(self, lease: Lease | None) -> None:
        if lease is None:
            return
        try:
            await lease.revoke()
        except CoordError as error:
            log.info("lease_left_to_expire", error=str(error))
