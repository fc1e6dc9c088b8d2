"""Awaits of a leg: the difference between what the machine has open and what the record says."""

from __future__ import annotations

from flint_core.effects import Await, AwaitKind, CancelEffect, Effect
from flint_worker.effects import Effects


def await_of(effect_id: int, size: int = 1) -> Await:
    return Await(effect_id, AwaitKind.RUN, "/do/0/a", "a", "", 1, {"input": "x" * size})


def noted(effects: Effects, *news: Effect) -> None:
    effects.note(news, set())


def told(effects: Effects, most: int = 100, most_bytes: int = 10_000) -> list[int]:
    return [effect.effect_id for effect, _ in effects.take_opened(most, most_bytes)]


async def test_what_the_record_knows_is_not_told_again() -> None:
    effects = Effects(["1"])
    noted(effects, await_of(1), await_of(2))
    effects.compare()
    assert (told(effects), effects.closed, sorted(effects.awaits)) == ([2], [], [1, 2])
    assert told(effects) == []


async def test_what_the_record_has_and_the_machine_has_not_is_closed() -> None:
    effects = Effects(["1", "7"])
    noted(effects, await_of(1))
    effects.compare()
    assert effects.closed == ["7"]


async def test_opened_and_closed_before_it_was_told_is_never_told() -> None:
    effects = Effects()
    noted(effects, await_of(1), await_of(2), CancelEffect(1))
    assert (told(effects), effects.closed, effects.opened_bytes) == ([2], [], 0)
    noted(effects, CancelEffect(2), CancelEffect(2))
    assert effects.closed == ["2"]


async def test_requests_are_told_in_parts() -> None:
    effects = Effects()
    noted(effects, *(await_of(n, 3_000) for n in range(1, 6)))
    assert [told(effects, 2), told(effects, 9, 3_500), told(effects, 9, 10), told(effects), told(effects)] == [
        [1, 2],
        [3],
        [4],
        [5],
        [],
    ]
