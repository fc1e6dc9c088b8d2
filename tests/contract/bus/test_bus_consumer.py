from __future__ import annotations

import asyncio

import pytest
from eventually import eventually
from nats_server import NatsServer

from flint_bus import Bus, StoredMessage, StreamLost, journal_stream
from flint_bus.consumer import Consumer
from flint_bus.subjects import journal_filter, journal_subject
from flint_ops.config import JournalSettings

RUN = bytes(range(16))
STREAM = journal_stream(1)


async def fill(bus: Bus, begin: int, count: int, group: int = 0, size: int = 0) -> None:
    data = bytes(size)
    await asyncio.gather(
        *(
            bus.append_now(
                journal_subject(1, group, RUN), b"%d " % n + data, msg_id=f"{group}.{n}", stream=STREAM, timeout_s=60
            )
            for n in range(begin, begin + count)
        )
    )


async def take(consumer: Consumer, count: int) -> list[StoredMessage]:
    messages: list[StoredMessage] = []
    async with asyncio.timeout(60):
        while len(messages) < count:
            messages += await consumer.next_batch()
    return messages


@pytest.fixture(autouse=True)
async def journal(own_bus: Bus) -> None:
    await own_bus.create_journal(1, JournalSettings())


async def test_it_reads_what_is_there_then_follows(own_bus: Bus) -> None:
    await fill(own_bus, 1, 100)
    consumer = own_bus.consume(STREAM, journal_filter(1, 0), 1)
    messages = await take(consumer, 100)
    assert [m.sequence for m in messages] == list(range(1, 101))
    assert messages[0].msg_id == "0.1"
    assert messages[-1].pending == 0
    await fill(own_bus, 101, 3)
    assert [m.data for m in await take(consumer, 3)] == [b"101 ", b"102 ", b"103 "]
    await consumer.close()


async def test_it_begins_where_it_is_told_and_keeps_to_its_filter(own_bus: Bus) -> None:
    await fill(own_bus, 1, 5, group=0)
    await fill(own_bus, 1, 5, group=1)
    consumer = own_bus.consume(STREAM, journal_filter(1, 1), 8)
    assert [m.sequence for m in await take(consumer, 3)] == [8, 9, 10]
    await consumer.close()


async def test_what_is_taken_ahead_does_not_reach_the_reader_and_all_is_shown_once_in_order(own_bus: Bus) -> None:
    await fill(own_bus, 1, 10)
    shown: list[int] = []

    def third(message: StoredMessage) -> bool:
        shown.append(message.sequence)
        return message.sequence % 3 == 0

    consumer = own_bus.consume(STREAM, journal_filter(1, 0), 1, ahead=third)
    await eventually(lambda: consumer.received == 10)  # nobody has read anything
    assert shown == list(range(1, 11))
    assert consumer.waiting == 7
    assert [m.sequence for m in await take(consumer, 7)] == [1, 2, 4, 5, 7, 8, 10]
    await fill(own_bus, 11, 4)
    assert [m.sequence for m in await take(consumer, 3)] == [11, 13, 14]
    assert shown == list(range(1, 15)), "none is shown again when the reader takes it"
    await consumer.close()


async def test_a_large_backlog_flows_under_flow_control(own_bus: Bus) -> None:
    await fill(own_bus, 0, 1500, size=60_000)
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    await eventually(lambda: consumer.waiting > 0)
    messages = await take(consumer, 1500)
    assert [m.sequence for m in messages] == list(range(1, 1501))
    assert consumer.restarts == 0
    await consumer.close()


async def test_a_server_restart_repeats_and_loses_nothing(own_bus: Bus, own_nats: NatsServer) -> None:
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    await fill(own_bus, 1, 10)
    assert len(await take(consumer, 10)) == 10
    own_nats.kill()
    await eventually(lambda: not own_bus.connected.is_set())
    own_nats.start()
    await eventually(own_bus.connected.is_set)
    await fill(own_bus, 11, 10)
    assert [m.sequence for m in await take(consumer, 10)] == list(range(11, 21))
    await consumer.close()


async def test_a_consumer_deleted_on_the_server_is_made_again(own_bus: Bus) -> None:
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    await fill(own_bus, 1, 3)
    await take(consumer, 3)
    answer = await own_bus.request(f"$JS.API.CONSUMER.DELETE.{STREAM}.{consumer._name}", b"", 30)
    assert b'"success":true' in answer
    await fill(own_bus, 4, 3)
    # The server does not tell a push consumer's subscriber that it is gone: silence does.
    consumer._heard_at -= 60
    consumer._ask_restart("test")
    assert [m.sequence for m in await take(consumer, 3)] == [4, 5, 6]
    await consumer.close()


async def test_a_gap_is_noticed_and_filled(own_bus: Bus) -> None:
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    await fill(own_bus, 1, 3)
    await take(consumer, 3)
    consumer._consumer_sequence -= 1  # as if the last delivery had not come
    await fill(own_bus, 4, 3)
    assert [m.sequence for m in await take(consumer, 3)] == [4, 5, 6]
    assert consumer.restarts == 1
    await consumer.close()


async def test_a_missing_stream_is_told(own_bus: Bus) -> None:
    told: list[int] = []
    consumer = own_bus.consume("FLINT_JOURNAL_9", "flint.journal.9.>", 1, lambda: told.append(1))
    with pytest.raises(StreamLost):
        await consumer.next_batch()
    assert told == [1]
    await consumer.close()


async def test_a_stream_that_went_back_is_told_after_what_came_before(own_bus: Bus) -> None:
    await fill(own_bus, 1, 3)
    consumer = own_bus.consume(STREAM, journal_filter(1), 10)
    with pytest.raises(StreamLost):
        await consumer.next_batch()
    await consumer.close()


async def test_a_wiped_store_is_told(own_bus: Bus, own_nats: NatsServer) -> None:
    await fill(own_bus, 1, 3)
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    await eventually(lambda: consumer.waiting == 3)
    own_nats.kill()
    own_nats.wipe()
    own_nats.start()
    await eventually(lambda: not consumer.live.is_set())
    async with asyncio.timeout(60):
        assert len(await consumer.next_batch()) == 3
        with pytest.raises(StreamLost):
            await consumer.next_batch()
    await consumer.close()


async def test_a_stream_made_anew_is_told_even_when_it_is_ahead(own_bus: Bus) -> None:
    await fill(own_bus, 1, 3)
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    await take(consumer, 3)
    await own_bus.delete_stream(STREAM)
    await own_bus.create_journal(1, JournalSettings())
    await fill(own_bus, 1, 10)
    consumer._ask_restart("test")
    async with asyncio.timeout(60):
        with pytest.raises(StreamLost):
            await consumer.next_batch()
    await consumer.close()


async def test_closing_wakes_the_reader(own_bus: Bus) -> None:
    consumer = own_bus.consume(STREAM, journal_filter(1), 1)
    reader = asyncio.create_task(consumer.next_batch())
    await eventually(lambda: consumer._reader is not None)
    await consumer.close()
    with pytest.raises(StreamLost):
        await reader
