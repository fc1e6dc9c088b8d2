"""Events against a real PostgreSQL and NATS: stored once, matched by index, never missed by an await that opens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_bus.subjects import EVENTS_STORE
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_core.events import Received, encode_events
from flint_ops.config import EventSettings, NatsSettings, PostgresSettings, Settings
from flint_rpc.errors import Refused, from_status_proto
from flint_scheduler.event_delivery import EventDelivery
from flint_scheduler.event_matching import split_filters
from flint_scheduler.events import EventDesk
from flint_scheduler.record import Record
from flint_store import events as store
from flint_store.awaits import AwaitRow, read_unserved, settle_opened
from flint_store.engine import create_engine, transaction
from flint_store.events import Subscription
from support.nats_server import NatsServer
from support.record import WAITING, add_namespace, add_runs, add_version

KIND_EVENTS = 1


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    connected = await Bus.connect(NatsSettings(urls=[nats.url]), "test")
    yield connected
    await connected.close()


@pytest.fixture
async def record(dsn: str) -> AsyncIterator[Record]:
    postgres = PostgresSettings(dsn=dsn)  # type: ignore[arg-type]
    made = Record(create_engine(postgres, "lane", pool_size=4), create_engine(postgres, "reading"), 10.0)
    yield made
    await made.close()


class Desk:
    """A desk and its delivery, whose loops run."""

    def __init__(self, record: Record, bus: Bus) -> None:
        self.record = record
        self.delivery = EventDelivery(record, bus, EventSettings(keep_s=60, clock_slack_s=0), 0.05)
        self.desk = EventDesk(record, bus, self.delivery, Settings())

    async def publish(self, *events: dict[str, Any], namespace: str = "default") -> list[Any]:
        request = pb.StoreEventsRequest(namespace=namespace, events=[orjson.dumps(e) for e in events])
        return list((await self.desk.store(request)).results)


@pytest.fixture
async def desk(record: Record, bus: Bus) -> AsyncIterator[Desk]:
    made = Desk(record, bus)
    tasks = [asyncio.create_task(made.desk.run()), asyncio.create_task(made.delivery.run())]
    yield made
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def event(name: str, kind: str = "paid", **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": name, "source": "/shop", "type": kind, **more}


async def waiting_runs(engine: AsyncEngine, count: int, namespace: str = "default") -> list[bytes]:
    definition = await add_version(engine, namespace=namespace)
    return await add_runs(
        engine, [{"definition_id": definition, "state": WAITING, "namespace_id": namespace} for _ in range(count)]
    )


async def open_awaits(
    engine: AsyncEngine, requests: list[tuple[bytes, dict[str, Any]]], key: str = "1", opened: str = "clock_timestamp()"
) -> list[AwaitRow]:
    """What the fold writes for awaits of kind EVENTS."""
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)"
                f" SELECT r.run_id, :key, :kind, r.group_id, r.namespace_id, '/do/0/l', '', :request, {opened}"
                " FROM run r WHERE r.run_id = :run_id"
            ),
            [
                {"key": key, "kind": KIND_EVENTS, "request": orjson.dumps(request), "run_id": UUID(bytes=run_id)}
                for run_id, request in requests
            ],
        )
        rows = await read_unserved(connection, [run_id for run_id, _ in requests], 10_000)
        return [row for row in rows if row.key == key]


async def inboxes(engine: AsyncEngine) -> dict[bytes, list[str]]:
    """The ids of the events in each run's inbox, in order of arrival."""
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT run_id, payload FROM inbox ORDER BY run_id, seq"))
        found: dict[bytes, list[str]] = {}
        for row in rows:
            found.setdefault(row.run_id.bytes, []).append(orjson.loads(bytes(row.payload))["id"])
        return found


async def settled(engine: AsyncEngine) -> None:
    """Until every event is matched."""
    async with asyncio.timeout(60):
        while True:
            async with engine.connect() as connection:
                if not (await connection.execute(text("SELECT count(*) FROM event WHERE NOT matched"))).scalar_one():
                    return
            await asyncio.sleep(0.01)


async def test_each_event_succeeds_or_fails_for_itself(desk: Desk, engine: AsyncEngine) -> None:
    first = await desk.publish(event("1"), {"id": "2"}, event("3", Bad="x"), event("1", data="again"))
    assert [r.WhichOneof("result") for r in first] == ["published", "error", "error", "published"]
    assert [first[0].published.created, first[3].published.created] == [True, False]
    assert [v.field for v in from_status_proto(first[1].error).field_violations] == [
        "events[1].source",
        "events[1].type",
        "events[1].specversion",
    ]
    assert [v.field for v in from_status_proto(first[2].error).field_violations] == ["events[2].Bad"]
    again = await desk.publish(event("1"), event("1", source="/other"))
    assert [r.published.created for r in again] == [False, True]
    await settled(engine)


async def test_requests_that_are_refused_as_a_whole(desk: Desk) -> None:
    with pytest.raises(Refused) as raised:
        await desk.publish(event("1"), namespace="nowhere")
    assert raised.value.reason_name == "NAMESPACE_NOT_FOUND"
    with pytest.raises(Refused) as raised:
        await desk.publish()
    assert raised.value.field_violations[0].field == "events"
    (large,) = await desk.publish(event("1", data="x" * 300_000))
    assert from_status_proto(large.error).reason_name == "PAYLOAD_TOO_LARGE"


async def test_a_worker_gets_what_was_stored_first(desk: Desk, bus: Bus) -> None:
    await desk.desk.open()
    request = pb.StoreEventsRequest(
        namespace="default", events=[orjson.dumps(event("e", data=1)), orjson.dumps(event("f"))], with_stored=True
    )
    first = pb.StoreEventsResponse.FromString(await bus.request(EVENTS_STORE, request.SerializeToString(), 60))
    assert [r.published.created for r in first.results] == [True, True]
    assert not first.stored
    request.events[0] = orjson.dumps(event("e", data=2))
    again = pb.StoreEventsResponse.FromString(await bus.request(EVENTS_STORE, request.SerializeToString(), 60))
    assert [orjson.loads(data)["data"] for data in again.stored[:1]] == [1]
    wrong = pb.StoreEventsRequest(namespace="nowhere", events=request.events).SerializeToString()
    assert pb.StoreEventsResponse.FromString(await bus.request(EVENTS_STORE, wrong, 60)).refused.code


async def test_correlated_events_reach_the_one_run_that_waits(desk: Desk, engine: AsyncEngine) -> None:
    runs = await waiting_runs(engine, 300)

    def request(number: int) -> dict[str, Any]:
        correlate = {"order": {"from": ".data.order", "expect": f"A-{number}"}}
        return {"filters": [{"with": {"type": "paid"}, "correlate": correlate}]}

    rows = await open_awaits(engine, [(run_id, request(n)) for n, run_id in enumerate(runs)])
    for at in range(0, len(rows), 200):
        assert not list(await desk.delivery.opened(rows[at : at + 200]))
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM event_shape"))).scalar_one() == 1
    await desk.publish(
        event("a", data={"order": "A-7"}), event("b", "sent", data={"order": "A-7"}), event("c", data={"order": "X"})
    )
    await settled(engine)
    assert await inboxes(engine) == {runs[7]: ["a"]}


async def test_an_event_for_all_reaches_all_in_pages(desk: Desk, engine: AsyncEngine) -> None:
    runs = await waiting_runs(engine, 2_500)
    async with engine.connect() as connection:
        request = orjson.dumps({"filters": [{"with": {"type": "paid"}}]})
        await connection.execute(
            text(
                "INSERT INTO run_await (run_id, key, kind, group_id, namespace_id, step, iteration, request, opened_at)"
                " SELECT run_id, '1', 1, group_id, 'default', '/do/0/l', '', :request, clock_timestamp() FROM run"
            ),
            {"request": request},
        )
        rows = await read_unserved(connection, runs, 10_000)
    for at in range(0, len(rows), 500):
        await desk.delivery.opened(rows[at : at + 500])
    await desk.publish(event("a"), event("b"))
    await settled(engine)
    found = await inboxes(engine)
    assert len(found) == 2_500
    assert all(ids == ["a", "b"] for ids in found.values())


async def test_namespaces_do_not_hear_each_other(desk: Desk, engine: AsyncEngine) -> None:
    await add_namespace(engine, "other")
    (run_id,) = await waiting_runs(engine, 1)
    await desk.delivery.opened(await open_awaits(engine, [(run_id, {"filters": [{}]})]))
    await desk.publish(event("a"), namespace="other")
    await settled(engine)
    assert await inboxes(engine) == {}


async def test_an_event_before_the_subscription_is_caught_up(desk: Desk, engine: AsyncEngine) -> None:
    (run_id,) = await waiting_runs(engine, 1)
    await desk.publish(event("before"))
    await settled(engine)
    rows = await open_awaits(engine, [(run_id, {"filters": [{"with": {"type": "paid"}}]})])
    await desk.publish(event("between"), event("other", "sent"))
    await settled(engine)  # matched, and nobody was subscribed
    await desk.delivery.opened(rows)
    assert await inboxes(engine) == {run_id: ["between"]}
    await desk.delivery.opened(rows)  # served twice during a takeover
    assert await inboxes(engine) == {run_id: ["between"]}


async def test_many_events_race_with_many_awaits(desk: Desk, engine: AsyncEngine) -> None:
    """Whatever comes first: an event that is published after the await was opened arrives, once."""
    runs = await waiting_runs(engine, 40)
    rows = await open_awaits(engine, [(run_id, {"filters": [{"with": {"type": "paid"}}]}) for run_id in runs])

    async def publish(number: int) -> None:
        await desk.publish(event(str(number)))

    async def subscribe(at: int) -> None:
        await desk.delivery.opened(rows[at : at + 4])

    await asyncio.gather(*[publish(n) for n in range(40)], *[subscribe(at) for at in range(0, 40, 4)])
    await settled(engine)
    found = await inboxes(engine)
    assert {run_id: sorted(map(int, ids)) for run_id, ids in found.items()} == {
        run_id: list(range(40)) for run_id in runs
    }


async def test_events_one_after_the_other_keep_their_order(
    dsn: str, record: Record, bus: Bus, engine: AsyncEngine
) -> None:
    """Published in turn at two schedulers, while runs begin to listen and are caught up."""
    postgres = PostgresSettings(dsn=dsn)  # type: ignore[arg-type]
    other = Record(create_engine(postgres, "lane", pool_size=4), create_engine(postgres, "reading"), 10.0)
    desks = [Desk(record, bus), Desk(other, bus)]
    tasks = [asyncio.create_task(part.run()) for desk in desks for part in (desk.desk, desk.delivery)]
    rounds, each = 25, 4
    runs = await waiting_runs(engine, rounds)
    try:
        for number, run_id in enumerate(runs):
            kind = f"round{number}"
            rows = await open_awaits(engine, [(run_id, {"filters": [{"with": {"type": kind}}]})])

            async def publish(number: int = number, kind: str = kind) -> None:
                for at in range(each):
                    await desks[(number + at) % 2].publish(event(f"{number}-{at}", kind))

            await asyncio.gather(publish(), desks[number % 2].delivery.opened(rows))
        await settled(engine)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await other.close()
    found = await inboxes(engine)
    assert [found.get(run_id) for run_id in runs] == [[f"{n}-{at}" for at in range(each)] for n in range(rounds)]


async def test_what_arrives_waits_for_a_catch_up_and_leaves_the_others(
    desk: Desk, record: Record, engine: AsyncEngine
) -> None:
    (run_id,) = await waiting_runs(engine, 1)
    rows = await open_awaits(engine, [(run_id, {"filters": [{}]})])
    pair = (run_id, "1")
    assert await record.read(lambda c: store.read_caught_up(c, [pair])) == set()  # not begun: left to the catch-up
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        assert await store.begin_catch_up(connection, [pair]) == {pair}
        looking = asyncio.create_task(record.read(lambda c: store.read_caught_up(c, [pair])))
        async with asyncio.timeout(60):
            while not await blocked(engine):
                await asyncio.sleep(0.01)
        await settle_opened(connection, rows)
    assert await looking == {pair}
    async with transaction(engine) as connection:
        assert await store.begin_catch_up(connection, [pair]) == set()  # once


async def blocked(engine: AsyncEngine) -> bool:
    """Whether a connection waits for the lock of another one."""
    asked = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    async with engine.connect() as connection:
        return bool((await connection.execute(asked)).scalar_one())


async def test_an_event_in_other_hands_is_matched_before_a_later_one(
    desk: Desk, record: Record, engine: AsyncEngine
) -> None:
    (run_id,) = await waiting_runs(engine, 1)
    await desk.delivery.opened(await open_awaits(engine, [(run_id, {"filters": [{}]})]))
    content = orjson.dumps(event("first"))
    first = store.NewEvent("default", bytes(16), "paid", content)
    await record.lane("other", lambda c: store.put_events(c, [first]))  # by a scheduler that has much to do
    await desk.publish(event("second"))
    await settled(engine)
    assert await inboxes(engine) == {run_id: ["first", "second"]}


async def test_an_event_that_was_handled_is_not_caught_up_again(desk: Desk, engine: AsyncEngine) -> None:
    (run_id,) = await waiting_runs(engine, 1)
    await desk.publish(event("seen"), event("new"))
    await settled(engine)  # they came before the await was opened
    async with engine.connect() as connection:
        seq = (
            await connection.execute(
                text("SELECT seq FROM event WHERE content = :content"), {"content": orjson.dumps(event("seen"))}
            )
        ).scalar_one()
        handled = Received(1, f"event/{seq}/1", event("seen"), 1_000)
        await connection.execute(
            text(
                "INSERT INTO run_entry (run_id, index, leg, claimant, steps, events)"
                " VALUES (:run_id, 1, 1, 'w', '', :events)"
            ),
            {"run_id": UUID(bytes=run_id), "events": encode_events([handled])},
        )
    rows = await open_awaits(engine, [(run_id, {"filters": [{}]})], key="2", opened="to_timestamp(2)")
    await desk.delivery.opened(rows)
    assert await inboxes(engine) == {run_id: ["new"]}


async def test_a_closed_await_gets_nothing(desk: Desk, engine: AsyncEngine) -> None:
    (run_id,) = await waiting_runs(engine, 1)
    rows = await open_awaits(engine, [(run_id, {"filters": [{}]})])
    await desk.delivery.opened(rows)
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE run_await SET closed = true"))
    await desk.publish(event("late"))
    await settled(engine)
    await desk.delivery.closed(rows)
    await desk.delivery.opened(rows)  # after the closing: another scheduler was late
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM event_subscription"))).scalar_one() == 0
    assert await inboxes(engine) == {}


async def test_the_sweep_finishes_what_was_cut_short(record: Record, bus: Bus, engine: AsyncEngine) -> None:
    desk = Desk(record, bus)  # its loops do not run: a scheduler that died after the first commit
    (run_id,) = await waiting_runs(engine, 1)
    await desk.delivery.opened(await open_awaits(engine, [(run_id, {"filters": [{}]})]))
    content = orjson.dumps(event("x"))
    stored, _ = await record.lane(
        "events", lambda c: store.put_events(c, [store.NewEvent("default", bytes(16), "paid", content)])
    )
    assert len(stored) == 1
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE event SET received_at = received_at - interval '1 minute'"))
    await desk.delivery.sweep()
    await desk.delivery.sweep()
    assert await inboxes(engine) == {run_id: ["x"]}
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT matched FROM event"))).scalars().all() == [True]


async def test_old_events_go_and_so_do_shapes_that_nobody_uses(desk: Desk, engine: AsyncEngine) -> None:
    (run_id,) = await waiting_runs(engine, 1)
    rows = await open_awaits(engine, [(run_id, {"filters": [{"with": {"type": "paid"}}]})])
    await desk.delivery.opened(rows)
    await desk.publish(event("old"), event("new"))
    await settled(engine)
    async with engine.connect() as connection:
        await connection.execute(
            text("UPDATE event SET received_at = received_at - interval '2 minutes' WHERE seq = 1")
        )
        await connection.execute(text("UPDATE event_shape SET used_at = used_at - interval '2 hours'"))
    await desk.delivery.clean()
    async with engine.connect() as connection:
        contents = (await connection.execute(text("SELECT content FROM event"))).scalars().all()
        assert [json.loads(bytes(c))["id"] for c in contents] == ["new"]
        assert (await connection.execute(text("SELECT count(*) FROM event_shape"))).scalar_one() == 1
    await desk.delivery.closed(rows)
    await desk.delivery.clean()
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM event_shape"))).scalar_one() == 0


async def test_followers_pass_no_event_that_commits_late(desk: Desk, record: Record, engine: AsyncEngine) -> None:
    begin = await record.read(lambda c: store.last_place(c, "default"))
    assert begin == "0.0"
    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    late = store.NewEvent("default", b"l" * 16, "paid", orjson.dumps(event("late")))

    async def ids(after: str) -> list[str]:
        found = await record.read(lambda c: store.read_place(c, "default", after, 100))
        return [orjson.loads(e.content)["id"] for e in found]

    async with transactional.connect() as connection, connection.begin():
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await store.put_events(connection, [late])
        await desk.publish(event("quick"))
        assert await ids(begin) == []  # the late one comes before it
    assert await ids(begin) == ["late", "quick"]
    newest = await record.read(lambda c: store.last_place(c, "default"))
    assert await ids(newest) == []
    with pytest.raises(ValueError, match="not a place"):
        await record.read(lambda c: store.read_place(c, "default", "x", 100))


async def test_lookups_read_their_rows_not_the_tables(engine: AsyncEngine, record: Record) -> None:
    """With 200,000 subscriptions and 50,000 events: by index, in proportion to the answer."""
    (found,) = split_filters(
        "default",
        {"filters": [{"with": {"type": "paid"}, "correlate": {"o": {"from": ".data.order", "expect": "A-5"}}}]},
    )
    async with engine.connect() as connection:
        await connection.execute(text("SET statement_timeout = 0"))
        await connection.execute(
            text(
                "INSERT INTO event_subscription (run_id, await_key, number, namespace_id, shape, match)"
                " SELECT gen_random_uuid(), '1', 0, 'default', :shape, decode(md5(n::text), 'hex')"
                " FROM generate_series(1, 200000) n"
            ),
            {"shape": found.shape.shape},
        )
        await connection.execute(
            text(
                "INSERT INTO event (namespace_id, identity, type, content, received_at, matched)"
                " SELECT 'default', decode(md5(n::text), 'hex'), 'paid', '{}', now() - n * interval '1 second', n > 20"
                " FROM generate_series(1, 50000) n"
            )
        )
        await connection.execute(text("ANALYZE"))
    run_id = (await waiting_runs(engine, 1))[0]
    rows = await open_awaits(engine, [(run_id, {})])
    subscription = Subscription(run_id, "1", 0, found.shape.shape, found.match)
    await record.lane("x", lambda c: store.put_subscriptions(c, rows, [subscription]))

    async def plan(statement: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        async def explained(connection: Any) -> Any:
            answer = await connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}"), parameters)
            return answer.scalar_one()

        document = await record.lane("x", explained)
        plans: dict[str, Any] = (json.loads(document) if isinstance(document, str) else document)[0]["Plan"]
        return plans

    def scanned(node: dict[str, Any]) -> float:
        own = 0.0
        if "Relation Name" in node:
            own = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        return own + sum(scanned(child) for child in node.get("Plans", []))

    matches = {
        "places": "{0}",
        "namespaces": "{default}",
        "shapes": f'{{"\\\\x{found.shape.shape.hex()}"}}',
        "matches": f'{{"\\\\x{found.match.hex()}"}}',
        "after_run": "0" * 32,
        "after_key": "",
        "limit": 2000,
    }
    assert scanned(await plan(store.FIND_MATCHES, matches)) <= 2
    assert scanned(await plan(store.READ_UNMATCHED, {"older_s": 0, "limit": 500})) <= 25
    assert scanned(await plan(store.MARK_MATCHED, {"seqs": "{1,2,3}"})) <= 6
    async with engine.connect() as connection:
        since = (await connection.execute(text("SELECT now() - interval '5 seconds'"))).scalar_one()
    recent = {
        "namespace": "default",
        "since": since,
        "after_at": since,
        "after_seq": -1,
        "any_type": False,
        "types": "{paid}",
        "limit": 200,
    }
    assert scanned(await plan(store.READ_SINCE, recent)) <= 10
    place = {"namespace": "default", "xact": "0", "seq": 0, "limit": 100}
    assert scanned(await plan(store.READ_PLACE, place)) <= 101
    assert scanned(await plan(store.LAST_PLACE, {"namespace": "default"})) <= 2
    assert scanned(await plan(store.DELETE_OLD, {"keep_s": 1e9, "limit": 1000})) <= 2_100
    one = await record.lane("x", lambda c: store.find_matches(c, [(0, "default", found.shape.shape, found.match)], 10))
    assert [(m.run_id, m.await_key) for m in one] == [(run_id, "1")]
