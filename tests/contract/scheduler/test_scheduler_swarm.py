"""Two hundred real stewards on one etcd and one PostgreSQL: every group has one owner, shares are even, moves are few.

What a steward steers in its own process (queue, fold, readers) is left out; ownership itself is all real.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_coord import Change, ChangeKind, Coord, Item, Lease
from flint_ops.config import PostgresSettings
from flint_scheduler import spread
from flint_scheduler.assignment import assign_groups
from flint_scheduler.holdings import Holdings
from flint_scheduler.record import Record
from flint_scheduler.steward import Steward
from flint_store.engine import create_engine
from flint_store.migrate import upgrade
from support.etcd_server import EtcdServer
from support.postgres import Server, postgres_server
from support.stack import eventually

GROUPS = 64
MANY = 200
FEW = 30
AT_ONCE = 40
WAIT_S = 120.0
LEASE_S = 60  # what dies here is declared dead: nothing depends on how fast this machine renews


class Still:
    """A room that has nothing to do; what is awaited of it is done at once."""

    def __getattr__(self, name: str) -> Any:
        if name in ("barrier", "drain", "listen", "unlisten", "unlisten_all", "establish"):
            return self._awaited
        return lambda *_, **__: None

    async def _awaited(self, *_: Any, **__: Any) -> None:
        return None


class SharedCoord(Coord):
    """One connection for many: what etcd tells of a prefix is read once and told to each of them, in its order."""

    def __init__(self, connection: Any, cluster: str) -> None:
        super().__init__(connection, cluster)
        self._items: dict[str, dict[str, Item]] = {}
        self._readers: dict[str, list[asyncio.Queue[Change]]] = {}
        self._told: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        """As `Coord.watch`."""
        if prefix not in self._readers:
            self._readers[prefix], self._told[prefix] = [], asyncio.Event()
            self._tasks.append(asyncio.create_task(self._follow(prefix)))
        await self._told[prefix].wait()
        queue: asyncio.Queue[Change] = asyncio.Queue(100_000)
        queue.put_nowait(Change(ChangeKind.SNAPSHOT, items=tuple(self._items[prefix].values())))
        self._readers[prefix].append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._readers[prefix].remove(queue)

    async def _follow(self, prefix: str) -> None:
        async for change in super().watch(prefix):
            if change.kind is ChangeKind.SNAPSHOT:
                self._items[prefix] = {item.key: item for item in change.items}
            elif change.kind is ChangeKind.PUT:
                item = Item(change.key, change.value, change.lease_id, change.create_revision, change.revision)
                self._items[prefix][change.key] = item
            else:
                self._items[prefix].pop(change.key, None)
            for queue in self._readers[prefix]:
                queue.put_nowait(change)
            self._told[prefix].set()

    async def close(self) -> None:
        """As `Coord.close`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().close()


class Member:
    """One scheduler, as far as it owns."""

    def __init__(self, name: str, coord: Coord, record: Record) -> None:
        still: Any = Still()
        self.name = name
        self.coord = coord
        self.holdings = Holdings(GROUPS)
        self.steward = Steward(
            scheduler_id=name,
            address=f"{name}:1",
            lease_ttl_s=LEASE_S,
            coord=coord,
            record=record,
            bus=still,
            holdings=self.holdings,
            runs=still,
            acceptor=still,
            dispatcher=still,
            folder=still,
            attention=still,
            recovery=still,
            readers=still,
        )
        self.task = asyncio.create_task(self.steward.run(), name=name)

    async def leave(self) -> None:
        """As on SIGTERM."""
        await self.steward.stop()
        await self.task

    async def die(self) -> None:
        """As by kill -9, when etcd has noticed: nothing is said to anybody, the session's row stays as it is."""
        leases: list[Lease] = []

        async def nothing(lease: Lease | None, reason: str) -> None:
            if lease is not None:
                leases.append(lease)

        self.steward._step_down = nothing  # type: ignore[method-assign]
        self.task.cancel()
        await asyncio.wait([self.task])
        for lease in leases:
            await self.coord.revoke(lease.id)


class Swarm:
    """All of them."""

    def __init__(self, coord: Coord, record: Record, engine: AsyncEngine) -> None:
        self._coord = coord
        self._record = record
        self._engine = engine
        self.members: dict[str, Member] = {}
        self.joined = 0

    async def join(self, count: int) -> None:
        """So many more, some at a time: here all of them share a few connections to PostgreSQL."""
        while count > 0:
            come = min(count, AT_ONCE)
            for _ in range(come):
                self.joined += 1
                name = f"scheduler-{self.joined}"
                self.members[name] = Member(name, self._coord, self._record)
            await eventually(lambda: all(m.steward.owning.is_set() for m in self.members.values()), WAIT_S)
            count -= come
        await self.even()

    async def owners(self) -> dict[int, str]:
        """Who owns what, as PostgreSQL has it."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(
                text(
                    "SELECT group_id, scheduler_id FROM shard_group JOIN owner_session USING (session_id)"
                    " WHERE ended_at IS NULL"
                )
            )
            return {row.group_id: row.scheduler_id for row in rows}

    async def terms(self) -> int:
        """Terms in all: each move raises one."""
        async with self._engine.connect() as connection:
            return int((await connection.execute(text("SELECT sum(term) FROM shard_group"))).scalar_one())

    async def even(self) -> dict[int, str]:
        """Wait until all groups are owned by members, evenly, and nobody wants anything more; check it."""

        async def settled() -> bool:
            if any(member.task.done() for member in self.members.values()):
                raise AssertionError("a steward ended")
            owned = {group: name for name, m in self.members.items() for group in m.holdings.groups}
            held = sum(len(member.holdings.groups) for member in self.members.values())
            loads = Counter(dict.fromkeys(self.members, 0))
            loads.update(owned.values())
            return (
                held == len(owned) == GROUPS
                and all(member.steward.owning.is_set() for member in self.members.values())
                and max(loads.values()) - min(loads.values()) <= 1
                and await self.owners() == owned
            )

        await eventually(settled, WAIT_S)
        return await self.owners()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as started:
        yield started


@pytest.fixture
async def swarm(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Swarm]:
    @lru_cache(maxsize=4096)
    def known(members: frozenset[str], groups: int, owners: tuple[tuple[int, str], ...]) -> dict[int, str]:
        return assign_groups(members, groups, dict(owners))

    def shared(members: Any, groups: int, owners: Mapping[int, str]) -> dict[int, str]:
        """The same function; what one of them has reckoned the others need not, as they are all in this process."""
        return known(frozenset(members), groups, tuple(sorted(owners.items())))

    monkeypatch.setattr(spread, "assign_groups", shared)
    etcd = EtcdServer(tmp_path / "etcd")
    etcd.start()
    dsn = server.create_database()
    await asyncio.to_thread(upgrade, dsn, GROUPS)
    settings = PostgresSettings(dsn=SecretStr(dsn))
    record = Record(
        create_engine(settings, "lane", pool_size=2), create_engine(settings, "reading", pool_size=40), 60.0
    )
    engine = create_engine(settings, "reading", pool_size=2)
    coord = await SharedCoord.connect(etcd.settings(), cluster="swarm")
    made = Swarm(coord, record, engine)
    try:
        yield made
    finally:
        for member in made.members.values():
            member.task.cancel()
        await asyncio.gather(*(member.task for member in made.members.values()), return_exceptions=True)
        await coord.close()
        await record.close()
        await engine.dispose()
        etcd.kill()


async def test_hundreds_of_schedulers_share_the_groups(swarm: Swarm) -> None:
    await swarm.join(FEW)
    before = await swarm.even()

    # One more: it gets its share, and nothing else moves.
    terms = await swarm.terms()
    await swarm.join(1)
    after = await swarm.even()
    moved = {group for group in before if before[group] != after[group]}
    assert {after[group] for group in moved} == {f"scheduler-{swarm.joined}"}
    assert len(moved) == await swarm.terms() - terms <= GROUPS // (FEW + 1) + 1

    # One leaves in order, one dies: what they had moves, and nothing else.
    for end in (Member.leave, Member.die):
        before, terms = await swarm.even(), await swarm.terms()
        name = before[7]
        await end(swarm.members.pop(name))
        after = await swarm.even()
        lost = {group for group in before if before[group] == name}
        assert {group for group in before if before[group] != after[group]} == lost
        assert await swarm.terms() - terms == len(lost)

    # More schedulers than groups: one each, the others stand by.
    terms = await swarm.terms()
    await swarm.join(MANY - len(swarm.members))
    before = await swarm.even()
    assert set(Counter(before.values()).values()) == {1}
    idle = [member for member in swarm.members.values() if not member.holdings.groups]
    assert len(idle) == MANY - GROUPS
    assert await swarm.terms() - terms <= 2 * GROUPS, "groups were moved about"

    # Another one, and an idle one that goes: nobody else notices.
    terms = await swarm.terms()
    await swarm.join(1)
    await swarm.members.pop(idle[0].name).leave()
    assert await swarm.even() == before and await swarm.terms() == terms

    # Owners die and leave at the same time: the idle ones take over what they had, one group each.
    gone = sorted(set(before.values()), key=lambda name: (len(name), name))[:20]
    await asyncio.gather(
        *(
            swarm.members.pop(name).leave() if number % 2 else swarm.members.pop(name).die()
            for number, name in enumerate(gone)
        )
    )
    after = await swarm.even()
    assert {group for group in before if before[group] != after[group]} == {
        group for group, name in before.items() if name in gone
    }
    assert await swarm.terms() - terms <= 2 * len(gone)
