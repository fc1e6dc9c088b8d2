"""What watchers are told: one message a watcher and commit, with every change in order, within the bound."""

from __future__ import annotations

import os
from typing import Any, cast

from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.ids import run_id_text
from flint_scheduler.announce import Announcer, Ending
from flint_scheduler.cards import Phase, RunCard

SUCCEEDED = runs_pb2.Run.STATE_SUCCEEDED


class Connection:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dispatch_pb2.ChangeBatch, int]] = []

    def publish_now(self, subject: str, data: bytes) -> None:
        self.sent.append((subject, dispatch_pb2.ChangeBatch.FromString(data), len(data)))


def card(watcher: str = "starter") -> RunCard:
    run = RunCard(os.urandom(16), "default", "w", "1.0.0", b"h", 7, 3, 1_001, b"t" * 16, Phase.OPEN)
    run.leg, run.position, run.change, run.claimant, run.started_ms = 2, 5, 4, "inc", 2_000
    run.watcher, run.request_id = watcher, "r"
    return run


def announcer() -> tuple[Announcer, Connection]:
    connection = Connection()
    return Announcer(cast(Any, connection)), connection


async def test_an_end_says_everything_of_the_run() -> None:
    announce, connection = announcer()
    run = card()
    announce.changed(run, [], Ending(SUCCEEDED, 3_500, output=b"1"))
    announce.flush()
    ((subject, batch, _),) = connection.sent
    expected = runs_pb2.Run(
        name=f"namespaces/default/runs/{run_id_text(run.run_id)}",
        workflow="namespaces/default/workflows/w/versions/1.0.0",
        state=SUCCEEDED,
        level=3,
        leg=2,
        position=5,
        change=4,
        trace_id=(b"t" * 16).hex(),
        request_id="r",
        output=b"1",
    )
    expected.create_time.FromMilliseconds(1_001)
    expected.start_time.FromMilliseconds(2_000)
    expected.end_time.FromMilliseconds(3_500)
    assert subject == "starter"
    assert list(batch.changes) == [runs_pb2.RunChange(run=expected)]


async def test_changes_with_their_steps_go_to_each_who_watches_them() -> None:
    announce, connection = announcer()
    run = card()
    for watcher, steps in (("all", True), ("ends", False)):
        announce.interested(dispatch_pb2.Interest(run_id=run.run_id, watcher=watcher, steps=steps))
    step = runs_pb2.StepRecord(step="/do/0/a")
    announce.changed(run, [step])
    announce.flush()
    ((subject, batch, _),) = connection.sent
    assert subject == "all"
    assert [list(change.steps) for change in batch.changes] == [[step]]
    assert (batch.changes[0].run.state, batch.changes[0].run.worker) == (runs_pb2.Run.STATE_RUNNING, "inc")
    announce.changed(run, [], Ending(SUCCEEDED, 1))
    announce.flush()
    assert sorted(subject for subject, _, _ in connection.sent[1:]) == ["all", "ends", "starter"]


async def test_changes_of_a_commit_are_together_in_order_up_to_a_bound() -> None:
    announce, connection = announcer()
    runs = [card() for _ in range(300)]
    for number, run in enumerate(runs):
        announce.changed(run, [], Ending(SUCCEEDED, 1, output=b"x" * (600_000 if number == 150 else 3_000)))
    announce.flush()
    announce.flush()
    told = [change.run.name for _, batch, _ in connection.sent for change in batch.changes]
    assert told == [f"namespaces/default/runs/{run_id_text(run.run_id)}" for run in runs]
    assert len(connection.sent) < 8
    assert [size for _, batch, size in connection.sent if size > 512 * 1024 and len(batch.changes) > 1] == []
