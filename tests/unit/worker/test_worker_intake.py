"""What the intake does with jobs as they arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

from flint_bus import StoredMessage
from flint_bus.pace import Pace
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import LEVELS, URGENT
from flint_worker.intake import Intake

NORMAL = 5


class Table:
    def __init__(self) -> None:
        self.offered: list[bytes] = []

    def offer(self, job: dispatch_pb2.Job) -> bool:
        self.offered.append(job.leg_nonce)
        return True


def message(nonce: bytes, level: int) -> StoredMessage:
    return StoredMessage("jobs", 1, dispatch_pb2.Job(leg_nonce=nonce, level=level).SerializeToString(), None)


async def test_urgent_jobs_are_offered_as_they_arrive_and_the_others_in_order_of_level() -> None:
    pace, table = Pace(), Table()
    intake = Intake(cast(Any, SimpleNamespace(pace=pace)), "jobs", cast(Any, table))
    intake._offering = True  # what came before waits for its turn
    arrived = [
        message(b"first", NORMAL),
        message(b"urgent", URGENT),
        StoredMessage("jobs", 1, b"\xff\xff", None),
        message(b"second", NORMAL),
        message(b"raised", 1),
        message(b"urgent too", URGENT),
        message(b"unknown level", 99),
    ]
    assert not pace.hurried
    kept = [each for each in arrived if not intake._arrives(each)]
    assert table.offered == [b"urgent", b"urgent too"], "before anybody read anything"
    assert pace.hurried
    assert len(kept) == 4, "the one that cannot be read is none"
    jobs: list[deque[dispatch_pb2.Job]] = [deque() for _ in range(LEVELS)]
    assert intake._sort(kept, jobs) == 4
    assert [job.leg_nonce for level in jobs for job in level] == [b"raised", b"first", b"second", b"unknown level"]


async def test_urgent_jobs_of_a_batch_are_offered_as_it_arrives_and_its_others_wait_with_the_rest() -> None:
    pace, table = Pace(), Table()
    intake = Intake(cast(Any, SimpleNamespace(pace=pace)), "jobs", cast(Any, table))

    def batch(*levels: int) -> StoredMessage:
        jobs = [dispatch_pb2.Job(leg_nonce=b"%d" % n, level=level) for n, level in enumerate(levels)]
        data = dispatch_pb2.JobBatch(jobs=[job.SerializeToString() for job in jobs]).SerializeToString()
        return StoredMessage("jobs", 1, data, None)

    intake._offering = True
    assert intake._arrives(batch(URGENT, URGENT)), "nothing of it is left for the reader"
    assert not intake._arrives(batch(URGENT, NORMAL, 1))
    assert not intake._arrives(message(b"alone", NORMAL))
    assert table.offered == [b"0", b"1", b"0"]
    jobs: list[deque[dispatch_pb2.Job]] = [deque() for _ in range(LEVELS)]
    assert intake._sort(range(2), jobs) == 3
    assert [job.leg_nonce for level in jobs for job in level] == [b"2", b"1", b"alone"]


async def test_a_few_jobs_are_offered_as_they_arrive_while_no_others_wait() -> None:
    table = Table()
    intake = Intake(cast(Any, SimpleNamespace(pace=Pace())), "jobs", cast(Any, table))
    assert [intake._arrives(message(b"%d" % n, NORMAL)) for n in range(4)] == [True] * 4
    assert table.offered == [b"0", b"1", b"2", b"3"]
    assert not intake._arrives(message(b"one too many", NORMAL)), "of one turn of the event loop"
    await asyncio.sleep(0)
    assert not intake._arrives(message(b"behind it", NORMAL)), "it waits for those before it"
    assert len(table.offered) == 4
    jobs: list[deque[dispatch_pb2.Job]] = [deque() for _ in range(LEVELS)]
    assert intake._sort(range(2), jobs) == 2
    assert intake._arrives(message(b"alone", NORMAL)), "in another turn, with nobody before it"
    assert table.offered[4:] == [b"alone"]
