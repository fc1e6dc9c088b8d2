"""Takeover: how long shard groups are without an owner when a scheduler leaves, dies or comes, and what clients notice.

    python benchmarks/takeover.py [--rounds N] [--callers N] [--sleeping N]      3, 8 and 0 unless told

Everything is real and on this machine, the client too: three schedulers, two workers, one gateway. Meanwhile callers
start runs, read them and watch them to their end through the client library. A group is without an owner from
when its owner stops to serve it (or is killed) until another one serves it, by the logs of the schedulers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from flint_sdk import AsyncFlint, StartRequest
from support.callers import Callers, Seen
from support.record_reader import Record
from support.stack import RunningStack, eventually, running_stack

VICTIM = "scheduler-1"
PAUSE_S = 0.05
HEAD = "document: {{dsl: 1.0.3, namespace: default, name: {0}, version: 1.0.0}}\n"
QUICK = HEAD.format("quick") + "do: [{a: {set: {n: 1}}}, {b: {wait: {milliseconds: 20}}}, {c: {set: {n: 2}}}]\n"
SLEEP = HEAD.format("asleep") + "do: [{nap: {wait: {hours: 1}}}]\n"


def told(stack: RunningStack, since: float) -> list[tuple[float, str, list[int]]]:
    """(moment, event, groups) of what the schedulers logged about groups since then."""
    found = []
    for number in (1, 2, 3):
        for line in stack.stack.layout.log_file(f"scheduler-{number}").read_text(errors="replace").splitlines():
            if '"groups_' not in line:
                continue
            entry = json.loads(line)
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            if at >= since:
                found.append((at, entry["event"], entry["groups"]))
    return sorted(found)


def gaps(events: list[tuple[float, str, list[int]]], lost: dict[int, float]) -> dict[int, float]:
    """How long each group was without an owner. `lost`: groups that lost it without a word, and when."""
    released, found = dict(lost), {}
    for at, event, groups in events:
        for group in groups:
            if event == "groups_released":
                released[group] = at
            elif event == "groups_taken" and group in released:
                found[group] = at - released.pop(group)
    return found


async def settled(record: Record, names: set[str]) -> None:
    """Every one of these schedulers, and nobody else, owns groups."""

    async def look() -> bool:
        owned = [await record.groups_of(name) for name in sorted(names)]
        sizes = [len(groups) for groups in owned]
        return sum(sizes) == len(await record.terms()) and max(sizes) - min(sizes) <= 1

    await eventually(look, timeout_s=60)


async def measure(
    stack: RunningStack,
    record: Record,
    flint: AsyncFlint,
    act: Callable[[], Awaitable[object]],
    names: set[str],
    *,
    callers: int,
    killed: bool = False,
) -> tuple[dict[int, float], Seen]:
    """One round: traffic, then `act`, until all of `names` own groups and a second longer."""
    mine = await record.groups_of(VICTIM)
    traffic = Callers(flint, "quick", callers, PAUSE_S)
    await eventually(lambda: len(traffic.seen.watches) > 10 * callers, timeout_s=60)
    begun = time.time()
    await act()
    await settled(record, names)
    count = len(traffic.seen.watches)
    await eventually(lambda: len(traffic.seen.watches) > count + 10 * callers, timeout_s=60)
    seen = await traffic.leave()
    return gaps(told(stack, begun), dict.fromkeys(mine, begun) if killed else {}), seen


def row(table: Table, case: str, rounds: list[tuple[dict[int, float], Seen]]) -> None:
    """One line: all rounds of a case together."""
    times = [gap * 1000 for found, _ in rounds for gap in found.values()]
    starts = [s * 1000 for _, seen in rounds for s in seen.starts]
    reads = [s * 1000 for _, seen in rounds for s in seen.reads]
    ends = [s * 1000 for _, seen in rounds for s in seen.watches]
    failed = [why for _, seen in rounds for why in seen.failed]
    calls = len(starts) + len(reads) + len(ends) + len(failed)
    table.add_row(
        case,
        str(len(times)),
        f"{statistics.median(times):.0f} / {max(times):.0f}" if times else "none moved",
        f"{len(failed)} of {calls}",
        f"{statistics.median(starts):.1f} / {max(starts):.0f}",
        f"{max(reads):.0f}",
        f"{max(ends):.0f}",
    )
    for why in failed[:3]:
        table.add_row("", "", "", why, "", "", "")


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--sleeping", type=int, default=0)
    options = parser.parse_args()
    table = Table("case", "groups", "ownerless ms", "failed", "start ms", "read ms", "watch ms", title="Takeover")
    table.caption = "ownerless, start: median / most; read, watch to the end: most"
    cases: dict[str, list[tuple[dict[int, float], Seen]]] = {"SIGTERM": [], "comes back": [], "kill -9": []}
    with tempfile.TemporaryDirectory() as folder:
        async with running_stack(Path(folder), schedulers=3) as stack:
            flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
            record = Record(stack.settings.postgres)
            try:
                await flint.apply(QUICK)
                await flint.apply(SLEEP)
                for at in range(0, options.sleeping, 1000):
                    size = min(1000, options.sleeping - at)
                    await flint.start_many([StartRequest("asleep", {}) for _ in range(size)])
                everybody = {"scheduler-1", "scheduler-2", "scheduler-3"}
                others = everybody - {VICTIM}
                for _ in range(options.rounds):
                    await settled(record, everybody)
                    cases["SIGTERM"].append(
                        await measure(stack, record, flint, lambda: stack.stop(VICTIM), others, callers=options.callers)
                    )
                    cases["comes back"].append(
                        await measure(
                            stack, record, flint, lambda: stack.start(VICTIM), everybody, callers=options.callers
                        )
                    )
                    cases["kill -9"].append(
                        await measure(
                            stack,
                            record,
                            flint,
                            lambda: stack.kill(VICTIM, hold=True),
                            others,
                            callers=options.callers,
                            killed=True,
                        )
                    )
                    await stack.start(VICTIM)
            finally:
                await flint.close()
                await record.close()
    for case, rounds in cases.items():
        row(table, case, rounds)
    Console(width=110).print(table)


if __name__ == "__main__":
    uvloop.run(main())
