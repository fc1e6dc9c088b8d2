"""What a schedule does at a moment: which times start, wait, or are left out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import Any

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.schedule import Schedule
from flint_scheduler.schedule_judgement import Verdict, judge
from flint_store.schedules import ScheduleRow

RUNNING, SUCCEEDED = runs_pb2.Run.STATE_RUNNING, runs_pb2.Run.STATE_SUCCEEDED


def row(schedule: Schedule, next_ms: int | None = 1_000, **members: Any) -> ScheduleRow:
    given = ScheduleRow(
        schedule_id=bytes(16), namespace="default", handle="@x", workflow_id="w", version="1.0.0", definition_id=1,
        definition_hash=b"", level=None, queue=None, group=0, schedule=schedule, zone=UTC, since_ms=0, next_ms=next_ms,
        nominal_ms=next_ms, held_ms=None, paused=False, revision=1, started=0, input=b"{}", calendars=(), filling=False,
        last_run_id=None, last_state=0, last_ended_ms=None, claimed=(), consumed=frozenset(),
    )  # fmt: skip
    return replace(given, **members)


def judged(given: ScheduleRow, now_ms: int, excluded: Any = lambda at: False) -> Verdict:
    verdict = judge(given, now_ms, 60_000, excluded)
    assert verdict is not None
    return verdict


def test_nothing_is_due() -> None:
    every = Schedule(every="PT1S")
    for given in (row(every, 5_000), row(every, None), row(every, paused=True)):
        assert judge(given, 4_000, 60_000, lambda at: False) is None


def test_the_last_missed_time_or_all_of_them() -> None:
    verdict = judged(row(Schedule(every="PT1S")), 5_500)
    assert (verdict.fire, verdict.next_ms, verdict.missed) == ([5_000], 6_000, 1)
    verdict = judged(row(Schedule(every="PT1S", catch_up="all")), 5_500)
    assert (verdict.fire, verdict.next_ms, verdict.missed) == ([1_000, 2_000, 3_000, 4_000, 5_000], 6_000, 0)
    verdict = judged(row(Schedule(every="PT1H", catch_up="none"), 3_600_000), 3_700_000)
    assert (verdict.fire, verdict.next_ms, verdict.missed) == ([], 7_200_000, 1)
    # More than one look takes: the next one goes on behind them.
    verdict = judged(row(Schedule(every="PT0.1S", catch_up="all"), 100), 20_000)
    assert (len(verdict.fire), verdict.next_ms) == (100, 10_100)


def test_overlaps() -> None:
    def busy(overlap: str, **members: Any) -> Verdict:
        given = row(Schedule(every="PT1S", overlap=overlap), last_run_id=b"r" * 16, last_state=RUNNING, **members)
        return judged(given, 1_000)

    skip = busy("skip")
    assert (skip.fire, skip.held_ms, skip.skipped, skip.stop, skip.next_ms) == ([], None, 1, "", 2_000)
    first, second = busy("buffer"), busy("buffer", held_ms=500)
    assert (first.held_ms, first.skipped) == (1_000, 0) and (second.held_ms, second.skipped) == (500, 1)
    for how in ("cancel", "terminate"):
        first, second = busy(how), busy(how, held_ms=500)
        assert (first.held_ms, first.skipped, first.stop) == (1_000, 0, how)
        assert (second.held_ms, second.skipped, second.stop) == (1_000, 1, how)
    waiting = row(Schedule(every="PT1S", overlap="buffer"), 9_000, held_ms=1_000, last_state=SUCCEEDED)
    verdict = judged(replace(waiting, last_run_id=b"r" * 16), 8_000)
    assert (verdict.fire, verdict.held_ms, verdict.next_ms) == ([1_000], None, 9_000)


def test_a_time_that_may_not_overlap_is_on_record_before_it_starts() -> None:
    """Else an owner that dies between the start and the note of it leaves a run that its successor does not know."""
    for overlap in ("skip", "buffer", "cancel", "terminate"):
        given = row(Schedule(every="PT1S", overlap=overlap), last_run_id=b"r" * 16, last_state=SUCCEEDED)
        claimed = judged(given, 1_300)
        assert (claimed.fire, claimed.held_ms, claimed.next_ms, claimed.stop) == ([], 1_000, 2_000, "")
        # Started; whoever looks before that is noted, however late, starts the same time again and so the same run.
        noted = replace(given, held_ms=1_000, next_ms=2_000, nominal_ms=2_000)
        for now_ms in (1_300, 9_900):
            started = judged(noted, now_ms)
            assert (started.fire, started.held_ms, started.skipped, started.next_ms) == ([1_000], None, 0, 2_000)
    last = row(Schedule(every="PT1S", overlap="skip", max_runs=1))
    claimed = judged(last, 1_000)
    assert (claimed.fire, claimed.held_ms, claimed.next_ms) == ([], 1_000, None)
    assert judged(replace(last, held_ms=1_000, next_ms=None, nominal_ms=None), 1_000).fire == [1_000]


def test_no_more_runs_than_it_may_start() -> None:
    limited = Schedule(every="PT1S", max_runs=3, catch_up="all")
    verdict = judged(row(limited, started=1), 9_000)
    assert (verdict.fire, verdict.next_ms) == ([1_000, 2_000], None)
    assert judged(row(limited, started=3), 9_000).fire == []


def test_excluded_times_are_counted() -> None:
    verdict = judged(row(Schedule(every="PT1S", catch_up="all")), 3_000, lambda at: at == 2_000)
    assert (verdict.fire, verdict.excluded) == ([1_000, 3_000], 1)


def test_jitter_is_waited_for() -> None:
    schedule = Schedule(every="PT10S", jitter_ms=9_000)
    fired: list[int] = []
    given = row(schedule, 10_000)
    for now_ms in range(10_000, 200_000, 500):
        verdict = judge(given, now_ms, 60_000, lambda at: False)
        if verdict is not None:
            fired += verdict.fire
            assert verdict.next_ms is not None and verdict.nominal_ms is not None
            assert 0 <= verdict.next_ms - verdict.nominal_ms < 9_000 and verdict.next_ms > now_ms
            given = replace(given, next_ms=verdict.next_ms, nominal_ms=verdict.nominal_ms)
    assert fired == [10_000 * n for n in range(1, len(fired) + 1)] and len(fired) >= 18
