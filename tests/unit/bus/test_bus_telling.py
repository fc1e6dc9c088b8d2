"""Telling many: so many in each turn of the event loop, in order; nobody is forgotten."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

from flint_bus.pace import Pace
from flint_bus.telling import _AT_ONCE, _AT_ONCE_IN_A_HURRY, Telling


async def test_a_few_are_told_in_each_turn_and_in_order() -> None:
    count = 3 * _AT_ONCE + 5
    telling, told = Telling(Pace()), list[int]()
    for number in range(count):
        telling.tell(partial(told.append, number))
    seen = [len(told)]
    assert seen == [_AT_ONCE]
    while len(told) < count:
        await asyncio.sleep(0)
        seen.append(len(told))
    assert told == list(range(count))
    assert max(later - before for before, later in itertools.pairwise(seen)) <= _AT_ONCE


async def test_in_a_hurry_turns_are_shorter_and_those_that_cost_much_shorter_still() -> None:
    spent = iter(range(10_000))  # each turn costs a second
    pace = Pace(clock=lambda: 0.0, spent=lambda: float(next(spent)))
    pace.hurry()
    telling, told = Telling(pace), list[int]()
    for number in range(3 * _AT_ONCE_IN_A_HURRY):
        telling.tell(partial(told.append, number))
    seen = [len(told)]
    assert seen == [_AT_ONCE_IN_A_HURRY]
    while len(told) < 3 * _AT_ONCE_IN_A_HURRY:
        await asyncio.sleep(0)
        seen.append(len(told))
    assert told == list(range(3 * _AT_ONCE_IN_A_HURRY))
    steps = [later - before for before, later in itertools.pairwise(seen)]
    assert max(steps) <= _AT_ONCE_IN_A_HURRY // 2
    assert set(steps[-4:]) == {2}, "never none"


async def test_closing_tells_those_who_are_left() -> None:
    telling, told = Telling(Pace()), list[int]()
    for number in range(2 * _AT_ONCE):
        telling.tell(partial(told.append, number))
    telling.close()
    assert told == list(range(2 * _AT_ONCE))
