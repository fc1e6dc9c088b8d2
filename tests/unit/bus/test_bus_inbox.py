"""Answers: who is patient is told a few at a time, in order; nobody is forgotten."""

from __future__ import annotations

import asyncio
import itertools

from flint_bus.inbox import _AT_ONCE, _AT_ONCE_IN_A_HURRY, Inbox
from flint_bus.pace import Pace

PREFIX = "_INBOX.x."


def told(data: bytes, headers: bytes | None) -> int:
    return int(data)


class Asked:
    """An inbox of which so many things were asked."""

    def __init__(self, count: int, *, patient: bool = True, pace: Pace | None = None) -> None:
        self.inbox = Inbox(PREFIX, 100_000, pace)
        self.told: list[int] = []
        self.subjects: list[bytes] = []
        self.futures: list[asyncio.Future[int]] = []
        for _ in range(count):
            self.ask(patient=patient)

    def ask(self, *, patient: bool) -> None:
        subject, future = self.inbox.reply_to(told, 60.0, RuntimeError, patient=patient)
        future.add_done_callback(lambda done: None if done.cancelled() else self.told.append(done.result()))
        self.subjects.append(subject.encode())
        self.futures.append(future)

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.inbox._on_answer(self.subjects[number], b"", b"%d" % number, None)


async def test_patient_ones_are_told_a_few_in_each_turn_and_in_order() -> None:
    count = 3 * _AT_ONCE + 5
    asked = Asked(count)
    asked.answer(*range(count))
    assert sum(future.done() for future in asked.futures) == _AT_ONCE
    assert asked.inbox.outstanding == 0
    seen = [0]
    while len(asked.told) < count:
        await asyncio.sleep(0)
        seen.append(len(asked.told))
    assert asked.told == list(range(count))
    assert max(later - before for before, later in itertools.pairwise(seen)) <= 2 * _AT_ONCE
    asked.inbox.close()


async def test_a_lone_one_and_impatient_ones_are_told_at_once() -> None:
    asked = Asked(1)
    asked.answer(0)
    assert asked.futures[0].done()
    many = Asked(2 * _AT_ONCE)
    many.ask(patient=False)
    many.answer(*range(2 * _AT_ONCE + 1))
    assert many.futures[-1].done()
    assert not many.futures[-2].done()
    asked.inbox.close()
    many.inbox.close()
    assert all(future.done() for future in many.futures), "closing tells what has come"


async def test_in_a_hurry_turns_are_shorter_and_those_that_cost_much_shorter_still() -> None:
    spent = iter(range(10_000))  # each turn costs a second
    pace = Pace(clock=lambda: 0.0, spent=lambda: float(next(spent)))
    pace.hurry()
    asked = Asked(3 * _AT_ONCE_IN_A_HURRY, pace=pace)
    asked.answer(*range(3 * _AT_ONCE_IN_A_HURRY))
    assert sum(future.done() for future in asked.futures) == _AT_ONCE_IN_A_HURRY
    seen = []
    while len(asked.told) < 3 * _AT_ONCE_IN_A_HURRY:
        await asyncio.sleep(0)
        seen.append(len(asked.told))
    assert asked.told == list(range(3 * _AT_ONCE_IN_A_HURRY))
    steps = [later - before for before, later in itertools.pairwise(seen)]
    assert max(steps) <= _AT_ONCE_IN_A_HURRY // 2
    assert set(steps[-4:]) == {2}, "never none"
    asked.inbox.close()


async def test_those_who_gave_up_are_passed_over() -> None:
    asked = Asked(_AT_ONCE + 2)
    asked.answer(*range(_AT_ONCE + 2))
    asked.futures[-2].cancel()
    assert await asked.futures[-1] == _AT_ONCE + 1
    asked.inbox.close()
