from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_worker.table import LegTable
from support.eventually import eventually

INCARNATION = "inc"


class FakeLeg:
    """A leg that runs until the test says so."""

    def __init__(self, job: dispatch_pb2.Job) -> None:
        self.job = job
        self.run_id = "run"
        self.begun = False
        self.in_progress = False
        self.dropped = self.drained = self.cancelled = self.gave_up = self.paused = False
        self.delivered: list[str] = []
        self.ending = asyncio.Event()
        self.task: asyncio.Task[str] | None = None

    def start(self) -> asyncio.Task[str]:
        self.task = asyncio.create_task(self._run())
        return self.task

    async def _run(self) -> str:
        await self.ending.wait()
        return "succeeded"

    def drop(self) -> None:
        self.dropped = True
        assert self.task is not None
        self.task.cancel()

    def drain(self) -> None:
        self.drained = True

    def pause(self) -> None:
        self.paused = True

    def give_up(self) -> None:
        self.gave_up = True

    def request_cancel(self, grace_ms: int = 0) -> None:
        self.cancelled = True

    def deliver(self, messages: Sequence[dispatch_pb2.InboxMessage]) -> None:
        self.delivered += [message.key for message in messages]


class Room:
    def __init__(self, slots: int = 2) -> None:
        self.legs: dict[bytes, FakeLeg] = {}
        self.table = LegTable(INCARNATION, slots, self._make)  # type: ignore[arg-type]

    def _make(self, job: dispatch_pb2.Job) -> FakeLeg:
        leg = self.legs[job.leg_nonce] = FakeLeg(job)
        return leg

    def offer(
        self, nonce: bytes, sequence: int = 0, watermark: int = 0, claimant: str = INCARNATION, session: bytes = b"s"
    ) -> bool:
        return self.table.offer(
            dispatch_pb2.Job(
                leg_nonce=nonce, claimant=claimant, sequence=sequence, watermark=watermark, owner_session=session
            )
        )


@pytest.fixture
async def room() -> Room:
    return Room()


async def finish(leg: FakeLeg) -> None:
    leg.ending.set()
    assert leg.task is not None
    await asyncio.wait({leg.task})
    await asyncio.sleep(0)


async def test_a_job_is_taken_once(room: Room) -> None:
    assert room.offer(b"a")
    assert not room.offer(b"a")
    assert room.table.busy.is_set()
    await finish(room.legs[b"a"])
    assert not room.offer(b"a")
    assert room.table.idle.is_set()
    assert not room.table.busy.is_set()


async def test_a_job_for_another_incarnation_is_refused(room: Room) -> None:
    assert not room.offer(b"a", claimant="older")


async def test_more_than_slots_wait_and_begin_in_order(room: Room) -> None:
    for nonce in (b"a", b"b", b"c", b"d"):
        assert room.offer(nonce)
    assert set(room.legs) == {b"a", b"b"}
    assert room.table.held == 4
    await finish(room.legs[b"a"])
    assert set(room.legs) == {b"a", b"b", b"c"}


async def test_settled_sequences_are_forgotten_and_refused(room: Room) -> None:
    assert room.offer(b"a", sequence=1)
    assert room.offer(b"b", sequence=2)
    assert room.offer(b"c", sequence=4, watermark=2)
    assert not room.offer(b"x", sequence=2)  # settled: a late one is never begun
    assert not room.offer(b"a", sequence=1)
    assert room.offer(b"d", sequence=3)  # late, but not settled
    assert room.offer(b"e", sequence=1, session=b"another owner")
    assert room.table._taken == {b"c", b"d", b"e"}


async def test_a_leg_not_begun_is_released_and_its_job_refused_for_ever(room: Room) -> None:
    for nonce in (b"a", b"b", b"c"):
        room.offer(nonce)
    assert room.table.release(b"a", journal_lost=False)  # runs, but nothing left the process yet
    assert room.legs[b"a"].dropped
    assert not room.table.release(b"c", journal_lost=False)  # waits for a slot: kept
    assert room.table.release(b"c", journal_lost=True)
    assert room.table.release(b"never seen", journal_lost=False)
    assert not room.offer(b"never seen")
    assert not room.offer(b"c")


async def test_legs_that_wait_are_let_go_where_another_worker_has_room(room: Room) -> None:
    for nonce in (b"a", b"b", b"c", b"d", b"e"):
        room.offer(nonce)
    asked = [b"e", b"never seen", b"a", b"d", b"c"]
    assert room.table.release_waiting(asked, 2) == [True, False, False, True, False]
    assert not room.legs[b"a"].dropped, "it has a slot"
    assert not room.offer(b"e")
    assert room.offer(b"never seen"), "its job may still come"
    await finish(room.legs[b"a"])
    assert set(room.legs) == {b"a", b"b", b"c"}


async def test_a_leg_that_has_begun_is_not_released(room: Room) -> None:
    room.offer(b"a")
    room.legs[b"a"].begun = True
    assert not room.table.release(b"a", journal_lost=False)
    assert not room.legs[b"a"].dropped


async def test_a_leg_that_has_ended_is_released(room: Room) -> None:
    room.offer(b"a")
    room.legs[b"a"].begun = True
    await finish(room.legs[b"a"])
    assert room.table.release(b"a", journal_lost=False)


async def test_with_a_lost_journal_a_begun_leg_is_released_once_nothing_is_in_progress(room: Room) -> None:
    room.offer(b"a")
    leg = room.legs[b"a"]
    leg.begun = leg.in_progress = True
    assert not room.table.release(b"a", journal_lost=True)
    assert leg.gave_up
    assert not leg.dropped
    leg.in_progress = False
    assert room.table.release(b"a", journal_lost=True)
    assert leg.dropped


async def test_cancelling_a_waiting_leg_begins_it_to_end_it(room: Room) -> None:
    for nonce in (b"a", b"b", b"c"):
        room.offer(nonce)
    room.table.cancel(b"c")
    assert room.legs[b"c"].job.cancel_requested
    room.table.cancel(b"a")
    assert room.legs[b"a"].cancelled


async def test_a_cancel_that_overtakes_its_job_is_remembered(room: Room) -> None:
    room.table.cancel(b"a")
    room.offer(b"a")
    assert room.legs[b"a"].job.cancel_requested
    assert not room.table._cancels


async def test_all_legs_are_given_back_and_later_ones_begin(room: Room) -> None:
    for nonce in (b"a", b"b", b"c"):
        assert room.offer(nonce)
    assert set(room.legs) == {b"a", b"b"}, "the third waits for a slot"
    room.table.give_back()
    room.table.give_back()
    assert set(room.legs) == {b"a", b"b", b"c"} and all(leg.paused for leg in room.legs.values())
    for leg in room.legs.values():
        leg.ending.set()
    await room.table.idle.wait()
    assert room.offer(b"d")
    assert not room.legs[b"d"].paused and not room.legs[b"d"].drained
    room.legs[b"d"].ending.set()
    await room.table.idle.wait()


async def test_draining_reaches_running_waiting_and_later_legs(room: Room) -> None:
    for nonce in (b"a", b"b", b"c"):
        room.offer(nonce)
    room.table.drain()
    assert all(leg.drained for leg in room.legs.values())
    assert set(room.legs) == {b"a", b"b", b"c"}
    assert room.offer(b"d")
    assert room.legs[b"d"].drained


async def test_dropping_all_leaves_nothing_and_takes_nothing(room: Room) -> None:
    for nonce in (b"a", b"b", b"c"):
        room.offer(nonce)
    tasks = room.table.drop_all()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert room.table.held == 0
    assert set(room.legs) == {b"a", b"b"}
    assert not room.offer(b"z")


def letter(key: str, content: bytes = b"1") -> dispatch_pb2.InboxMessage:
    return dispatch_pb2.InboxMessage(key=key, await_key="1", content=content)


async def test_messages_reach_the_leg_wherever_it_is() -> None:
    room = Room(slots=1)
    room.table.deliver(b"early", [letter("a")])  # they overtook their job
    room.table.deliver(b"large", [letter("a", b"x" * 100_000)])
    room.offer(b"early")
    assert [m.key for m in room.legs[b"early"].job.inbox] == ["a"]
    room.table.deliver(b"early", [letter("a"), letter("b")])
    assert room.legs[b"early"].delivered == ["a", "b"]
    room.offer(b"waiting")
    room.table.deliver(b"waiting", [letter("c")])
    room.legs[b"early"].ending.set()
    await eventually(lambda: b"waiting" in room.legs)
    assert [m.key for m in room.legs[b"waiting"].job.inbox] == ["c"]
    room.table.deliver(b"early", [letter("d")])  # it is over: the next leg takes them from the record
    assert room.legs[b"early"].delivered == ["a", "b"]
    room.legs[b"waiting"].ending.set()
    await room.table.idle.wait()
    room.offer(b"large")
    assert not room.legs[b"large"].job.inbox, "what is large is delivered again instead of kept"
    room.table.drop_all()


async def test_messages_for_a_leg_that_waits_are_kept_once_and_within_bounds() -> None:
    room = Room(slots=1)
    room.offer(b"a")
    room.offer(b"b")
    letters = [dispatch_pb2.InboxMessage(key=f"k{n}", await_key="1", content=b"{}") for n in range(3)]
    room.table.deliver(b"b", letters[:2])
    room.table.deliver(b"b", letters)
    room.table.deliver(b"b", letters)
    large = [dispatch_pb2.InboxMessage(key=f"l{n}", await_key="1", content=bytes(2**20)) for n in range(6)]
    small = dispatch_pb2.InboxMessage(key="last", await_key="1", content=b"1")
    room.table.deliver(b"b", [*large, small])
    await finish(room.legs[b"a"])
    await eventually(lambda: b"b" in room.legs)
    # The small one does not overtake those that found no room.
    assert [message.key for message in room.legs[b"b"].job.inbox] == ["k0", "k1", "k2", "l0", "l1", "l2"]


async def test_urgent_legs_begin_beyond_the_slots_of_a_large_worker_and_no_others() -> None:
    room = Room(slots=100)

    def offer(nonce: bytes, level: int) -> None:
        room.table.offer(dispatch_pb2.Job(leg_nonce=nonce, claimant=INCARNATION, level=level))

    for n in range(101):
        offer(b"n%d" % n, 5)
    assert len(room.legs) == 100
    for n in range(3):
        offer(b"u%d" % n, 0)
    assert set(room.legs) >= {b"u0", b"u1"}
    assert len(room.legs) == 102
    await finish(room.legs[b"n0"])
    assert b"u2" in room.legs, "the most urgent first"
    await finish(room.legs[b"n1"])
    await finish(room.legs[b"n2"])
    assert b"n100" not in room.legs, "100 run: the slots are full"
    await finish(room.legs[b"u0"])
    assert b"n100" in room.legs
