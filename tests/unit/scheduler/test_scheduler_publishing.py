"""Starts whose first leg opens in their own commit: which they are, and what follows: jobs first, then answers."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from flint_bus.errors import AppendUnknown
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.ids import make_run_id
from flint_scheduler.accept import Acceptor, NewStart, _Unit
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook
from flint_scheduler.clock import RecordClock
from flint_scheduler.control.holds import Holds
from flint_scheduler.dispatch import Dispatcher
from flint_scheduler.fleet import FleetView
from flint_scheduler.holdings import GroupHolding, Holdings
from flint_scheduler.permits import Permits
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.shares import Shares
from flint_store.accept import Accepted, NewRun

NOTHING = cast(Any, None)


class Connection:
    """What is sent, and who had been answered by then."""

    max_append = 2**20

    def __init__(self) -> None:
        self.units: list[_Unit] = []
        self.sent: list[tuple[str, list[bool]]] = []
        self.acknowledged: list[asyncio.Future[int]] = []
        self.broken = False
        self.connected = asyncio.Event()

    def write_now(self) -> None:
        """What was appended is with the connection already."""

    def append_now(self, subject: str, data: bytes, **_: object) -> asyncio.Future[int]:
        if self.broken:
            raise RuntimeError("a defect")
        self.sent.append((subject, [unit.done.done() for unit in self.units]))
        self.acknowledged.append(asyncio.get_running_loop().create_future())
        return self.acknowledged[-1]


class Accepting:
    """An acceptor whose batch of starts has just been committed."""

    def __init__(self, units: int, starts: int, *, batches: bool = False) -> None:
        self.bus = Connection()
        bus = cast(Any, self.bus)
        holdings = Holdings(1)
        holdings.groups[0] = GroupHolding(0, 1, 0, 0)
        holdings.groups[0].settled = True
        self.book, queue = RunBook(), ReadyQueue()
        fleet = FleetView(overcommit=1.0, lease_ttl_s=5)
        card = registry_pb2.WorkerCard(incarnation="w", worker_id="w", slots=1000, job_batches=batches)
        fleet.snapshot({"w": card}, set())
        holdings.generation = 1
        shares = Shares(queue)
        clock = RecordClock()
        permits = cast(Permits, SimpleNamespace())
        self.dispatcher = Dispatcher(
            NOTHING, holdings, self.book, queue, fleet, bus, clock, Announcer(bus), shares, permits
        )
        self.acceptor = Acceptor(NOTHING, holdings, self.book, queue, fleet, self.dispatcher, bus, clock, shares)
        self.units = self.bus.units
        loop = asyncio.get_running_loop()
        for _ in range(units):
            of_unit = [
                NewStart("n", "w", "1.0.0", 1, b"h", 5, os.urandom(4).hex(), b"", b"", b"{}") for _ in range(starts)
            ]
            unit = _Unit(of_unit, "watcher", loop.create_future())
            unit.runs = [self._run(start) for start in of_unit]
            self.units.append(unit)

    @staticmethod
    def _run(start: NewStart) -> NewRun:
        run = NewRun(make_run_id(0, 1, os.urandom(9)), "n", 1, 0, 5, start.request_id, b"", b"", b"{}")
        run.claimant, run.leg_nonce, run.generation = "w", os.urandom(16), 1
        return run

    def settle(self) -> None:
        runs = [run for unit in self.units for run in unit.runs]
        at = datetime(2026, 1, 1, tzinfo=UTC)
        answers = [Accepted(run.run_id, True, True, at, 2) for run in runs]
        claims = {run.run_id: "w" for run in runs}
        self.acceptor._settle(self.units, runs, answers, claims, current=True)


async def test_jobs_of_a_commit_are_sent_before_anybody_is_answered() -> None:
    accepting = Accepting(units=3, starts=2)
    accepting.settle()
    assert len(accepting.bus.sent) == 6, "within the same turn of the event loop"
    assert not any(answered for _, done in accepting.bus.sent for answered in done)
    assert all(len(unit.done.result()) == 2 for unit in accepting.units)
    for future in accepting.bus.acknowledged:
        future.set_result(1)
    await accepting.dispatcher.drain()


async def test_starts_that_are_stored_are_answered_though_their_jobs_cannot_be_sent() -> None:
    accepting = Accepting(units=2, starts=1)
    accepting.bus.broken = True
    accepting.settle()
    assert all(unit.done.result()[0].created for unit in accepting.units)
    assert {card.phase for card in accepting.book} == {Phase.OPEN}, "recovery asks the worker for their legs"


async def test_legs_of_a_commit_are_one_message_and_all_are_asked_for_when_it_is_not_confirmed() -> None:
    accepting = Accepting(units=3, starts=2, batches=True)
    accepting.settle()
    assert len(accepting.bus.sent) == 1
    assert accepting.bus.sent[0][1] == [False] * 3, "nobody had been answered"
    assert [card.job_sequence for card in accepting.book] == [1, 2, 3, 4, 5, 6]
    assert all(card.progress_at for card in accepting.book)
    accepting.bus.acknowledged[0].set_exception(AppendUnknown("no answer in time"))
    await accepting.dispatcher.drain()
    assert {card.progress_at for card in accepting.book} == {0.0}, "recovery asks the worker for each of them at once"


async def test_while_a_workflow_is_on_hold_others_begin_at_once_all_the_same() -> None:
    accepting = Accepting(units=2, starts=3)
    accepting.bus.connected.set()
    holds = Holds(NOTHING, accepting.book)
    accepting.acceptor.holds = holds
    for unit in accepting.units:
        for start, run in zip(unit.starts, unit.runs, strict=True):
            run.leg_nonce = run.claimant = None
            start.workflow_id = run.request_id
    held, other, _ = accepting.units[0].starts
    holds._held = frozenset({("n", held.workflow_id), ("another", other.workflow_id)})
    claims = accepting.acceptor._assign(accepting.units)
    begun = [run.leg_nonce is not None for unit in accepting.units for run in unit.runs]
    assert begun == [False, True, True, True, True, True]
    assert len(claims) == 5
