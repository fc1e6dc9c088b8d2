"""Purging a real stream by what a real PostgreSQL has as folded: the settled leave, nothing else does (R8)."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, journal_stream
from flint_bus.subjects import journal_filter, journal_subject
from flint_ops.config import JournalSettings, NatsSettings, PostgresSettings
from flint_scheduler.holdings import Holdings
from flint_scheduler.purging import Purger
from flint_scheduler.record import Record
from flint_store.engine import create_engine
from flint_store.fence import OwnerSession
from flint_store.ownership import begin_session, save_watermarks, take_groups
from support.nats_server import NatsServer
from support.record import GROUPS

KEEP_S = 10
_generations = itertools.count(1)


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


class Journal:
    """A generation's stream, what is folded of it, and the purgers of schedulers that come one after the other."""

    def __init__(self, bus: Bus, record: Record, engine: AsyncEngine, generation: int, max_bytes: int) -> None:
        self.bus = bus
        self.record = record
        self.engine = engine
        self.generation = generation
        self.stream = journal_stream(generation)
        self.settings = JournalSettings(keep_folded_s=KEEP_S, max_bytes=max_bytes)
        self.session: OwnerSession
        self.stored: dict[int, list[int]] = defaultdict(list)  # sequences by group
        self.folded: Counter[int] = Counter()
        self._messages = itertools.count(1)

    async def takeover(self) -> Purger:
        """Another scheduler takes all groups; answers its purger."""
        self.session = await begin_session(self.engine, f"scheduler-{next(self._messages)}", "")
        await take_groups(self.engine, self.session, range(GROUPS))
        holdings = Holdings(GROUPS)
        holdings.generation = self.generation
        return Purger(self.bus, self.record, holdings, self.settings)

    async def append(self, group: int, count: int = 1, size: int = 10) -> None:
        for _ in range(count):
            number = next(self._messages)
            subject = journal_subject(self.generation, group, number.to_bytes(16, "big"))
            self.stored[group].append(
                await self.bus.append(subject, bytes(size), msg_id=f"{self.generation}.{number}", stream=self.stream)
            )

    async def fold(self, group: int, count: int | None = None) -> None:
        """Fold so many of what a group has, or all; and let PostgreSQL know."""
        waiting = [s for s in self.stored[group] if s > self.folded[group]][:count]
        if waiting:
            self.folded[group] = waiting[-1]
            async with self.engine.connect() as connection:
                autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
                await save_watermarks(autocommit, self.session, {group: waiting[-1]}, self.generation)

    async def left(self, group: int) -> list[int]:
        """The sequences that a new owner who reads from the beginning finds of a group."""
        last = await self.bus.last_message(self.stream, journal_filter(self.generation, group))
        found: list[int] = []
        if last is not None:
            consumer = self.bus.consume(self.stream, journal_filter(self.generation, group))
            try:
                while not found or found[-1] < last.sequence:
                    found += [message.sequence for message in await consumer.next_batch()]
            finally:
                await consumer.close()
        return found

    def unfolded(self, group: int) -> list[int]:
        return [s for s in self.stored[group] if s > self.folded[group]]


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    connected = await Bus.connect(NatsSettings(urls=[nats.url]), "test")
    yield connected
    await connected.close()


@pytest.fixture
async def record(dsn: str) -> AsyncIterator[Record]:
    postgres = PostgresSettings(dsn=SecretStr(dsn))
    made = Record(create_engine(postgres, "lane"), create_engine(postgres, "reading"), 60.0)
    yield made
    await made.close()


async def open_journal(bus: Bus, record: Record, engine: AsyncEngine, max_bytes: int = 2**30) -> Journal:
    journal = Journal(bus, record, engine, next(_generations), max_bytes)
    await bus.create_journal(journal.generation, journal.settings)
    return journal


async def test_what_is_settled_leaves_and_what_is_not_folded_stays(
    bus: Bus, record: Record, engine: AsyncEngine
) -> None:
    journal = await open_journal(bus, record, engine)
    purger = await journal.takeover()
    for group in range(3):
        await journal.append(group, 10)
        await journal.fold(group)
    await journal.append(1, 5)
    await journal.append(2, 5)
    await journal.fold(2, 2)
    assert await purger.turn(100) == 0
    assert await purger.turn(100 + KEEP_S - 1) == 0, "an entry was removed before its time"
    # Group 3 and the others never had an entry, group 0 has none any more: they do not hold the rest back.
    assert await purger.turn(100 + KEEP_S) == 30
    assert [await journal.left(group) for group in range(3)] == [[], journal.unfolded(1), journal.stored[2][10:]]
    await journal.fold(1)
    await purger.turn(200)
    assert await purger.turn(200 + KEEP_S) == 7, "what group 1 had not folded held it back"
    assert await journal.left(2) == journal.unfolded(2)
    await journal.fold(2)
    await purger.turn(300)
    assert await purger.turn(300 + KEEP_S) == 3
    state = await bus.stream_state(journal.stream)
    assert state is not None
    assert (state.messages, state.last_sequence) == (0, 40)


async def test_a_takeover_after_a_purge_reads_all_that_is_not_folded(
    bus: Bus, record: Record, engine: AsyncEngine
) -> None:
    """And the deposed owner, who does not know of it, removes what it may and no more."""
    journal = await open_journal(bus, record, engine)
    deposed = await journal.takeover()
    for group in range(4):
        await journal.append(group, 4)
        await journal.fold(group, group + 1)
    await deposed.turn(100)
    assert await deposed.turn(100 + KEEP_S) == 1
    heir = await journal.takeover()
    for group in range(4):
        assert set(await journal.left(group)) >= set(journal.unfolded(group))
    await heir.turn(200)
    await journal.append(0, 4)
    await journal.fold(0, 5)
    await deposed.turn(200)
    await deposed.turn(200 + KEEP_S)
    await heir.turn(200 + KEEP_S)
    for group in range(4):
        assert set(await journal.left(group)) >= set(journal.unfolded(group))
    for group in range(4):
        await journal.fold(group)
    for purger in (deposed, heir):
        await purger.turn(300)
        await purger.turn(300 + KEEP_S)
    assert [await journal.left(group) for group in range(4)] == [[], [], [], []]


async def test_another_generation_begins_from_nothing(bus: Bus, record: Record, engine: AsyncEngine) -> None:
    """What was folded of the former one says nothing of its numbers."""
    journal = await open_journal(bus, record, engine)
    await journal.takeover()
    await journal.append(0, 20)
    await journal.fold(0)
    newer = await open_journal(bus, record, engine)
    purger = await newer.takeover()
    await newer.append(0, 5)
    await newer.append(1, 5)
    for moment in (100, 100 + KEEP_S, 100 + 2 * KEEP_S):
        assert await purger.turn(moment) == 0
    await newer.fold(0)
    await newer.fold(1)
    await purger.turn(200)
    assert await purger.turn(200 + KEEP_S) == 10
    assert len(await journal.left(0)) == 20, "the former stream is not this one"


async def test_one_group_that_stands_still_does_not_fill_the_stream(
    bus: Bus, record: Record, engine: AsyncEngine
) -> None:
    journal = await open_journal(bus, record, engine, max_bytes=2**20)
    purger = await journal.takeover()
    await journal.append(0, 3)
    await journal.append(1, 60, size=10_000)
    await journal.append(2, 3)
    await journal.fold(1)
    await journal.fold(0, 1)
    await purger.turn(100)
    assert await purger.turn(100 + KEEP_S) == 1, "a prefix is removed first"
    assert await purger.turn(200) == 60, "the stream is more than half full"
    assert [await journal.left(group) for group in range(3)] == [journal.unfolded(0), [], journal.stored[2]]


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_that_is_not_folded_is_ever_removed(
    bus: Bus, record: Record, engine: AsyncEngine, seed: int
) -> None:
    chance = random.Random(seed)
    journal = await open_journal(bus, record, engine, max_bytes=2**20)
    purgers = [await journal.takeover()]
    moment = 0.0
    for _ in range(60):
        for _ in range(chance.randrange(4)):
            await journal.append(chance.choice([0, 0, 1, 2, 3]), chance.randrange(4), chance.choice([10, 20_000]))
        for group in range(4):
            if chance.random() < 0.5:
                await journal.fold(group, chance.choice([1, 3, None]))
        moment += chance.choice([1, KEEP_S / 2, KEEP_S])
        await chance.choice(purgers).turn(moment)
        if chance.random() < 0.1:
            purgers.append(await journal.takeover())
        group = chance.randrange(4)
        left = await journal.left(group)
        assert set(journal.unfolded(group)) <= set(left) <= set(journal.stored[group])
    for group in range(4):
        await journal.fold(group)
    for later in (1, 2, 3):  # what a group had when it was busy, then what it has at rest, then that is old enough
        await purgers[-1].turn(moment + later * KEEP_S)
    assert [await journal.left(group) for group in range(4)] == [[], [], [], []]
