"""What a person sees of a watched run."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from flint_cli.progress import RunProgress
from flint_cli.watchview import follow
from flint_sdk import (
    Problem,
    Run,
    RunChanged,
    RunSnapshot,
    RunState,
    Step,
    StepBegan,
    StepState,
    WatchEvent,
    WatchInterrupted,
    WatchResumed,
)

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def run(state: RunState = RunState.RUNNING, leg: int = 1, **more: Any) -> Run:
    fields: dict[str, Any] = {
        "name": "namespaces/default/runs/r1",
        "workflow": "namespaces/default/workflows/greet/versions/1.0.0",
        "state": state,
        "level": 5,
        "input": None,
        "output": None,
        "error": None,
        "create_time": BEGAN,
        "start_time": BEGAN,
        "end_time": BEGAN + timedelta(seconds=2) if state.terminal else None,
        "wake_time": None,
        "leg": leg,
        "position": 0,
        "change": 1,
        "request_id": "",
        "trace_id": "",
        "worker": f"worker-{leg}",
        "cancel_requested": False,
    }
    return Run(**{**fields, **more})


def step(
    pointer: str, state: StepState = StepState.SUCCEEDED, *, attempt: int = 1, iteration: str = "", **more: Any
) -> Step:
    ended = None if state in (StepState.RUNNING, StepState.WAITING) else BEGAN + timedelta(milliseconds=120)
    fields: dict[str, Any] = {
        "step": pointer,
        "iteration": iteration,
        "attempt": attempt,
        "state": state,
        "kind": "call",
        "function": "http",
        "start_time": BEGAN,
        "end_time": ended,
        "error": None,
        "result": None,
        "provisional": False,
    }
    return Step(**{**fields, **more})


BUSY = Problem("about:blank", 503, "Service Unavailable", "503 from the shop", "/do/0/reserve")


def test_a_retry_is_told_and_counted() -> None:
    progress = RunProgress()
    lines = progress.apply(RunSnapshot(run(), (), 1))
    lines += progress.apply(StepBegan(step("/do/0/reserve", StepState.RUNNING, provisional=True), 1))
    failed = step("/do/0/reserve", StepState.FAILED, error=BUSY)
    lines += progress.apply(RunChanged(run(), (failed,), 2))
    lines += progress.apply(RunChanged(run(RunState.SUCCEEDED), (step("/do/0/reserve", attempt=2),), 3))
    assert lines == [
        "run running",
        "reserve running",
        "reserve failed (attempt 1) 120 ms: Service Unavailable: 503 from the shop",
        "reserve succeeded (attempt 2) 120 ms",
        "run succeeded after 2.00 s",
    ]
    (node,) = progress.roots()
    assert sorted(node.attempts) == [1, 2]


def test_steps_stand_below_the_steps_that_hold_them() -> None:
    progress = RunProgress()
    steps = (
        step("/do/1/each/do/0/send", iteration="1"),
        step("/do/1/each/do/0/send", iteration="0"),
        step("/do/1/each"),
        step("/do/10/last"),
        step("/do/2/second"),
        step("/do/0/first"),
    )
    progress.apply(RunSnapshot(run(), steps, 1))
    roots = progress.roots()
    assert [root.name for root in roots] == ["first", "each", "second", "last"]
    assert [child.name for child in roots[1].children] == ["send [0]", "send [1]"]


def test_a_late_hint_does_not_take_back_the_record() -> None:
    progress = RunProgress()
    progress.apply(RunSnapshot(run(), (step("/do/0/a"),), 1))
    assert progress.apply(StepBegan(step("/do/0/a", StepState.RUNNING, provisional=True), 1)) == []
    assert progress.roots()[0].last.state is StepState.SUCCEEDED


def test_a_new_leg_after_a_lost_worker_is_told_and_drops_what_was_not_recorded() -> None:
    progress = RunProgress()
    progress.apply(RunSnapshot(run(), (step("/do/0/a"),), 1))
    progress.apply(StepBegan(step("/do/1/b", StepState.RUNNING, provisional=True), 1))
    assert progress.apply(RunChanged(run(RunState.QUEUED, worker=""), (), 2)) == ["run queued"]
    assert progress.apply(RunChanged(run(leg=2), (), 3)) == ["continues as leg 2 on worker-2", "run running"]
    assert [root.name for root in progress.roots()] == ["a"]


def test_the_leg_after_a_wait_is_not_worth_a_word() -> None:
    progress = RunProgress()
    progress.apply(RunSnapshot(run(), (), 1))
    progress.apply(RunChanged(run(RunState.WAITING), (), 2))
    assert progress.apply(RunChanged(run(leg=2), (), 3)) == ["run running"]


def test_a_snapshot_after_a_reconnect_tells_only_what_is_new() -> None:
    progress = RunProgress()
    progress.apply(RunSnapshot(run(), (step("/do/0/a"),), 1))
    assert progress.apply(WatchInterrupted("gone", 1)) == ["connection lost; reconnecting"]
    assert progress.apply(WatchResumed(1)) == ["connected again; nothing was missed"]
    again = RunSnapshot(run(), (step("/do/0/a"), step("/do/1/b")), 4)
    assert progress.apply(again) == ["b succeeded 120 ms"]


async def stream(*events: WatchEvent) -> AsyncIterator[WatchEvent]:
    for event in events:
        yield event


EVENTS: tuple[WatchEvent, ...] = (
    RunSnapshot(run(), (), 1),
    StepBegan(step("/do/0/reserve", StepState.RUNNING, provisional=True), 1),
    RunChanged(run(), (step("/do/0/reserve", StepState.FAILED, error=BUSY),), 2),
    WatchInterrupted("gone", 2),
    WatchResumed(2),
    RunChanged(run(RunState.SUCCEEDED), (step("/do/0/reserve", attempt=2),), 3),
)


async def test_plain_lines_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    ended = await follow(stream(*EVENTS), Console(file=file))
    assert ended.state is RunState.SUCCEEDED
    lines = file.getvalue().splitlines()
    assert len(lines) == 7
    assert lines[-1].endswith("run succeeded after 2.00 s")
    assert "\x1b" not in file.getvalue()


async def test_a_live_tree_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, height=30, color_system=None, _environ={})
    await follow(stream(*EVENTS), console)
    text = file.getvalue()
    assert "greet 1.0.0  r1  succeeded" in text
    assert "✓ reserve  http  120 ms  attempt 2  Service Unavailable: 503 from the shop" in text
    assert "connected again" in text
