"""A pool that begins with no worker: it grows with the work, gives nobody's work away, and goes back to nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, field

import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from flint_sdk import RunState, StartRequest, Worker
from support.house import House
from support.stack import eventually
from support.web import web_server

pytestmark = pytest.mark.asyncio(loop_scope="session")

WITHIN_S = 90.0
MOST = 4
WAIT = "do:\n  - a: {wait: {milliseconds: 700}}"


async def live(house: House) -> list[Worker]:
    return [worker async for worker in house.flint.list_workers()]


async def nobody(house: House) -> bool:
    return not await live(house)


async def test_from_nothing_and_back_without_losing_a_run(house: House) -> None:
    assert await nobody(house)
    name = await house.apply(WAIT)
    handles = [await house.flint.start(name, {}) for _ in range(50)]
    runs = [await house.flint.wait(handle.id, WITHIN_S) for handle in handles]
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert 1 <= len(await live(house)) <= MOST
    await eventually(lambda: nobody(house), WITHIN_S)
    ended = [worker async for worker in house.flint.list_workers(show_ended=True)]
    assert ended and {worker.state.value for worker in ended} == {"ENDED"}, "all left in order, nobody was killed"
    losses = await house.record.number("SELECT coalesce(max(leg), 0) FROM run")
    # Once it may have been asked back for a worker that came, and once given back by one that left.
    assert losses <= 3, "a run was given back again and again"
    decisions = [decision async for decision in house.flint.list_scaling_decisions(pool="default", changes_only=True)]
    assert {decision.action for decision in decisions} == {"start", "end"} and not any(d.failure for d in decisions)
    assert all(decision.reason and decision.inputs for decision in decisions)

    async def judged() -> bool:
        found = [decision async for decision in house.flint.list_scaling_decisions(pool="default")]
        return all(decision.verdict for decision in found)

    await eventually(judged, WITHIN_S)


async def test_legs_of_a_killed_worker_move_long_before_its_lease_ends(house: House) -> None:
    name = await house.apply("do:\n  - a: {wait: {seconds: 10}}")  # long enough to be seen at its worker
    handle = await house.flint.start(name, {})

    async def runs() -> list[Worker]:
        return [worker for worker in await live(house) if worker.legs]

    (worker,) = await eventually(runs, WITHIN_S)
    lease_s = house.stack.settings.registry.lease_ttl_s
    os.kill(worker.pid, signal.SIGKILL)
    ended = await house.flint.wait(handle.id, lease_s * 0.8)
    assert ended.state == RunState.SUCCEEDED, "it went on elsewhere while the lease would still have held"
    states = {ended.incarnation: ended.state.value async for ended in house.flint.list_workers(show_ended=True)}
    assert states[worker.incarnation] == "LOST"


async def test_another_registry_goes_on_where_the_leader_was_killed(house: House) -> None:
    name = await house.apply(WAIT)
    handles = [await house.flint.start(name, {}) for _ in range(20)]
    leader = await _leader(house)
    await house.stack.kill(leader, hold=True)
    handles += [await house.flint.start(name, {}) for _ in range(20)]
    try:
        for handle in handles:
            assert (await house.flint.wait(handle.id, WITHIN_S)).state == RunState.SUCCEEDED
        assert await _leader(house) != leader
        await eventually(lambda: nobody(house), WITHIN_S)
        assert await _processes(house) == 0, "the new leader ended what the old one had started"
    finally:
        await house.stack.start(leader)


async def test_pools_are_steered_and_watched_only_where_told_so(house: House) -> None:
    pool = await house.flint.update_pool("steered", minimum_workers=1, maximum_workers=2, idle_s=5.0)
    assert (pool.settings.mode, pool.settings.minimum_workers, pool.settings.idle_s) == ("automatic", 1, 5.0)

    async def stands() -> bool:
        return [worker.pool for worker in await live(house)] == ["steered"]

    await eventually(stands, WITHIN_S)
    back = await house.flint.update_pool("steered", minimum_workers=None)
    assert (back.settings.minimum_workers, back.settings.maximum_workers) == (0, 2)
    await eventually(lambda: nobody(house), WITHIN_S)
    await house.flint.update_pool("watched", minimum_workers=3)

    async def noted() -> bool:
        return bool([d async for d in house.flint.list_scaling_decisions(pool="watched", changes_only=True)])

    await eventually(noted, WITHIN_S)
    assert await nobody(house), "shadow mode starts nobody"
    (decision, *_) = [d async for d in house.flint.list_scaling_decisions(pool="watched", changes_only=True)]
    assert decision.shadow and decision.wanted_workers == 3
    await house.flint.update_pool("watched", mode="fixed", minimum_workers=None)


@dataclass
class Ward:
    """An outside service that refuses every call of one process: a worker whose network or credentials are ill."""

    ill: int = 0
    calls: Counter[int] = field(default_factory=Counter)
    callers: dict[int, int] = field(default_factory=dict)

    async def call(self, request: Request) -> JSONResponse:
        assert request.client is not None
        pid = self._caller(request.client.port)
        self.calls[pid] += 1
        await asyncio.sleep(0.1)
        return JSONResponse({}, status_code=503 if pid == self.ill else 200)

    def _caller(self, port: int) -> int:
        """Whose end of the connection the port is."""
        if port not in self.callers:  # once for each connection: the whole machine's are looked through
            ends = {c.laddr.port: c.pid for c in psutil.net_connections("tcp") if c.laddr and c.pid}
            self.callers[port] = ends.get(port, 0)
        return self.callers[port]


WARD = """
do:
- rounds:
    for: {each: n, in: '${ [range(30)] }'}
    do:
    - attempt:
        try: [{call: {call: http, with: {method: get, endpoint: '${ $workflow.input.url }'}}}]
        catch: {errors: {with: {type: https://serverlessworkflow.io/spec/1.0.0/errors/communication}}}
"""


async def test_an_ill_worker_stands_aside_until_it_is_released(house: House) -> None:
    await house.flint.update_pool("ward", minimum_workers=3, maximum_workers=4, worker_slots=4)
    name = house.name("ward")
    hints = "metadata: {flint: {pool: ward}}"
    head = f"document: {{dsl: 1.0.3, namespace: default, name: {name}, version: 1.0.0, {hints}}}"
    await house.flint.apply(f"{head}{WARD}")

    async def ward() -> list[Worker]:
        return [worker for worker in await live(house) if worker.pool == "ward"]

    async def stands() -> list[Worker]:
        found = await ward()
        return found if len(found) == 3 else []

    ill, *others = await eventually(stands, WITHIN_S)
    service = Ward(ill.pid)
    runs: list[str] = []
    async with web_server(Starlette(routes=[Route("/", service.call)])) as url:
        reasons: dict[str, str] = {}

        async def keep_busy() -> None:
            """There is always work for every slot."""
            open_ = await house.record.number("SELECT count(*) FROM run WHERE state NOT IN (4, 5, 6)")
            if open_ < 20:
                starts = [StartRequest(name, {"url": f"{url}/"}) for _ in range(12)]
                answers = await house.flint.start_many(starts, timeout_s=60)
                runs.extend(answer.id for answer in answers if not isinstance(answer, Exception))

        async def quarantined() -> bool:
            await keep_busy()
            reasons.update({w.incarnation: w.quarantine_reason for w in await ward() if w.quarantine_reason})
            return bool(reasons)

        await eventually(quarantined, WITHIN_S)
        assert set(reasons) == {ill.incarnation}
        assert "calls of http failed" in reasons[ill.incarnation]

        async def replaced() -> list[Worker]:
            found = [worker for worker in await ward() if worker.incarnation != ill.incarnation]
            return [worker for worker in found if worker.pid not in {other.pid for other in others}]

        async def aside() -> bool:
            (found,) = [worker for worker in await ward() if worker.incarnation == ill.incarnation]
            assert (found.state.value, found.pid) == ("DRAINING", ill.pid) and found.quarantine_end_time is not None
            return found.legs == 0

        async def works_again() -> bool:
            await keep_busy()
            return service.calls[ill.pid] > before and service.calls[successor.pid] > 0

        (successor,) = await eventually(replaced, WITHIN_S)
        await eventually(aside, WITHIN_S)
        service.ill = -1
        before = service.calls[ill.pid]
        assert await house.flint.release_worker(ill.incarnation)
        await eventually(works_again, WITHIN_S)
        assert not await house.flint.release_worker(ill.incarnation)
        for run in runs:
            assert (await house.flint.wait(run, WITHIN_S)).state is RunState.SUCCEEDED
    moved = await house.record.number(
        "SELECT count(DISTINCT a.run_id) FROM run_entry a JOIN run_entry b ON a.run_id = b.run_id"
        " WHERE a.claimant = :ill AND b.claimant <> :ill AND b.leg > a.leg",
        ill=ill.incarnation,
    )
    assert moved, "what it gave back went on at others"
    assert service.calls[successor.pid], "who came in its place has work"
    await house.flint.update_pool("ward", minimum_workers=None)
    await eventually(lambda: nobody(house), WITHIN_S)


async def _leader(house: House) -> str:
    async def found() -> str:
        for name in ("registry-1", "registry-2"):
            if name in house.stack.pids and (await house.figures(name)).total("flint_registry_leading") == 1:
                return name
        return ""

    return await eventually(found, WITHIN_S)


async def _processes(house: House) -> int:
    import psutil

    host = psutil.Process(house.stack.pid("worker-host"))

    async def gone() -> bool:
        return not host.children()

    await eventually(gone, WITHIN_S)
    return len(host.children())
