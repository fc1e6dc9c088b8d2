"""Entries of several legs travel together, are stored once and in order, and none is held by another's fate."""

from __future__ import annotations

import asyncio
import os
from itertools import chain
from typing import Any

import pytest
from eventually import eventually
from nats_server import NatsServer
from worker_bench import INCARNATION, STREAM, Bench, noops

from flint_bus import AppendRefused
from flint_bus.streams import call_api
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_ops.clock import boottime
from flint_worker.lanes import Lane, Lanes, LegStopped, Member
from flint_worker.lease import Lease


def entry(number: int, size: int = 0) -> bytes:
    return journal_pb2.JournalEntry(run_id=b"%d" % number, index=1, events=bytes(size)).SerializeToString()


def lane_of(bench: Bench, lanes: Lanes | None = None) -> Lane:
    return (lanes or bench.lanes).of(dispatch_pb2.Job(level=5, generation=1, run_id=os.urandom(16)))


async def messages(bench: Bench, lane: Lane) -> list[list[int]]:
    """The entries of each of the lane's messages."""
    found: dict[int, list[int]] = {}
    for message, one in await bench.stored():
        if message.subject == lane._subject:
            found.setdefault(message.sequence, []).append(int(one.run_id))
    return [found[sequence] for sequence in sorted(found)]


async def reason_of(append: asyncio.Future[None]) -> str:
    with pytest.raises(LegStopped) as stopped:
        await append
    return stopped.value.reason


async def lose_last(bench: Bench, lane: Lane, lost: int = 1) -> None:
    """JetStream forgets the end of what it had acknowledged."""
    for _ in range(lost):
        last = await bench.bus.last_message(STREAM, lane._subject)
        assert last is not None
        await call_api(bench.bus.request, f"STREAM.MSG.DELETE.{STREAM}", {"seq": last.sequence}, 60.0)


async def test_what_is_ready_in_the_same_moment_is_one_message(bench: Bench) -> None:
    lane = lane_of(bench)
    await asyncio.gather(*(lane.append(entry(n), Member()) for n in range(60)))
    await lane.append(entry(60), Member())
    assert await messages(bench, lane) == [list(range(60)), [60]]


async def test_messages_are_bounded_by_count_and_by_size(bench: Bench) -> None:
    lane = lane_of(bench)
    await asyncio.gather(*(lane.append(entry(n), Member()) for n in range(250)))
    assert [len(message) for message in await messages(bench, lane)] == [100, 100, 50]
    sizes = [100_000, 100_000, 100_000, 700_000, 10]
    await asyncio.gather(*(lane.append(entry(300 + n, size), Member()) for n, size in enumerate(sizes)))
    assert (await messages(bench, lane))[3:] == [[300, 301], [302], [303], [304]]


async def test_legs_of_a_crowd_share_messages_and_each_is_whole(bench: Bench) -> None:
    program = bench.define(noops(5))
    jobs = [bench.job(program) for _ in range(40)]
    assert await asyncio.gather(*(bench.leg(job).run() for job in jobs)) == ["succeeded"] * 40
    stored = await bench.stored()
    of_run = {job.run_id: [one.index for _, one in stored if one.run_id == job.run_id] for job in jobs}
    assert all(indexes == [1, 2, 3, 4, 5] for indexes in of_run.values())
    assert len({message.sequence for message, one in stored if one.run_id in of_run}) < 200


async def test_a_lane_for_each_group_and_generation_and_none_for_the_urgent(bench: Bench) -> None:
    def of(**job: Any) -> Lane:
        return bench.lanes.of(dispatch_pb2.Job(**{"level": 5, "generation": 1, "run_id": bytes(16), **job}))

    first = of()
    assert of(run_id=bytes(range(16)), level=9) is first
    assert of(group=1) is not first
    assert of(generation=2) is not first
    assert of(level=0) is not of(level=0)
    assert of(level=0)._subject.endswith(bytes(16).hex())


async def test_an_urgent_entry_passes_a_lane_that_waits(bench: Bench) -> None:
    lane = lane_of(bench)
    never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    real, lane._bus = lane._bus, Silent(lane._bus, never)  # type: ignore[assignment]
    waits = lane.append(entry(1), Member())
    await eventually(lambda: lane._message is not None)
    job = bench.job(bench.define(noops(2)), level=0)
    assert await bench.run(job, 60) == "succeeded"
    assert not waits.done()
    lane._bus = real
    never.set_exception(AppendRefused("it was a test"))
    with pytest.raises(AppendRefused):
        await waits


class Silent:
    """A bus that answers an append when the test says so."""

    def __init__(self, bus: Any, answer: asyncio.Future[int]) -> None:
        self._bus = bus
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def append_now(self, *arguments: Any, **options: Any) -> asyncio.Future[int]:
        return self._answer


class Refusing:
    """A bus whose journal refuses whatever holds a certain entry, for good."""

    def __init__(self, bus: Any, refused: bytes) -> None:
        self._bus = bus
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def append_now(self, subject: str, data: bytes, **options: Any) -> asyncio.Future[int]:
        if self._refused not in data:
            answer: asyncio.Future[int] = self._bus.append_now(subject, data, **options)
            return answer
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(AppendRefused("header too large (err_code 10099)"))
        return answer


async def test_one_that_is_refused_keeps_no_other(bench: Bench) -> None:
    lanes = Lanes(Refusing(bench.bus, entry(3)), bench.lease)  # type: ignore[arg-type]
    lane = lane_of(bench, lanes)
    appends = [lane.append(entry(n), Member()) for n in range(6)]
    done, _ = await asyncio.wait(appends, timeout=60)
    assert len(done) == 6
    assert [type(append.exception()) for append in appends] == [type(None)] * 3 + [AppendRefused] + [type(None)] * 2
    assert list(chain(*await messages(bench, lane))) == [0, 1, 2, 4, 5]
    await lane.append(entry(7), Member())
    await lanes.close()


async def test_a_lost_end_stops_the_legs_that_had_entries_there_and_no_others(bench: Bench) -> None:
    lane = lane_of(bench)
    first, second, late = Member(), Member(), Member()
    await lane.append(entry(1), first)
    await lane.append(entry(2), second)
    await lose_last(bench, lane)
    together = [lane.append(entry(n), member) for n, member in ((3, first), (4, late))]
    assert await reason_of(together[0]) == "superseded"
    await together[1]
    assert await reason_of(lane.append(entry(5), second)) == "superseded"
    await lane.append(entry(6), late)
    await lane.append(entry(7), Member())
    assert await messages(bench, lane) == [[1], [4], [6], [7]]


async def test_a_purged_lane_goes_on(bench: Bench) -> None:
    lane, leg = lane_of(bench), Member()
    await lane.append(entry(1), leg)
    await lose_last(bench, lane)
    lane._stored_at -= 60  # a minute ago
    await lane.append(entry(2), leg)
    assert await messages(bench, lane) == [[2]]


async def test_what_nobody_waits_for_is_settled_before_what_comes_next(own_bench: Bench, own_nats: NatsServer) -> None:
    bench = own_bench
    lane = lane_of(bench)
    await lane.append(entry(1), Member())
    own_nats.pause()
    gone = lane.append(entry(2), Member())
    await eventually(lambda: lane._message is not None)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await eventually(lambda: lane.unsure and not lane._settling)
    own_nats.resume()
    async with asyncio.timeout(60):
        await lane.append(entry(3), Member())
    assert await messages(bench, lane) == [[1], [2], [3]]
    assert not lane.unsure


async def test_a_leg_that_gives_up_leaves_the_others_waiting(own_bench: Bench, own_nats: NatsServer) -> None:
    bench = own_bench
    lane, giving, staying = lane_of(bench), Member(), Member()
    own_nats.pause()
    gives = lane.append(entry(1), giving)
    stays = lane.append(entry(2), staying)
    await eventually(lambda: lane.unsure)
    lane.give_up(giving)
    assert await reason_of(gives) == "given-up"
    assert not stays.done()
    own_nats.resume()
    async with asyncio.timeout(60):
        await stays
    assert await messages(bench, lane) == [[1, 2]]


@pytest.mark.parametrize("paused", [True, False])
async def test_nothing_is_sent_after_the_lease(own_bench: Bench, own_nats: NatsServer, paused: bool) -> None:
    bench = own_bench
    lease = Lease(INCARNATION, 2, boottime(), 300)
    lanes = Lanes(bench.bus, lease)
    lane = lane_of(bench, lanes)
    if paused:
        own_nats.pause()
        under_way = lane.append(entry(1), Member())
        await eventually(lambda: lane.unsure)
    queued = lane.append(entry(2), Member())
    lease.end()
    if paused:
        assert await reason_of(under_way) == "lease"
    assert await reason_of(queued) == "lease"
    if paused:
        own_nats.resume()
    await lanes.close()
    assert list(chain(*await messages(bench, lane))) in ([[], [1]] if paused else [[]])
