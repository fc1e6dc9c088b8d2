"""Watches through cuts, compactions and replaced stores; elections. The cuts are made by a TCP proxy of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from flint_coord import Change, ChangeKind, Coord, Election, Lease
from flint_ops.config import EtcdSettings

Eventually = Callable[..., Awaitable[None]]


class Proxy:
    """Forwards TCP to a port; `cut` ends all connections and refuses new ones until `mend`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self.own_port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.own_port)
        self.own_port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for pump in list(self._pumps):
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            finally:
                sink.close()


@pytest.fixture
async def proxy(etcd: Any) -> AsyncIterator[Proxy]:
    made = Proxy(etcd.port)
    await made.mend()
    yield made
    await made.cut()


@pytest.fixture
async def far(proxy: Proxy, cluster: str) -> AsyncIterator[Coord]:
    """A Coord whose connection the test can cut."""
    made = await Coord.connect(EtcdSettings(endpoints=[f"127.0.0.1:{proxy.own_port}"]), cluster=cluster)
    yield made
    await made.close()


async def after(changes: AsyncGenerator[Change, None]) -> Change:
    async with asyncio.timeout(60):
        return await anext(changes)


async def test_a_watch_begins_with_what_is_there_and_goes_on_with_changes(coord: Coord) -> None:
    lease = await coord.grant(60)
    await coord.put("workers/a", b"1", lease.id)
    await coord.put("groups/1", b"elsewhere")
    async with contextlib.aclosing(coord.watch("workers/")) as changes:
        first = await after(changes)
        assert (first.kind, first.contiguous) == (ChangeKind.SNAPSHOT, True)
        assert [(item.key, item.value, item.lease_id) for item in first.items] == [("workers/a", b"1", lease.id)]
        await coord.put("groups/1", b"elsewhere still")
        await coord.put("workers/b", b"2")
        change = await after(changes)
        assert (change.kind, change.key, change.value) == (ChangeKind.PUT, "workers/b", b"2")
        await lease.revoke()
        change = await after(changes)
        assert (change.kind, change.key) == (ChangeKind.DELETE, "workers/a")


async def test_a_cut_connection_is_resumed_without_loss_and_without_repeat(
    coord: Coord, far: Coord, proxy: Proxy
) -> None:
    async with contextlib.aclosing(far.watch("k/")) as changes:
        assert (await after(changes)).kind is ChangeKind.SNAPSHOT
        await coord.put("k/1", "a")
        assert (await after(changes)).key == "k/1"
        await proxy.cut()
        await coord.put("k/2", "b")
        await coord.delete("k/1")
        await coord.put("k/2", "c")
        await proxy.mend()
        seen = [await after(changes) for _ in range(3)]
        assert [(each.kind, each.key, each.value) for each in seen] == [
            (ChangeKind.PUT, "k/2", b"b"),
            (ChangeKind.DELETE, "k/1", b""),
            (ChangeKind.PUT, "k/2", b"c"),
        ]


async def test_a_restart_of_etcd_is_contiguous(coord: Coord, etcd: Any) -> None:
    await coord.put("k/1", "a")
    async with contextlib.aclosing(coord.watch("k/")) as changes:
        assert (await after(changes)).kind is ChangeKind.SNAPSHOT
        waiting = asyncio.create_task(after(changes))
        etcd.kill()
        etcd.start()
        await coord.put("k/2", "b", timeout_s=60)
        assert (await waiting).key == "k/2"


async def test_a_compaction_during_a_cut_is_told_by_a_new_snapshot(
    coord: Coord, far: Coord, proxy: Proxy, etcd: Any
) -> None:
    async with contextlib.aclosing(far.watch("k/")) as changes:
        assert (await after(changes)).kind is ChangeKind.SNAPSHOT
        await coord.put("k/1", "a")
        assert (await after(changes)).key == "k/1"
        await proxy.cut()
        await coord.delete("k/1")
        revision = await coord.put("k/2", "b")
        await asyncio.to_thread(etcd.compact, revision)
        await proxy.mend()
        change = await after(changes)
        assert (change.kind, change.contiguous) == (ChangeKind.SNAPSHOT, False)
        assert [item.key for item in change.items] == ["k/2"]


@pytest.mark.parametrize("ahead", [False, True], ids=["revision-went-back", "revision-is-higher"])
async def test_a_wiped_store_is_told_by_a_new_snapshot(
    coord: Coord, far: Coord, proxy: Proxy, etcd: Any, ahead: bool
) -> None:
    await coord.put("k/1", "a")
    async with contextlib.aclosing(far.watch("k/")) as changes:
        assert [item.key for item in (await after(changes)).items] == ["k/1"]
        await coord.put("k/2", "b")
        assert (await after(changes)).key == "k/2"
        await proxy.cut()
        etcd.wipe()
        etcd.start()
        for number in range(40 if ahead else 1):
            await coord.put("k/new", str(number), timeout_s=60)
        await proxy.mend()
        change = await after(changes)
        assert (change.kind, change.contiguous) == (ChangeKind.SNAPSHOT, False)
        assert [item.key for item in change.items] == ["k/new"]


async def test_a_watch_begun_without_etcd_waits_for_it(etcd: Any, cluster: str) -> None:
    etcd.kill()
    made = await Coord.connect(etcd.settings(), cluster=cluster)
    try:
        async with contextlib.aclosing(made.watch("k/")) as changes:
            waiting = asyncio.create_task(after(changes))
            etcd.start()
            assert (await waiting).items == ()
    finally:
        await made.close()


async def test_a_cancelled_reader_of_a_watch_is_cancelled(coord: Coord) -> None:
    opened = asyncio.Event()

    async def read() -> None:
        async with contextlib.aclosing(coord.watch("k/")) as changes:
            async for _ in changes:
                opened.set()

    task = asyncio.create_task(read())
    async with asyncio.timeout(60):
        await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Candidate:
    """Leads until told otherwise, and remembers it."""

    def __init__(self, coord: Coord, name: str, leaders: list[str]) -> None:
        self.name = name
        self.leading = asyncio.Event()
        self.lease: Lease | None = None
        self._leaders = leaders
        self.election = Election(coord, "registry/leader", name, 10)
        self.task = asyncio.create_task(self.election.run(self._lead))

    async def _lead(self, lease: Lease) -> None:
        self._leaders.append(self.name)
        self.lease = lease
        self.leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.clear()
            self._leaders.remove(self.name)

    async def resign(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_one_candidate_leads_and_a_resignation_is_followed(coord: Coord, eventually: Eventually) -> None:
    leaders: list[str] = []
    candidates = [Candidate(coord, f"registry-{number}", leaders) for number in range(3)]
    await eventually(lambda: len(leaders) == 1)
    for _ in range(2):
        holder = next(each for each in candidates if each.name == leaders[0])
        assert holder.election.leading
        await holder.resign()
        assert not holder.election.leading
        candidates.remove(holder)
        await eventually(lambda: len(leaders) == 1)
        assert leaders[0] != holder.name
        await eventually(lambda: all(each.election.leader == leaders[0] for each in candidates))
    await candidates[0].resign()
    assert leaders == []
    assert await coord.get("registry/leader") is None


async def test_a_leader_whose_lease_ends_stands_down_and_may_lead_again(coord: Coord, eventually: Eventually) -> None:
    leaders: list[str] = []
    candidate = Candidate(coord, "registry-1", leaders)
    await eventually(lambda: candidate.election.leading)
    first = candidate.lease
    assert first is not None
    await coord.revoke(first.id)
    await eventually(lambda: candidate.election.leading and candidate.lease is not first)
    second = candidate.lease
    await coord.delete("registry/leader")
    await eventually(lambda: candidate.election.leading and candidate.lease is not second)
    await candidate.resign()


async def test_after_a_wipe_of_etcd_somebody_leads_again(coord: Coord, etcd: Any, eventually: Eventually) -> None:
    leaders: list[str] = []
    candidates = [Candidate(coord, f"registry-{number}", leaders) for number in range(2)]
    await eventually(lambda: len(leaders) == 1)
    etcd.wipe()
    etcd.start()
    await eventually(lambda: len(leaders) == 1 and candidates[0].election.leader == candidates[1].election.leader != "")

    async def recorded() -> bool:
        item = await coord.get("registry/leader")
        return item is not None and [item.value.decode()] == leaders

    await eventually(recorded)
    for each in candidates:
        await each.resign()


async def test_an_error_of_the_leader_resigns_and_is_raised(coord: Coord) -> None:
    async def lead(_: Lease) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        async with asyncio.timeout(60):
            await Election(coord, "registry/leader", "registry-1", 2).run(lead)
    assert await coord.get("registry/leader") is None
