"""The judgement after the faults: what clients saw, what the outside saw and what is recorded must fit one story.

Everything here is safety, but for one: every run has come to its end. Each rule names the promise it stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_sdk import AsyncFlint, FlintError, Run
from support.outside import Outside
from support.record_reader import Record
from support.soak.traffic import History, Started

__all__ = ["judge"]

_ENDED = {"SUCCEEDED", "FAILED", "CANCELLED"}


async def judge(history: History, flint: AsyncFlint, record: Record, world: Outside) -> list[str]:
    """What is wrong, in words; empty when nothing is. Waits for the runs' ends first."""
    wrong = list(history.refused)
    ends: dict[str, Run] = {}
    for started in history.starts.values():
        if len(started.runs) != 1:
            wrong.append(f"promise 1: {started.request_id} was answered with {len(started.runs)} runs: {started.runs}")
            continue
        (run,) = started.runs
        try:
            ends[started.request_id] = await flint.wait(run, 120.0)
        except FlintError as error:
            wrong.append(f"promise 2: {started.kind.name} {run} has not ended: {type(error).__name__}: {error}")
    wrong += [problem for key, run in ends.items() for problem in _end(history.starts[key], run)]
    wrong += _seen(history)
    wrong += await _recorded(history, record)
    wrong += await _executed(history, record, world, ends)
    return wrong


def _end(started: Started, run: Run) -> Iterator[str]:
    """The end is the one that the workflow has, with the output of its last call."""
    state, kind = run.state.value, started.kind
    who = f"{kind.name} {run.id}"
    if state not in _ENDED:
        yield f"promise 2: {who} is {state}"
    elif state == "CANCELLED":
        if not started.cancel_asked:
            yield f"{who} was cancelled by nobody"
    elif state != kind.state:  # also when a cancel was answered: the end may have been on its way
        yield f"{who} is {state}, not {kind.state}: {run.error}"
    if state == "SUCCEEDED" and kind.last:
        key = run.output.get("key", "") if isinstance(run.output, dict) else ""
        if not key.startswith(run.id) or f"/{kind.last}/" not in f"{key}/":
            yield f"{who} has the output {run.output!r}"


def _seen(history: History) -> Iterator[str]:
    """No reader and no watcher sees a run go back, or change after its end."""
    for what, sequences in (("reader", list(history.reads.values())), ("watch", history.watches)):
        for seen in sequences:
            for (change, state), (later, after) in pairwise(seen):
                if later < change or (later == change and state != after):
                    yield f"a {what} saw change {change} ({state}) and then {later} ({after})"
                if state in _ENDED and after != state:
                    yield f"a {what} saw {state} and then {after}"


async def _recorded(history: History, record: Record) -> list[str]:
    """Promises 1 and 4: one run for each start; its entries dense, each leg by one claimant, legs in order."""
    wrong: list[str] = []
    rows = await record.rows("SELECT request_id, run_id::text FROM run WHERE request_id LIKE 'soak-%'")
    found: dict[str, list[str]] = defaultdict(list)
    for request_id, run in rows:
        found[str(request_id)].append(str(run))
    for request_id, runs in found.items():
        if request_id not in history.starts:
            wrong.append(f"nobody asked for {request_id}")
        elif set(runs) != history.starts[request_id].runs:
            wrong.append(
                f"promise 1: {request_id} is {runs} in the record, answered were {history.starts[request_id].runs}"
            )
    wrong += [f"promise 1: {key} is not in the record" for key in history.starts.keys() - found.keys()]
    positions = {
        str(run): int(str(position)) for run, position in await record.rows("SELECT run_id::text, position FROM run")
    }
    entries: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for run, index, leg, claimant in await record.rows(
        "SELECT run_id::text, index, leg, claimant FROM run_entry ORDER BY run_id, index"
    ):
        entries[str(run)].append((int(str(index)), int(str(leg)), str(claimant)))
    for run, listed in entries.items():
        if [index for index, _, _ in listed] != list(range(1, positions[run] + 1)):
            wrong.append(f"promise 4: entries of {run} are {[i for i, _, _ in listed]} at position {positions[run]}")
        legs = [leg for _, leg, _ in listed]
        if legs != sorted(legs):
            wrong.append(f"promise 4: legs of {run} are recorded in the order {legs}")
        if len({(leg, claimant) for _, leg, claimant in listed}) != len(set(legs)):
            wrong.append(f"promise 4: a leg of {run} has two claimants: {listed}")
    for table, what in (("run_await", "awaits"), ("inbox", "messages")):
        left = await record.rows(
            f"SELECT t.run_id::text FROM {table} t JOIN run r USING (run_id) WHERE r.state IN (4, 5, 6) LIMIT 3"
        )
        if left:
            wrong.append(f"{what} of ended runs are left: {left}")
    open_legs = await record.rows("SELECT run_id::text FROM run WHERE state IN (4, 5, 6) AND leg_nonce IS NOT NULL")
    if open_legs:
        wrong.append(f"ended runs with an open leg: {open_legs}")
    return wrong


async def _executed(history: History, record: Record, world: Outside, ends: dict[str, Run]) -> list[str]:
    """Promise 3: nothing is executed after its outcome was folded; and what a run that succeeded did is complete."""
    wrong: list[str] = []
    last: dict[str, float] = {}
    for run, steps, at in await record.rows(
        "SELECT run_id::text, steps, extract(epoch FROM recorded_at)::float8 FROM run_entry"
    ):
        for step in journal_pb2.JournalEntry.FromString(bytes(steps)).steps:  # type: ignore[arg-type]
            if step.kind == "call":
                key = f"{run}/0{step.step}/{step.iteration}"
                last[key] = max(last.get(key, 0.0), float(str(at)))
    by_run: dict[str, set[str]] = defaultdict(set)
    for key, executions in world.by_key().items():
        run, _, rest = key.partition("/")
        by_run[run].add(rest)
        if "/undo" in key or "compensate" in key:
            continue  # has a key of its own kind; counted below
        if key not in last:
            continue  # of a run that was cancelled or failed meanwhile; those that succeeded are counted below
        late = [e for e in executions if e.came_at > last[key]]
        if late:
            wrong.append(f"promise 3: {key} was executed again {late[0].came_at - last[key]:.3f} s after its fold")
    for request_id, ended in ends.items():
        kind = history.starts[request_id].kind
        made = len(by_run[ended.id])
        complete = ended.state.value == kind.state and not history.starts[request_id].cancel_asked
        if complete and made != kind.calls:
            wrong.append(f"{kind.name} {ended.id} made {made} calls of {kind.calls}: {by_run[ended.id]}")
    return wrong
