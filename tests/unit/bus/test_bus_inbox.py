"""Answers: each reaches the one who asked; who gave up is passed over."""

from __future__ import annotations

import asyncio

import pytest

from flint_bus.inbox import Inbox

PREFIX = "_INBOX.x."


def told(data: bytes, headers: bytes | None) -> int:
    return int(data)


async def test_answers_reach_those_who_asked() -> None:
    inbox = Inbox(PREFIX, 100)
    asked = [inbox.reply_to(told, 60.0, RuntimeError) for _ in range(5)]
    for number in (3, 0, 4, 1, 2):
        inbox._on_answer(asked[number][0].encode(), b"", b"%d" % number, None)
    assert await asyncio.gather(*(future for _, future in asked)) == list(range(5))
    assert inbox.outstanding == 0
    inbox.close()


async def test_those_who_gave_up_are_passed_over_and_those_who_wait_are_told_of_the_end() -> None:
    inbox = Inbox(PREFIX, 100)
    (gone, gave_up), (_, waits) = (inbox.reply_to(told, 60.0, RuntimeError) for _ in range(2))
    gave_up.cancel()
    inbox._on_answer(gone.encode(), b"", b"0", None)
    assert gave_up.cancelled()
    inbox.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waits
