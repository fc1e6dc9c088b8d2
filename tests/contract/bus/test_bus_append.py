from __future__ import annotations

import asyncio
import itertools

import pytest
from nats_server import NatsServer

from flint_bus import (
    AppendUnknown,
    Bus,
    MessageTooLarge,
    SequenceMismatch,
    StreamFull,
    StreamMissing,
    journal_stream,
)
from flint_bus.subjects import journal_subject
from flint_ops.config import JournalSettings

_generations = itertools.count(1)


@pytest.fixture
async def generation(bus: Bus) -> int:
    number = next(_generations)
    await bus.create_journal(number, JournalSettings())
    return number


RUN = bytes(range(16))


async def test_append_returns_the_streams_sequence(bus: Bus, generation: int) -> None:
    stream, subject = journal_stream(generation), journal_subject(generation, 3, RUN)
    first = await bus.append(subject, b"one", msg_id="a.1", stream=stream, expected_sequence=0)
    second = await bus.append(subject, b"two", msg_id="a.2", stream=stream, expected_sequence=first)
    assert (first, second) == (1, 2)
    last = await bus.last_message(stream, subject)
    assert last is not None
    assert (last.sequence, last.msg_id, last.data) == (2, "a.2", b"two")


async def test_a_repeated_message_id_is_stored_once(bus: Bus, generation: int) -> None:
    stream, subject = journal_stream(generation), journal_subject(generation, 3, RUN)
    first = await bus.append(subject, b"one", msg_id="a.1", stream=stream)
    assert await bus.append(subject, b"one", msg_id="a.1", stream=stream) == first
    state = await bus.stream_state(stream)
    assert state is not None
    assert state.messages == 1


async def test_a_repeat_with_its_old_expectation_is_a_mismatch_and_the_last_message_tells_that_it_is_stored(
    bus: Bus, generation: int
) -> None:
    """The server looks at the expectation before the message id (R9)."""
    stream, subject = journal_stream(generation), journal_subject(generation, 3, RUN)
    first = await bus.append(subject, b"one", msg_id="a.1", stream=stream, expected_sequence=0)
    with pytest.raises(SequenceMismatch):
        await bus.append(subject, b"one", msg_id="a.1", stream=stream, expected_sequence=0)
    last = await bus.last_message(stream, subject)
    assert last is not None
    assert (last.msg_id, last.sequence) == ("a.1", first)


async def test_a_wrong_expected_sequence_is_refused(bus: Bus, generation: int) -> None:
    stream, subject = journal_stream(generation), journal_subject(generation, 3, RUN)
    await bus.append(subject, b"one", msg_id="a.1", stream=stream, expected_sequence=0)
    with pytest.raises(SequenceMismatch) as refused:
        await bus.append(subject, b"two", msg_id="b.1", stream=stream, expected_sequence=0)
    assert refused.value.last == 1


async def test_the_expectation_is_per_subject(bus: Bus, generation: int) -> None:
    stream = journal_stream(generation)
    for group in range(3):
        await bus.append(
            journal_subject(generation, group, RUN), b"x", msg_id=f"g{group}", stream=stream, expected_sequence=0
        )


async def test_a_missing_stream_and_a_foreign_stream_are_told(bus: Bus, generation: int) -> None:
    with pytest.raises(StreamMissing):
        await bus.append("flint.journal.999.0.aa", b"x", msg_id="a", stream=journal_stream(999), expected_sequence=0)
    with pytest.raises(StreamMissing):
        await bus.append(
            journal_subject(generation, 0, RUN), b"x", msg_id="a", stream=journal_stream(999), expected_sequence=0
        )


async def test_a_full_stream_refuses_what_is_new(bus: Bus) -> None:
    number = next(_generations)
    await bus.create_journal(number, JournalSettings(max_bytes=2**20))
    stream = journal_stream(number)
    payload = bytes(300_000)
    with pytest.raises(StreamFull):
        for index in range(10):
            await bus.append(journal_subject(number, 0, RUN), payload, msg_id=f"f.{index}", stream=stream)
    last = await bus.last_message(stream, journal_subject(number, 0, RUN))
    assert last is not None
    assert last.msg_id == "f.2"


async def test_a_message_beyond_the_servers_limit_is_refused_before_it_is_sent(bus: Bus, generation: int) -> None:
    with pytest.raises(MessageTooLarge):
        await bus.append(
            journal_subject(generation, 0, RUN), bytes(bus.max_payload), msg_id="x", stream=journal_stream(generation)
        )
    assert bus.connected.is_set()


async def test_many_appends_are_in_flight_at_once_and_keep_their_order(bus: Bus, generation: int) -> None:
    stream = journal_stream(generation)
    futures = [
        bus.append_now(journal_subject(generation, 0, RUN), b"%d" % n, msg_id=f"p.{n}", stream=stream)
        for n in range(2000)
    ]
    assert await asyncio.gather(*futures) == list(range(1, 2001))


async def test_creating_a_journal_twice_keeps_it_and_takes_new_settings(bus: Bus, generation: int) -> None:
    stream = journal_stream(generation)
    await bus.append(journal_subject(generation, 0, RUN), b"x", msg_id="a", stream=stream)
    await bus.create_journal(generation, JournalSettings())
    await bus.create_journal(generation, JournalSettings(max_bytes=2**24))
    state = await bus.stream_state(stream)
    assert state is not None
    assert state.messages == 1


async def test_purge_is_inclusive(bus: Bus, generation: int) -> None:
    stream = journal_stream(generation)
    for n in range(5):
        await bus.append(journal_subject(generation, 0, RUN), b"x", msg_id=f"a.{n}", stream=stream)
    assert await bus.purge_up_to(stream, 3) == 3
    state = await bus.stream_state(stream)
    assert state is not None
    assert (state.first_sequence, state.last_sequence, state.messages) == (4, 5, 2)
    assert await bus.delete_stream(stream)
    assert not await bus.delete_stream(stream)
    assert await bus.stream_state(stream) is None
    assert await bus.purge_up_to(stream, 3) == 0


async def test_last_message_of_an_empty_subject_is_none_and_of_a_missing_stream_an_error(
    bus: Bus, generation: int
) -> None:
    assert await bus.last_message(journal_stream(generation), journal_subject(generation, 0, RUN)) is None
    with pytest.raises(StreamMissing):
        await bus.last_message(journal_stream(999), journal_subject(999, 0, RUN))


async def test_an_append_that_loses_its_connection_is_unknown_and_repeating_it_is_safe(
    own_nats: NatsServer, own_bus: Bus
) -> None:
    await own_bus.create_journal(1, JournalSettings())
    stream, subject = journal_stream(1), journal_subject(1, 0, RUN)
    first = await own_bus.append(subject, b"one", msg_id="a.1", stream=stream, expected_sequence=0)
    own_nats.pause()
    pending = own_bus.append_now(subject, b"two", msg_id="a.2", stream=stream, expected_sequence=first, timeout_s=30)
    own_nats.kill()
    with pytest.raises(AppendUnknown):
        await pending
    with pytest.raises(AppendUnknown):
        await own_bus.append(subject, b"two", msg_id="a.2", stream=stream, expected_sequence=first, timeout_s=0.2)
    own_nats.start()
    assert (
        await own_bus.append(subject, b"two", msg_id="a.2", stream=stream, expected_sequence=first, timeout_s=60) == 2
    )


async def test_an_append_without_answer_times_out(own_nats: NatsServer, own_bus: Bus) -> None:
    await own_bus.create_journal(1, JournalSettings())
    own_nats.pause()
    try:
        with pytest.raises(AppendUnknown):
            await own_bus.append(journal_subject(1, 0, RUN), b"x", msg_id="a", stream=journal_stream(1), timeout_s=0.3)
    finally:
        own_nats.resume()
