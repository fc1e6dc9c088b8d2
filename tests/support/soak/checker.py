"""The judgement after the faults: what clients saw, what the outside saw and what is recorded must fit one story.

`PROMISES` holds one function for each promise; it yields what breaks it, in words. All of it is safety but for
`every_run_ends`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Final

from support.soak.evidence import ENDED, Evidence, Stall
from support.soak.history import Seen, Started
from support.soak.model import Expected, expect
from support.soak.workflows import BY_NAME, LIMIT, RATE
from support.soak.world import Arrival

__all__ = ["PROMISES", "judge"]

_LEASE_S: Final = 1.0
"""A worker that was held for less than this still has its lease: heartbeats are every 0.5 s, leases last 2 s."""
_WAKING_S: Final = 5.0
"""Within this time of going on, a worker sends the calls that it was about to send when it was held."""
_SLACK_S: Final = 0.02
"""What a call may seem to end too late by: that its caller has gone is seen when this process comes to look."""


def judge(evidence: Evidence) -> list[str]:
    """What is wrong, in words; empty when nothing is."""
    return [f"{rule.__name__}: {problem}" for rule in PROMISES for problem in rule(evidence)]


def each_start_is_one_run(evidence: Evidence) -> Iterator[str]:
    """Answered starts are recorded, under the id that was answered, once; nothing is that nobody asked for."""
    recorded: dict[str, set[str]] = defaultdict(set)
    for row in evidence.rows.values():
        if row.request_id.startswith("soak-"):
            recorded[row.request_id].add(row.run)
    starts = evidence.history.starts
    for request, started in starts.items():
        if len(started.runs) != 1:
            yield f"{request} was answered with {sorted(started.runs)}"
        elif recorded[request] != started.runs:
            yield f"{request} was answered with {started.run}, and recorded is {sorted(recorded[request])}"
    for request in recorded.keys() - starts.keys():
        yield f"nobody asked for {request}"


def every_run_ends(evidence: Evidence) -> Iterator[str]:
    """None is left behind, whether a client knows it or a run or a schedule has started it."""
    for row in evidence.rows.values():
        if row.state not in ENDED:
            yield f"{row.run} ({row.request_id}) is in state {row.state}"
    yield from evidence.missing


def ends_are_the_models(evidence: Evidence) -> Iterator[str]:
    """A run ends as the core itself makes it end, with the same output, unless somebody ended it."""
    runs = evidence.history.by_run()
    for run, seen in evidence.read.items():
        started = runs[run]
        expected = _expected(started)
        who = f"{started.kind.name} {run}"
        if seen.state == "CANCELLED":
            if not started.ended_by:
                yield f"{who} was ended by nobody"
        elif (seen.state, seen.error) != (expected.state, expected.error):
            yield f"{who} is {seen.state} {seen.error}, not {expected.state} {expected.error}"
        elif seen.output != expected.output:
            yield f"{who} has the output {_short(seen.output)}, not {_short(expected.output)}"
        if run in evidence.history.taken and not evidence.entries.get(run):
            yield f"{who} took a signal and recorded nothing"


def ended_runs_stay(evidence: Evidence) -> Iterator[str]:
    """Nobody sees a run go back, or change after its end; one that a client reset may begin again."""
    runs = evidence.history.by_run()
    told = [("a reader", run, seen) for run, seen in evidence.history.reads.items()]
    told += [("a watch", run, seen) for run, seen in evidence.history.watches]
    told += [("a wait", run, [seen]) for run, seen in evidence.ends.items()]
    for who, run, seen in told:
        last = evidence.read.get(run)
        for before, after in pairwise([*seen, *([] if last is None else [last])]):
            if after.change < before.change:
                yield f"{who} saw change {before.change} of {run} and then {after.change}"
            elif after.change == before.change and after.state != before.state:
                yield f"{who} saw {before.state} and then {after.state} at change {after.change} of {run}"
            elif before.state in ENDED.values() and not runs[run].reset and _end(before) != _end(after):
                yield f"{who} saw {run} end as {_end(before)} and then {_end(after)}"
        if who == "a wait" and last is not None and seen[0].change < last.change:
            yield f"a wait for {run} was answered with its earlier end, change {seen[0].change} of {last.change}"


def record_is_in_order(evidence: Evidence) -> Iterator[str]:
    """Entries are dense, legs in order, each leg by one claimant."""
    for run, entries in evidence.entries.items():
        position = evidence.rows[run].position
        if [entry.index for entry in entries] != list(range(1, position + 1)):
            yield f"entries of {run} are {[entry.index for entry in entries]} at position {position}"
        legs = [entry.leg for entry in entries]
        if legs != sorted(legs):
            yield f"legs of {run} are recorded in the order {legs}"
        if len({(entry.leg, entry.claimant) for entry in entries}) != len(set(legs)):
            yield f"a leg of {run} has two claimants"


def nothing_is_left(evidence: Evidence) -> Iterator[str]:
    """A run that has ended waits for nothing, is asked nothing, holds no permit and has no open leg."""
    for table, count in evidence.left_over.items():
        if count:
            yield f"{count} rows of {table} belong to runs that have ended"
    for row in evidence.rows.values():
        if row.state in ENDED and row.leg_open:
            yield f"{row.run} has ended and its leg is open"


def nothing_recorded_is_executed_again(evidence: Evidence) -> Iterator[str]:
    """No call comes for a step after that call's success was recorded.

    But for a worker that was held in the moment between looking at its lease and sending: when it goes on, that call
    leaves it, once. The outside can tell by the key.
    """
    recorded: dict[str, list[float]] = defaultdict(list)
    for run, entries in evidence.entries.items():
        for entry in entries:
            for step, iteration in entry.succeeded:
                recorded[f"{evidence.rows[run].belongs_to}{step}/{iteration}"].append(entry.recorded_at)
    excused: Counter[tuple[Stall, str]] = Counter()
    runs = evidence.history.by_run()
    for key, arrivals in evidence.world.by_key().items():
        run, _, rest = key.partition("/")
        moments = recorded[f"{run}/{rest.partition('/')[2]}"]
        for arrival in arrivals[1:]:
            if not any(arrivals[0].came_at < moment < arrival.came_at for moment in moments):
                continue
            stall = _stalled(evidence, arrival)
            if stall is None:
                yield f"{key} was executed again after it had been recorded"
                continue
            excused[stall, run] += 1
    for (stall, run), count in excused.items():
        started = runs.get(run)
        if count > (1 if started is None else started.kind.breadth):
            yield f"{stall.worker} went on with {count} calls of {run} after it had been held"


def everything_is_executed(evidence: Evidence) -> Iterator[str]:
    """A run makes the calls that the model makes, all of them if it came to the model's end, and no others."""
    made: dict[str, set[str]] = defaultdict(set)
    for key in evidence.world.by_key():
        run, _, rest = key.partition("/")
        made[run].add(rest)
    for run, started in evidence.history.by_run().items():
        expected, calls = _expected(started).calls, made[run]
        if started.reset:  # each generation has keys of its own
            expected, calls = _steps(expected), _steps(calls)
        if more := calls - expected:
            yield f"{started.kind.name} {run} made calls that are not its own: {sorted(more)}"
        end = evidence.read.get(run)
        if end is not None and end.state == _expected(started).state and (fewer := expected - calls):
            yield f"{started.kind.name} {run} is {end.state} without {sorted(fewer)}"


def permits_are_exact(evidence: Evidence) -> Iterator[str]:
    """Never more than LIMIT runs of one key: by the record's own times, and as the outside saw them at work."""
    shops: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run, started in evidence.history.by_run().items():
        row = evidence.rows.get(run)
        if started.kind is BY_NAME["limited"] and row is not None and row.began_at:
            shops[str(started.given["shop"])].append((row.began_at, row.ended_at or float("inf")))
    for shop, spans in shops.items():
        if (most := _most_at_once(spans)) > LIMIT:
            yield f"{most} runs held {shop} at once in the record"
    seen: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for arrival in evidence.world.arrivals:
        if arrival.group and _stalled(evidence, arrival) is None:
            seen[arrival.group].append((arrival.came_at, arrival.left_at, arrival.run))
    for shop, calls in seen.items():
        for came_at, _, _ in calls:
            runs = {run for begun, ended, run in calls if begun <= came_at < ended - _SLACK_S}
            if len(runs) > LIMIT:
                yield f"{sorted(runs)} were at work for {shop} at once"


def rates_are_exact(evidence: Evidence) -> Iterator[str]:
    """Never more than RATE runs of the paced workflow begin within a second."""
    began = sorted(
        evidence.rows[run].began_at
        for run, started in evidence.history.by_run().items()
        if started.kind is BY_NAME["paced"] and run in evidence.rows and evidence.rows[run].began_at
    )
    for first, last in zip(began, began[RATE:], strict=False):
        if last - first < 0.999:  # times are kept in microseconds and read as floats
            yield f"{RATE + 1} paced runs began within {last - first:.3f} s"


def schedules_fire_once(evidence: Evidence) -> Iterator[str]:
    """Each second of the schedule has one run, and none is left out."""
    for moment, count in Counter(evidence.fired).items():
        if count > 1:
            yield f"{count} runs for {moment}"
    for before, after in pairwise(sorted(set(evidence.fired))):
        if (after - before).total_seconds() != 1.0:
            yield f"no run between {before} and {after}"
    if not evidence.fired:
        yield "it did not fire"


def answers_are_explained(evidence: Evidence) -> Iterator[str]:
    """A client that asks rightly is answered, or told that something is away; nothing else."""
    yield from evidence.history.surprises


PROMISES: Final[tuple[Callable[[Evidence], Iterable[str]], ...]] = (
    each_start_is_one_run,
    every_run_ends,
    ends_are_the_models,
    ended_runs_stay,
    record_is_in_order,
    nothing_is_left,
    nothing_recorded_is_executed_again,
    everything_is_executed,
    permits_are_exact,
    rates_are_exact,
    schedules_fire_once,
    answers_are_explained,
)


def _expected(started: Started) -> Expected:
    return expect(started.kind, started.given)


def _end(seen: Seen) -> tuple[str, str]:
    return seen.state, seen.error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}…"


def _steps(calls: Iterable[str]) -> frozenset[str]:
    return frozenset(call.partition("/")[2] for call in calls)


def _stalled(evidence: Evidence, arrival: Arrival) -> Stall | None:
    """The worker's being held that may have delayed this call beyond its lease."""
    for stall in evidence.stalls:
        long = stall.ended_at - stall.began_at >= _LEASE_S
        if long and stall.ended_at - 0.1 <= arrival.came_at <= stall.ended_at + _WAKING_S:
            return stall
    return None


def _most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many overlap at most; one that begins when another ends does not overlap it."""
    moments = sorted(itertools.chain.from_iterable(((begun, 1), (ended, -1)) for begun, ended in spans))
    return max(itertools.accumulate(change for _, change in moments), default=0)
