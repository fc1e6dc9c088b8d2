"""What a schedule does at a moment: which times start runs, which wait, which are left out. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flint_core.schedule import due_fires, jittered, next_fire
from flint_scheduler.accept import ENDED
from flint_store.schedules import ScheduleRow, first_look

__all__ = ["Verdict", "judge"]

_AT_ONCE = 100  # times of one schedule that are made up for together


@dataclass(slots=True)
class Verdict:
    """`fire`: times whose runs are to be started, in order. `stop`: what is asked of the last run ("cancel",
    "terminate", or nothing). The rest is what becomes of the row then.
    """

    next_ms: int | None
    nominal_ms: int | None
    held_ms: int | None
    fire: list[int]
    stop: str = ""
    skipped: int = 0
    missed: int = 0
    excluded: int = 0


def judge(row: ScheduleRow, now_ms: int, catch_up_ms: int, excluded: Callable[[int], bool]) -> Verdict | None:
    """What a schedule by time does now; None: nothing. `excluded`: by the calendars that it names.

    A time that waits comes first; those that are due are looked at when the row is read again.
    """
    schedule = row.schedule
    if row.paused:
        return None
    runs = row.last_run_id is not None and row.last_state not in ENDED
    if row.held_ms is not None and not runs:
        return _within(row, Verdict(row.next_ms, row.nominal_ms, None, [row.held_ms]))
    if row.next_ms is None or row.nominal_ms is None or row.next_ms > now_ms:
        return None
    if schedule.after is not None:  # goes on when its run has ended
        return Verdict(None, None, None, [row.nominal_ms])
    if schedule.catch_up_ms is not None:
        catch_up_ms = schedule.catch_up_ms
    makes_up = schedule.catch_up == "all"
    most = _AT_ONCE if makes_up and schedule.overlap is None else 1
    moments = due_fires(schedule, row.nominal_ms, now_ms, catch_up_ms, row.zone, row.since_ms, most=most)
    served_ms = now_ms
    if moments and schedule.jitter_ms and moments[-1] != row.nominal_ms:
        # Of several that are due, the last may still have its jitter before it.
        last = moments[-1]
        following = next_fire(schedule, last, row.zone, row.since_ms)
        if jittered(schedule, _key(row), last, following) > now_ms:
            served_ms = last - 1
            again = due_fires(schedule, row.nominal_ms, served_ms, catch_up_ms, row.zone, row.since_ms, most=most)
            moments = again if not makes_up else moments[:-1]
    if makes_up and moments:
        served_ms = min(served_ms, moments[-1])
    look = first_look(schedule, row.zone, _key(row), served_ms, row.since_ms)
    verdict = Verdict(look[0] if look else None, look[1] if look else None, row.held_ms, [])
    verdict.missed = int(not moments or moments[0] != row.nominal_ms)
    wanted = [moment for moment in moments if not excluded(moment)]
    verdict.excluded = len(moments) - len(wanted)
    if not wanted:
        return verdict
    if schedule.overlap is None:
        verdict.fire = wanted
    elif not runs:
        # On record first, and started at the next look: whoever comes after a kill must start this very time, since of
        # another one it would start a second run beside the first.
        verdict.held_ms = wanted[-1]
    elif schedule.overlap == "skip":
        verdict.skipped = len(wanted)
    elif schedule.overlap == "buffer":
        verdict.skipped = len(wanted) - (row.held_ms is None)
        verdict.held_ms = row.held_ms if row.held_ms is not None else wanted[0]
    else:
        verdict.skipped = len(wanted) - (row.held_ms is None)
        verdict.held_ms = wanted[-1]
        verdict.stop = schedule.overlap
    return _within(row, verdict)


def _within(row: ScheduleRow, verdict: Verdict) -> Verdict:
    """Not more runs than the schedule may start in all."""
    if row.schedule.max_runs is not None:
        left = max(row.schedule.max_runs - row.started, 0)
        verdict.fire = verdict.fire[:left]
        if not left:
            verdict.held_ms = None
        if left <= len(verdict.fire) + (verdict.held_ms is not None):
            verdict.next_ms = verdict.nominal_ms = None
    return verdict


def _key(row: ScheduleRow) -> str:
    return f"{row.namespace}/{row.handle}"
