"""The definition cache: never stale for longer than it promises, never a query per start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_store.definitions import DefinitionCache
from flint_store.errors import NamespaceNotFound, StoreUnavailable, WorkflowNotFound
from flint_store.workflows import delete_version, put_version
from support.record import add_namespace, add_version, new_version


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(engine: AsyncEngine, clock: Clock) -> DefinitionCache:
    return DefinitionCache(engine, ttl_s=1.0, clock=clock)


@pytest.fixture
def queries(engine: AsyncEngine) -> Iterator[list[str]]:
    """Every statement that the engine sent."""
    sent: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_answers_from_memory(engine: AsyncEngine, cache: DefinitionCache, queries: list[str]) -> None:
    definition = await add_version(engine)
    queries.clear()
    answers = [await cache.resolve("default", "orders") for _ in range(1000)]
    assert len(queries) == 2, queries
    assert {(a.definition_id, a.version, a.definition_hash) for a in answers} == {
        (definition, "1.0.0", new_version().definition_hash)
    }
    assert cache.cached("default", "orders") == answers[0]
    assert cache.cached("default", "orders", "9.9.9") is None


async def test_concurrent_callers_share_a_query(
    engine: AsyncEngine, cache: DefinitionCache, queries: list[str]
) -> None:
    await add_version(engine)
    queries.clear()
    await asyncio.gather(*(cache.resolve("default", "orders") for _ in range(500)))
    assert len(queries) == 2, queries


async def test_one_small_query_a_second_confirms_all_workflows(
    engine: AsyncEngine, cache: DefinitionCache, clock: Clock, queries: list[str]
) -> None:
    for number in range(20):
        await add_version(engine, f"wf-{number}")
    for number in range(20):
        await cache.resolve("default", f"wf-{number}")
    clock.now += 1.1
    queries.clear()
    for number in range(20):
        await cache.resolve("default", f"wf-{number}")
    assert len(queries) == 1, queries


async def test_a_namespace_in_use_is_confirmed_before_anybody_has_to_wait(
    engine: AsyncEngine, cache: DefinitionCache, clock: Clock, queries: list[str]
) -> None:
    await add_version(engine)
    known = await cache.resolve("default", "orders")
    queries.clear()
    for _ in range(5):
        clock.now += 0.6
        for _ in range(100):
            assert cache.cached("default", "orders") == known, "answered at once"
        asked = cache._namespaces["default"].early
        assert asked is not None
        await asked
    assert len(queries) == 5, "one for all, and one at a time"
    await put_version(engine, new_version(version="1.1.0"))
    clock.now += 0.6
    assert cache.cached("default", "orders") == known
    asked = cache._namespaces["default"].early
    assert asked is not None
    await asked
    assert cache.cached("default", "orders") is None, "noticed, sooner than it had to be"
    assert (await cache.resolve("default", "orders")).version == "1.1.0"
    clock.now += 1.1
    assert cache.cached("default", "orders") is None, "never used for longer than it was seen"


async def test_closing_ends_what_was_asked_early(engine: AsyncEngine, cache: DefinitionCache, clock: Clock) -> None:
    await add_version(engine)
    await cache.resolve("default", "orders")
    clock.now += 0.6
    cache.cached("default", "orders")
    asked = cache._namespaces["default"].early
    assert asked is not None
    await cache.close()
    assert asked.done()


async def test_notices_a_version_of_another_replica_after_the_ttl(
    engine: AsyncEngine, cache: DefinitionCache, clock: Clock
) -> None:
    await add_version(engine)
    assert (await cache.resolve("default", "orders")).version == "1.0.0"
    await put_version(engine, new_version(version="1.1.0"))
    clock.now += 0.9
    assert (await cache.resolve("default", "orders")).version == "1.0.0"
    clock.now += 0.2
    assert (await cache.resolve("default", "orders")).version == "1.1.0"


async def test_notices_at_once_when_told(engine: AsyncEngine, cache: DefinitionCache) -> None:
    await add_version(engine)
    await cache.resolve("default", "orders")
    await put_version(engine, new_version(version="1.1.0"))
    cache.invalidate("default", "orders")
    assert cache.cached("default", "orders") is None
    assert (await cache.resolve("default", "orders")).version == "1.1.0"
    await delete_version(engine, "default", "orders", "1.1.0")
    cache.invalidate("default")
    assert (await cache.resolve("default", "orders")).version == "1.0.0"
    with pytest.raises(WorkflowNotFound, match=r"1\.1\.0"):
        await cache.resolve("default", "orders", "1.1.0")


async def waiter(connection: AsyncConnection, other_than: int = 0) -> int:
    """The process id of a backend that waits for a lock, as soon as there is one."""
    query = text("SELECT pid FROM pg_locks WHERE NOT granted AND pid <> :other")
    async with asyncio.timeout(60):
        while True:  # each round is a round trip
            pid = (await connection.execute(query, {"other": other_than})).scalar()
            if pid is not None:
                return int(pid)


async def test_an_invalidation_during_a_read_voids_the_read(
    engine: AsyncEngine, cache: DefinitionCache, queries: list[str]
) -> None:
    """A read that may have seen the record before an apply must not be remembered after the apply's hint."""
    await add_version(engine)
    await cache.resolve("default", "orders")
    async with engine.connect() as blocker:
        await blocker.execute(text("SET idle_in_transaction_session_timeout = 0"))
        await blocker.execute(text("BEGIN"))
        await blocker.execute(text("LOCK TABLE workflow_version IN ACCESS EXCLUSIVE MODE"))
        reading = asyncio.create_task(cache.resolve("default", "orders", "1.0.0"))
        await waiter(blocker)
        cache.invalidate("default")
        await blocker.execute(text("COMMIT"))
    assert (await reading).version == "1.0.0"
    queries.clear()
    await cache.resolve("default", "orders", "1.0.0")
    assert len(queries) == 2, "the voided read was remembered"


async def test_the_epoch_tells_a_commit_that_the_answer_is_old(engine: AsyncEngine, cache: DefinitionCache) -> None:
    await add_version(engine)
    answer = await cache.resolve("default", "orders")

    async def still_true() -> bool:
        async with engine.connect() as connection:
            found = await connection.execute(
                text("SELECT definition_epoch = :epoch FROM namespace WHERE namespace_id = 'default'"),
                {"epoch": answer.epoch},
            )
            return bool(found.scalar_one())

    assert await still_true()
    await put_version(engine, new_version(version="1.1.0"))
    assert not await still_true()


async def test_a_record_restored_to_earlier_is_noticed(
    engine: AsyncEngine, cache: DefinitionCache, clock: Clock
) -> None:
    await add_version(engine)
    await add_version(engine, version="2.0.0")
    assert (await cache.resolve("default", "orders")).version == "2.0.0"
    async with engine.connect() as connection:
        await connection.execute(text("DELETE FROM workflow_version WHERE version = '2.0.0'"))
        await connection.execute(text("UPDATE namespace SET definition_epoch = definition_epoch - 1"))
    clock.now += 1.1
    assert (await cache.resolve("default", "orders")).version == "1.0.0"


async def test_what_does_not_exist_is_remembered_too(
    engine: AsyncEngine, cache: DefinitionCache, queries: list[str]
) -> None:
    for _ in range(50):
        with pytest.raises(WorkflowNotFound):
            await cache.resolve("default", "orders")
    assert len(queries) == 2, queries
    await put_version(engine, new_version())
    cache.invalidate("default", "orders")
    assert (await cache.resolve("default", "orders")).version == "1.0.0"


async def test_namespaces_are_apart(engine: AsyncEngine, cache: DefinitionCache) -> None:
    await add_namespace(engine, "team")
    mine = await add_version(engine, namespace="team")
    with pytest.raises(WorkflowNotFound):
        await cache.resolve("default", "orders")
    assert (await cache.resolve("team", "orders")).definition_id == mine
    with pytest.raises(NamespaceNotFound):
        await cache.resolve("nowhere", "orders")


async def test_memory_is_bounded(engine: AsyncEngine, clock: Clock) -> None:
    small = DefinitionCache(engine, namespaces=2, entries_per_namespace=3, clock=clock)
    for number in range(10):
        with pytest.raises(WorkflowNotFound):
            await small.resolve("default", f"missing-{number}")
    for name in ("a", "b", "c"):
        await add_namespace(engine, name)
        with pytest.raises(WorkflowNotFound):
            await small.resolve(name, "orders")
    assert list(small._namespaces) == ["b", "c"]
    assert all(len(known.answers) <= 3 for known in small._namespaces.values())


async def test_nothing_stale_is_answered_while_the_record_is_away(
    engine: AsyncEngine, cache: DefinitionCache, clock: Clock
) -> None:
    await add_version(engine)
    await cache.resolve("default", "orders")
    async with engine.connect() as connection:
        await connection.execute(text("ALTER TABLE namespace RENAME TO away"))
        clock.now += 1.1
        with pytest.raises(Exception, match="namespace"):
            await cache.resolve("default", "orders")
        await connection.execute(text("ALTER TABLE away RENAME TO namespace"))
    assert (await cache.resolve("default", "orders")).version == "1.0.0"


async def test_a_failed_query_leaves_the_cache_usable(engine: AsyncEngine, cache: DefinitionCache) -> None:
    await add_version(engine)
    terminate = text("SELECT pg_terminate_backend(:pid)")
    async with engine.connect() as connection:
        await connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
        await connection.execute(text("BEGIN"))
        await connection.execute(text("LOCK TABLE workflow_version IN ACCESS EXCLUSIVE MODE"))
        reading = asyncio.create_task(cache.resolve("default", "orders"))
        first = await waiter(connection)
        await connection.execute(terminate, {"pid": first})
        second = await waiter(connection, other_than=first)  # a read is tried once more on a new connection
        await connection.execute(terminate, {"pid": second})
        with pytest.raises(StoreUnavailable):
            await reading
        await connection.execute(text("COMMIT"))
    assert (await cache.resolve("default", "orders")).version == "1.0.0"
