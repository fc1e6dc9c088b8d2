"""Accept: starts become rows, hundreds in one commit, and are answered after it (R0).

This replica draws each run's id in a shard it owns, so it is the owner of nearly all it accepts and may open the
first leg in the same commit. While it owns nothing it accepts for others: the owners are nudged and also sweep for
such runs.

A commit whose answer was lost is repeated with the same ids: request ids make that harmless.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flint_bus import Bus
from flint_bus.subjects import owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import SHARDS, group_of_run, make_run_id
from flint_core.queueing import DEFAULT_POOL, URGENT, QueueHints
from flint_scheduler.cards import Phase, RunBook, RunCard
from flint_scheduler.clock import RecordClock
from flint_scheduler.control.holds import Holds
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.fleet import FleetView
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import Lane, LaneClosed
from flint_scheduler.metrics import ACCEPTED, COMMIT_ROWS
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record, RecordUnavailable
from flint_scheduler.shares import Shares
from flint_store.accept import Accepted, NewRun, Parent, Quota, accept_runs
from flint_store.legs import LegStart

__all__ = ["Acceptor", "NewStart"]

_BATCH = 1000
_NOISE = 11  # random bytes of a start: nine for its id, two for its shard
_LATE_S = 15.0  # above PostgreSQL's statement timeout
_READY, _OPEN = Phase.READY, Phase.OPEN
ENDED = frozenset((runs_pb2.Run.STATE_SUCCEEDED, runs_pb2.Run.STATE_FAILED, runs_pb2.Run.STATE_CANCELLED))


@dataclass(slots=True)
class NewStart:
    """A validated start with its definition resolved."""

    namespace: str
    workflow_id: str
    version: str
    definition_id: int
    definition_hash: bytes
    level: int
    request_id: str
    request_hash: bytes
    trace_id: bytes
    input: bytes
    parent: Parent | None = None
    hints: QueueHints | None = None
    counted: bool = False  # whether a quota of its namespace may refuse it


@dataclass(slots=True)
class _Unit:
    starts: list[NewStart]
    watcher: str
    done: asyncio.Future[list[Accepted]]
    runs: list[NewRun] = field(default_factory=list)


class Acceptor(Lane[_Unit]):
    """The accept lane of one scheduler."""

    def __init__(
        self,
        record: Record,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        fleet: FleetView,
        dispatcher: Dispatcher,
        bus: Bus,
        clock: RecordClock,
        shares: Shares,
    ) -> None:
        super().__init__(_BATCH)
        self._record = record
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._bus = bus
        self._clock = clock
        self._shares = shares
        self._turn_of = 0
        self.quotas: Callable[[], Mapping[str, Quota]] = dict
        self.holds: Holds | None = None

    async def accept(self, starts: list[NewStart], watcher: str) -> list[Accepted]:
        """Store the starts; returns after the commit, one answer per start in order.

        Raises RecordUnavailable when PostgreSQL cannot be reached (the starts may have been stored: repeat with the
        same request ids), LaneClosed when this replica is stopping (they were not).
        """
        unit = _Unit(starts, watcher, asyncio.get_running_loop().create_future())
        self._put(unit)
        return await unit.done

    @property
    def waiting_starts(self) -> int:
        """Starts that wait for their batch."""
        return sum(len(unit.starts) for unit in self._pending)

    def _weight(self, unit: _Unit) -> int:
        return len(unit.starts)

    def _refuse(self, unit: _Unit, error: Exception) -> None:
        if not unit.done.done():
            unit.done.set_exception(error)

    async def _commit(self, batch: list[_Unit]) -> None:
        owned = self._holdings.settled_groups()
        self._draw(batch, owned)
        claims = self._assign(batch) if owned else {}
        runs = [run for unit in batch for run in unit.runs]
        session = self._holdings.session if owned else None
        quotas = self.quotas()
        try:
            try:
                answers = await self._record.lane("accept", lambda c: accept_runs(c, runs, session, quotas))
                if answers is None:  # fenced: another replica took over; store them for whoever owns their shards
                    self._holdings.fenced(session)
                    self._unassign(claims, runs)
                    claims, session = {}, None
                    answers = await self._record.lane("accept", lambda c: accept_runs(c, runs, None, quotas))
            except asyncio.CancelledError:
                for unit in batch:
                    self._refuse(unit, RecordUnavailable("this scheduler stopped while the start was being stored"))
                raise
            except RecordUnavailable as error:
                self._unassign(claims, runs)
                # The commit may have happened with legs named in it: the sweep's sibling, recovery, finds them by
                # reading.
                self._holdings.reread({run.group for run in runs})
                asyncio.get_running_loop().call_later(_LATE_S, self._look_for, runs)
                for unit in batch:
                    self._refuse(unit, error)
                return
            current = session is not None and self._holdings.session is session
            self._settle(batch, runs, answers or [], claims, current=current)
        except LaneClosed as error:
            for unit in batch:
                self._refuse(unit, error)
        except Exception:
            # A defect. The insert may have been committed: whatever it stored is read again from the record.
            self._unassign(claims, runs)
            self._holdings.reread({run.group for run in runs})
            raise

    def _draw(self, batch: list[_Unit], owned: list[int]) -> None:
        """Give every start an id in one of my groups, or in any group while I own none."""
        groups = self._holdings.group_count
        now_ms = self._clock.now_ms()
        noise = os.urandom(_NOISE * sum(len(unit.starts) for unit in batch))
        at = 0
        for unit in batch:
            unit.runs = []
            for start in unit.starts:
                if owned:
                    self._turn_of = (self._turn_of + 1) % len(owned)
                    group = owned[self._turn_of]
                else:
                    group = random.randrange(groups)
                shards = (SHARDS - 1 - group) // groups + 1  # of the group: group, group + groups, …
                shard = group + groups * (int.from_bytes(noise[at + 9 : at + _NOISE]) % shards)
                unit.runs.append(
                    NewRun(
                        run_id=make_run_id(shard, now_ms, noise[at : at + 9]),
                        namespace=start.namespace,
                        definition_id=start.definition_id,
                        group=group,
                        level=start.level,
                        request_id=start.request_id,
                        request_hash=start.request_hash,
                        trace_id=start.trace_id,
                        input=start.input,
                        parent=start.parent,
                        hints=start.hints,
                        counted=start.counted,
                    )
                )
                at += _NOISE

    def _assign(self, batch: list[_Unit]) -> dict[bytes, str]:
        """Open first legs with the start where slots are free and nobody waits before them."""
        claims: dict[bytes, str] = {}
        before = self._queue.most_urgent(DEFAULT_POOL)  # only runs more urgent than those that wait
        if before == URGENT or not self._dispatcher.can_open():
            return claims
        holds = self.holds if self.holds is not None and self.holds.any else None
        generation = self._holdings.generation
        nonces = os.urandom(16 * sum(len(unit.runs) for unit in batch))
        only = self._fleet.only(DEFAULT_POOL, "") if self._fleet.ruled else None
        for unit in batch:
            for start, run in zip(unit.starts, unit.runs, strict=True):
                if run.level >= before:
                    continue
                if holds is not None and holds.holds(start.namespace, start.workflow_id):
                    continue  # the queue parks it
                if only is not None and run.namespace != only:
                    continue  # the pool is another's
                if run.hints is not None or run.namespace in self._shares.limited:
                    continue  # the queue knows when and where
                worker = self._fleet.reserve(level=run.level)
                if worker is None:
                    before = run.level  # there may be room for more urgent ones
                    continue
                run.claimant = worker.card.incarnation
                at = 16 * len(claims)
                run.leg_nonce = nonces[at : at + 16]
                run.generation = generation
                claims[run.run_id] = run.claimant
        return claims

    def _unassign(self, claims: dict[bytes, str], runs: list[NewRun]) -> None:
        for claimant in claims.values():
            self._fleet.release(claimant)
        for run in runs:
            run.leg_nonce = run.claimant = None

    def _settle(
        self,
        batch: list[_Unit],
        runs: list[NewRun],
        answers: list[Accepted],
        claims: dict[bytes, str],
        *,
        current: bool,
    ) -> None:
        now = asyncio.get_running_loop().time()
        opened: list[RunCard] = []
        queued = False
        foreign: dict[int, list[bytes]] = {}
        known: dict[int, list[bytes]] = {}
        stored: list[tuple[_Unit, list[Accepted]]] = []
        at = made_ms = 0
        made_at: datetime | None = None
        for unit in batch:
            mine = answers[at : at + len(unit.starts)]
            for start, run, answer in zip(unit.starts, runs[at : at + len(unit.starts)], mine, strict=True):
                if not answer.created:
                    if run.run_id in claims:
                        self._fleet.release(run.claimant)
                    if answer.state not in ENDED and self._book.get(answer.run_id) is None:
                        # Mostly a run that waits; but it may have been stored by a commit that came late.
                        known.setdefault(group_of_run(answer.run_id, self._holdings.group_count), []).append(
                            answer.run_id
                        )
                    continue
                if not current or not self._holdings.owns(run.group):
                    # Accepted for another owner, or given away meanwhile: it reads the run from PostgreSQL.
                    if run.run_id in claims:
                        self._fleet.release(run.claimant)
                    foreign.setdefault(run.group, []).append(run.run_id)
                    continue
                if answer.created_at is not made_at:  # that of one moment is one object
                    made_at = answer.created_at
                    made_ms = int(made_at.timestamp() * 1000)
                card = RunCard(
                    run_id=run.run_id,
                    namespace=start.namespace,
                    workflow_id=start.workflow_id,
                    version=start.version,
                    definition_hash=start.definition_hash,
                    group=run.group,
                    level=start.level,
                    created_ms=made_ms,
                    trace_id=start.trace_id,
                    phase=_READY,
                    request_id=start.request_id,
                    expected_sequence=0,
                    start=LegStart(start.input, b""),
                    watcher=unit.watcher,
                    hints=start.hints,
                )
                if start.parent is not None:
                    card.parent_run_id = start.parent.run_id
                    card.parent_key = start.parent.await_key if start.parent.waits else None
                self._book.add(card)
                if run.leg_nonce is not None:
                    card.phase = _OPEN
                    card.held = True
                    card.leg = 1
                    card.nonce = run.leg_nonce
                    card.claimant = run.claimant
                    card.generation = run.generation
                    card.started_ms = made_ms
                    card.progress_at = now
                    opened.append(card)
                else:
                    self._queue.push(card, now)
                    queued = True
            at += len(unit.starts)
            stored.append((unit, mine))
        if opened:
            self._dispatcher.publish(opened)  # workers need not wait until hundreds of answers are written
        for unit, mine in stored:
            if not unit.done.done():
                unit.done.set_result(mine)
        ACCEPTED.inc(at)
        COMMIT_ROWS.labels("accept").observe(len(runs))
        if opened:
            self._dispatcher.announce_started(opened)
        if queued:
            self._dispatcher.wake()
        for group, run_ids in [*foreign.items(), *known.items()]:
            self._nudge(group, run_ids)

    def _look_for(self, runs: list[NewRun]) -> None:
        """The backend of a lost connection may commit after the record was read again: look once more."""
        by_group: dict[int, list[bytes]] = {}
        for run in runs:
            by_group.setdefault(run.group, []).append(run.run_id)
        for group, run_ids in by_group.items():
            self._nudge(group, run_ids)

    def _nudge(self, group: int, run_ids: list[bytes]) -> None:
        # Fire and forget: when it is lost, the owner's sweep finds the runs.
        self._bus.publish_now(owner_subject(group), dispatch_pb2.OwnerNudge(accepted=run_ids).SerializeToString())
