"""`make bench-full`: the long workloads, unattended: W6 a mixed day, W7 recovery, W8 a long history.

    python benchmarks/full.py [--only w6,w7,w8] [--again] [--minutes 10] [--queued 10000] [--waiting 10000]
                              [--recovered 1000000] [--finished 10000000] [--size 1.0] [--no-restate]
                              [--quiet-below LOAD] [--folder DIR] [--results FILE] [--show]

Each workload runs on a stack of its own below a temporary folder in DIR (the system's unless told), which is removed
when it is over, and ends by itself: W6 within twice its minutes and 10 more, W7 within 45 minutes, W8 within 20
minutes and 15 for each million of runs. What it found is written to FILE at once (.build/bench-full.json unless told).
What FILE holds already, measured to the end with the same options, is not measured again: so the command goes on where
it was interrupted. `--only` and `--again` measure anew; `--show` only prints what is there. Exit code 1: a target was
missed, or something could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import uvloop
from rich.console import Console

from heavy.gauges import quiet
from heavy.history import long_history
from heavy.mixed import mixed_day
from heavy.recovery import recovery
from heavy.results import Outcome, Results

RESULTS = Path(__file__).parents[1] / ".build" / "bench-full.json"
NAMES = ("w6", "w7", "w8")

Work = Callable[[Path, Outcome], Awaitable[None]]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="The long workloads: a mixed day, recovery, a long history.")
    parser.add_argument("--only", default="", help="some of w6, w7, w8, separated by commas: measured anew")
    parser.add_argument("--again", action="store_true", help="measure anew what is known already")
    parser.add_argument("--minutes", type=float, default=10.0, help="W6: how long each engine is loaded")
    parser.add_argument("--no-restate", action="store_true", help="W6: Flint alone")
    parser.add_argument("--queued", type=int, default=10_000, help="W7: runs in the queue when the owner is killed")
    parser.add_argument("--recovered", type=int, default=1_000_000, help="W7: ended runs when everything is killed")
    parser.add_argument("--waiting", type=int, default=10_000, help="W7: waiting runs then")
    parser.add_argument("--finished", type=int, default=10_000_000, help="W8: ended runs")
    parser.add_argument("--size", type=float, default=1.0, help="W8: share of the usual number of starts and searches")
    parser.add_argument(
        "--drop-minutes", type=float, default=45.0, help="W8: time that retention has at most; 0: left out"
    )
    parser.add_argument(
        "--quiet-below", type=float, default=None, help="begin only while the machine's load is below it"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where stacks keep their data meanwhile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print what was measured before, and nothing else")
    asked = parser.parse_args()
    asked.names = [name for name in asked.only.split(",") if name] or list(NAMES)
    unknown = set(asked.names) - set(NAMES)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    return asked


def plans(asked: argparse.Namespace, console: Console) -> dict[str, tuple[dict[str, Any], float, Work]]:
    """Of each workload: its options, the seconds that it has, and what to do."""
    restate = not asked.no_restate

    async def w6(folder: Path, outcome: Outcome) -> None:
        await mixed_day(console, folder, outcome, minutes=asked.minutes, restate=restate)

    async def w7(folder: Path, outcome: Outcome) -> None:
        await recovery(console, folder, outcome, queued=asked.queued, finished=asked.recovered, waiting=asked.waiting)

    async def w8(folder: Path, outcome: Outcome) -> None:
        await long_history(
            console,
            folder,
            outcome,
            finished=asked.finished,
            share=asked.size,
            drop_minutes=asked.drop_minutes,
            load=asked.quiet_below,
        )

    return {
        "w6": ({"minutes": asked.minutes, "restate": restate}, 60 * (2 * asked.minutes + 10), w6),
        "w7": ({"queued": asked.queued, "ended": asked.recovered, "waiting": asked.waiting}, 60 * 45, w7),
        "w8": ({"ended": asked.finished, "size": asked.size}, 60 * (20 + 15 * asked.finished / 1_000_000), w8),
    }


async def measure(asked: argparse.Namespace, console: Console, results: Results) -> None:
    """All that is asked for and not known; one that fails does not keep the next ones from being measured."""
    for name, (options, limit_s, work) in plans(asked, console).items():
        if name not in asked.names:
            continue
        if not (asked.only or asked.again) and results.has(name, options):
            console.print(f"{name} was measured before; --again measures it anew")
            continue
        console.print(f"{name} begins at {_now()}; it ends within {limit_s / 60:.0f} minutes")
        await quiet(console, asked.quiet_below)
        outcome, began = Outcome(options), time.monotonic()
        try:
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                async with asyncio.timeout(limit_s):
                    await work(Path(folder), outcome)
        except TimeoutError:
            outcome.failed = f"it was not over within {limit_s / 60:.0f} minutes, or something in it took too long"
        except Exception as error:
            outcome.failed = f"{type(error).__name__}: {error}"[:2000]
            console.print_exception()
        outcome.took_s = time.monotonic() - began
        results.put(name, outcome, _now())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def main() -> int:
    """Measure and print."""
    asked = arguments()
    console = Console(width=150)
    results = Results(asked.results)
    if not asked.show:
        uvloop.run(measure(asked, console, results))
    good = results.show(console, asked.names)
    console.print(f"all figures: {asked.results}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
