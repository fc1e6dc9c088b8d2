"""The ready queue: most urgent level first, then order of arrival; a returned leg keeps its place."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.ready import ReadyQueue


def card(level: int = 5) -> RunCard:
    return RunCard(os.urandom(16), "default", "w", "1.0.0", b"", 0, level, 0, b"", Phase.READY)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_level_then_arrival(levels: list[int]) -> None:
    queue = ReadyQueue()
    cards = [card(level) for level in levels]
    for each in cards:
        queue.push(each, 0.0)
    popped = [queue.pop() for _ in cards]
    assert popped == sorted(cards, key=lambda c: (c.level, c.arrival))
    assert queue.pop() is None
    assert queue.by_level == [0] * 10


def test_a_returned_card_keeps_its_place() -> None:
    queue = ReadyQueue()
    first, second = card(), card()
    queue.push(first, 0.0)
    queue.push(second, 0.0)
    assert queue.pop() is first
    queue.push(first, 1.0)
    assert queue.pop() is first


def test_a_cancelled_card_is_skipped() -> None:
    queue = ReadyQueue()
    first, second = card(), card()
    queue.push(first, 0.0)
    queue.push(second, 0.0)
    first.phase = Phase.CLOSING
    assert queue.pop() is second
    assert queue.pop() is None
