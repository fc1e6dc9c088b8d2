"""Events through the public door: published, listened for, emitted, followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from flint_contracts.gen.flint.events.v1 import events_pb2
from flint_sdk import (
    FlintError,
    InvalidArgument,
    PermissionDenied,
    PublishedEvent,
    ReceivedEvent,
    Role,
    RunState,
    StartRequest,
)
from support.house import House, definition, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARENT = "namespaces/default"


def event(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "source": "/tests", "id": f"{kind}/{name}", **more}


class Follower:
    """What a subscription has received so far."""

    def __init__(self) -> None:
        self.received: list[ReceivedEvent] = []
        self.changed = asyncio.Condition()

    def types(self) -> list[str]:
        return [r.type for r in self.received]

    async def until(self, condition: Any, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: condition(self))


@asynccontextmanager
async def following(house: House, **arguments: Any) -> AsyncIterator[Follower]:
    """A subscription that stands when the block begins."""
    follower = Follower()
    beacon = house.name("beacon")

    async def read() -> None:
        async for received in house.flint.subscribe_events(**arguments):
            async with follower.changed:
                follower.received.append(received)
                follower.changed.notify_all()

    task = asyncio.create_task(read())
    try:
        # It stands when something published now comes through.
        types = arguments.get("types")
        if types is None and not arguments.get("sources"):
            async with asyncio.timeout(60):
                while not any(r.type == beacon for r in follower.received):
                    await house.flint.publish_events([{"type": beacon, "source": "/beacon"}])
                    await asyncio.wait({task}, timeout=0.1)
                    assert not task.done(), task.result()
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_waiting(house: House, run: str, timeout_s: float = 30.0) -> None:
    async for change in house.flint.watch(run):
        found = getattr(change, "run", None)
        if found is not None and (found.state is RunState.WAITING or found.state.terminal):
            return


LISTEN = """
do:
  - wait: {listen: {to: {one: {with: {type: %s}}}}}
"""

CORRELATED = """
do:
  - wait:
      listen:
        to:
          one:
            with: {type: %s}
            correlate:
              order: {from: .data.order, expect: '${ .order }'}
"""


async def test_a_published_event_ends_a_listening_run(house: House) -> None:
    kind = f"test.{house.name('paid')}"
    handle = await house.flint.start(await house.apply(LISTEN % kind), {})
    await until_waiting(house, handle.id)
    (published,) = await house.flint.publish_events([event(kind, "1", data={"amount": 3})])
    assert isinstance(published, PublishedEvent) and published.created
    assert await handle.result(60) == [{"amount": 3}]


async def test_an_event_right_after_the_start_is_not_missed(house: House) -> None:
    """The run may not even have begun to wait; what is published after it has is not lost, whatever was folded."""
    kind = f"test.{house.name('early')}"
    name = await house.apply(LISTEN % kind)
    handles = [await house.flint.start(name, {}) for _ in range(10)]

    async def publish_until_ended() -> None:
        number = 0
        while True:
            number += 1
            await house.flint.publish_events([event(kind, f"{number}", data=number)])
            await asyncio.sleep(0.05)

    publishing = asyncio.create_task(publish_until_ended())
    try:
        results = await asyncio.gather(*[h.result(60) for h in handles])
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    assert all(len(r) == 1 for r in results)


async def test_one_of_a_thousand_waiting_runs(house: House) -> None:
    kind = f"test.{house.name('order')}"
    name = await house.apply(CORRELATED % kind)
    starts = [StartRequest(name, {"order": f"A-{n}"}) for n in range(1_000)]
    handles = await house.flint.start_many(starts, timeout_s=60)
    assert not any(isinstance(h, FlintError) for h in handles)
    async with asyncio.timeout(90):
        while (
            await house.record.number(
                "SELECT count(*) FROM run_await a JOIN run r USING (run_id)"
                " JOIN workflow_version d USING (definition_id) WHERE d.workflow_id = :w AND a.served AND r.state = 3",
                w=name,
            )
            < 1_000
        ):
            await asyncio.sleep(0.1)
    await house.flint.publish_events([event(kind, "x", data={"order": "A-417"})])
    chosen = handles[417]
    assert not isinstance(chosen, FlintError)
    assert await chosen.result(60) == [{"order": "A-417"}]
    waiting = await house.record.number(
        "SELECT count(*) FROM run r JOIN workflow_version d USING (definition_id)"
        " WHERE d.workflow_id = :w AND r.state = 3",
        w=name,
    )
    assert waiting == 999
    assert await house.record.number("SELECT count(*) FROM event_shape WHERE type = :k", k=kind) == 1
    for handle in handles:
        if not isinstance(handle, FlintError) and handle is not chosen:
            await handle.cancel()
    async with asyncio.timeout(60):  # nothing is left of awaits that are over
        while await house.record.number(
            "SELECT count(*) FROM event_subscription s JOIN event_shape e USING (shape) WHERE e.type = :k", k=kind
        ):
            await asyncio.sleep(0.1)


async def test_one_workflow_emits_and_another_listens(house: House) -> None:
    kind = f"test.{house.name('shipped')}"
    listener = await house.flint.start(await house.apply(LISTEN % kind), {})
    await until_waiting(house, listener.id)
    emitter = await house.apply(
        f"do:\n  - tell: {{emit: {{event: {{with: {{type: {kind}, data: {{n: '${{ .n }}'}}}}}}}}}}\n"
    )
    emitted = await (await house.flint.start(emitter, {"n": 5})).result(60)
    assert emitted["type"] == kind
    assert emitted["source"] == f"/namespaces/default/workflows/{emitter}"
    assert emitted["data"] == {"n": 5}
    assert {"id", "time", "specversion", "datacontenttype"} <= emitted.keys()
    assert await listener.result(60) == [{"n": 5}]


async def test_an_event_that_is_not_valid_faults_its_step(house: House) -> None:
    run = await house.run("do:\n  - tell: {emit: {event: {with: {type: t, source: '${ \"not a uri\" }'}}}}\n")
    assert run.state is RunState.FAILED
    assert run.error is not None and run.error.status == 400
    assert "source" in run.error.detail


async def test_subscribers_see_events_and_go_on_from_a_cursor(house: House) -> None:
    kind = house.name("seen")
    async with following(house) as follower:
        await house.flint.publish_events([event(f"{kind}.a", "1"), event(f"{kind}.b", "2")])
        await follower.until(lambda f: f"{kind}.b" in f.types())
        mine = [r for r in follower.received if r.type.startswith(kind)]
        assert [r.type for r in mine] == [f"{kind}.a", f"{kind}.b"]
        cursor = mine[-1].cursor
    await house.flint.publish_events([event(f"{kind}.c", "3"), event("unrelated", "3"), event(f"{kind}.d", "4")])
    async with following(house, types=[kind], cursor=cursor, lifecycle=False) as follower:
        await follower.until(lambda f: f"{kind}.d" in f.types())
        assert follower.types() == [f"{kind}.c", f"{kind}.d"]
    async with following(house, sources=["/only"], cursor=cursor, lifecycle=False) as follower:
        await house.flint.publish_events([event(kind, "5"), {"type": kind, "source": "/only", "id": "6"}])
        await follower.until(lambda f: f.received)
        assert [r.id for r in follower.received] == ["6"]


async def test_subscribers_see_lifecycle_events(house: House) -> None:
    body = """
do:
  - fine: {call: noop, with: {output: 1}}
  - pause: {wait: {seconds: 2}}
  - broken: {call: noop, with: {fail: {title: No}}}
"""
    async with following(house) as follower:
        # A scheduler hears of the interest a moment after the subscription stands.
        async with asyncio.timeout(60):
            while not any(t.startswith("io.serverlessworkflow.workflow.") for t in follower.types()):
                await house.run("do:\n  - a: {set: {x: 1}}\n")
        run = await house.run(body)

        def of_run(found: Follower) -> list[dict[str, Any]]:
            return [r.event for r in found.received if r.event.get("subject") == run.id]

        await follower.until(lambda f: any(e["type"].endswith("workflow.faulted.v1") for e in of_run(f)))
        events = of_run(follower)
    short = [e["type"].removeprefix("io.serverlessworkflow.").removesuffix(".v1") for e in events]
    assert short[0] == "workflow.started"
    statuses = [e["data"]["status"] for e in events if e["type"].endswith("workflow.status-changed.v1")]
    assert statuses[0] == "running" and "waiting" in statuses
    tasks = {(e["type"].split(".")[3], e["data"]["task"]) for e in events if ".task." in e["type"]}
    assert {("started", "/do/0/fine"), ("completed", "/do/0/fine"), ("faulted", "/do/2/broken")} <= tasks
    (faulted,) = [e for e in events if e["type"].endswith("workflow.faulted.v1")]
    assert faulted["data"]["error"]["title"] == "No"
    assert faulted["data"]["name"] == f"{run.workflow_id}-{run.id}.default"
    assert faulted["data"]["definition"] == {"namespace": "default", "name": run.workflow_id, "version": "1.0.0"}
    assert len({e["id"] for e in events}) == len(events)


async def test_refusals(house: House) -> None:
    results = await house.flint.publish_events([event("t", "ok"), {"type": "t"}])
    assert isinstance(results[0], PublishedEvent)
    assert isinstance(results[1], InvalidArgument)
    assert results[1].violations[0].field == "events[1].source"
    raw = house.raw
    request = events_pb2.PublishEventsRequest(parent=PARENT, events=[b"{", orjson.dumps(event("t", "raw"))])
    answer = await raw.events.PublishEvents(request, metadata=raw.metadata)
    assert [r.WhichOneof("result") for r in answer.results] == ["error", "error"]  # no specversion: nobody fills it in
    for wrong in (
        events_pb2.PublishEventsRequest(parent=PARENT),
        events_pb2.PublishEventsRequest(parent="default", events=[b"{}"]),
    ):
        assert isinstance(await refusal(raw.events.PublishEvents(wrong, metadata=raw.metadata)), InvalidArgument)
    viewer = await house.flint.create_key("reads", Role.VIEWER)
    reading = house.as_key(viewer.secret)
    refused = await refusal(reading.events.PublishEvents(request, metadata=reading.metadata))
    assert isinstance(refused, PermissionDenied)
    with pytest.raises(InvalidArgument):
        await anext(house.flint.subscribe_events(cursor="nonsense"))
    with pytest.raises(InvalidArgument):
        await anext(house.flint.subscribe_events(types=["x" * 300]))
    assert definition("do: []", "x")
