"""`python -m flint_elastic.simulate`: cost against waiting, of days that are made up or recorded.

    python -m flint_elastic.simulate --day diurnal --startup-s 30
    python -m flint_elastic.simulate --recorded legs.csv --slots 8 --maximum 200
    python -m flint_elastic.simulate --report docs/elastic.md --image docs/images/elastic.png

A recording is a CSV file with a heading that has `ready_at` (epoch seconds) and `held_s` (seconds that the leg held
its slot); what lies before its last 24 hours is what the forecast learns from.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from flint_elastic.history import ArrivalHistory
from flint_elastic.policy import PolicyInvalid, PoolPolicy
from flint_elastic.simulation.bound import best_possible
from flint_elastic.simulation.controllers import Controller, Flint, QueueLength, Utilisation
from flint_elastic.simulation.days import DAYS, Day, recorded_day
from flint_elastic.simulation.engine import Outcome, play
from flint_elastic.simulation.report import Played, draw, table
from flint_elastic.training import train

__all__ = ["main", "play_all"]

_BEGIN: Final = "<!-- simulation: begin -->\n"
_END: Final = "<!-- simulation: end -->\n"


def play_all(day: Day, policy: PoolPolicy, interval_s: float) -> Played:
    """A day with each of those who decide, and the best possible."""
    trained = train(day.history)
    learned = ArrivalHistory.from_json(day.history.to_json())
    controllers: dict[str, Controller] = {
        "Flint": Flint(policy, trained.forecast, trained.tracker, learned),
        "Flint, no forecast": Flint(policy),
        "queue length": QueueLength(policy),
        "utilisation": Utilisation(policy),
    }
    outcomes: dict[str, Outcome] = {
        name: play(day, controller, policy.slots_per_worker, policy.startup_s, interval_s)
        for name, controller in controllers.items()
    }
    bound = best_possible(day, policy.slots_per_worker, policy.startup_s, policy.target_wait_s)
    return Played(day, outcomes, bound)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with a message for what it cannot read."""
    given = _parser().parse_args(arguments)
    try:
        policy = PoolPolicy(
            minimum=given.minimum,
            maximum=given.maximum,
            slots_per_worker=given.slots,
            buffer_slots=given.buffer,
            target_wait_s=given.target_wait_s,
            idle_before_end_s=given.idle_s,
            startup_s=given.startup_s,
        )
        days = [_recorded(path) for path in given.recorded]
    except (OSError, PolicyInvalid, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    names = given.day or ([] if days else list(DAYS))
    days.extend(DAYS[name](given.seed) for name in names)
    played = _played(days, policy, given.interval_s, min(len(days), given.processes))
    text = (
        f"Workers of {policy.slots_per_worker} slots that start in {policy.startup_s:g} s; target: 95 of 100 legs "
        f"begin within {policy.target_wait_s:g} s; idle time {policy.idle_before_end_s:g} s; a decision every "
        f"{given.interval_s:g} s; seed {given.seed}.\n\n{table(played, policy)}"
    )
    sys.stdout.write(text)
    if given.image:
        Path(given.image).parent.mkdir(parents=True, exist_ok=True)
        draw(played, policy, given.image)
    if given.report:
        _write(Path(given.report), text)
    return 0


def _played(days: list[Day], policy: PoolPolicy, interval_s: float, processes: int) -> list[Played]:
    """Days do not touch each other: one process each, so many at a time."""
    if processes <= 1:
        return [play_all(day, policy, interval_s) for day in days]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(play_all, days, [policy] * len(days), [interval_s] * len(days)))


def _recorded(path: str) -> Day:
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"ready_at", "held_s"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}")
        return recorded_day(Path(path).stem, ((float(row["ready_at"]), float(row["held_s"])) for row in rows))


def _write(path: Path, text: str) -> None:
    """Between the marks of a page, or as a page of its own."""
    page = path.read_text(encoding="utf-8") if path.exists() else _BEGIN + _END
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        before, after = page, ""
    path.write_text(before + _BEGIN + text + _END + after, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flint_elastic.simulate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--day", action="append", choices=sorted(DAYS), help="a made-up day; repeatable; default: all")
    parser.add_argument("--recorded", action="append", default=[], metavar="CSV", help="a recording; repeatable")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slots", type=int, default=4, help="of a worker")
    parser.add_argument("--minimum", type=int, default=0, help="workers")
    parser.add_argument("--maximum", type=int, default=60, help="workers")
    parser.add_argument("--buffer", type=int, default=0, help="free slots kept warm")
    parser.add_argument("--startup-s", type=float, default=30.0, help="of a worker")
    parser.add_argument("--target-wait-s", type=float, default=2.0)
    parser.add_argument("--idle-s", type=float, default=300.0, help="before a worker is ended")
    parser.add_argument("--interval-s", type=float, default=5.0, help="between decisions")
    parser.add_argument("--processes", type=int, default=2, help="days that are played at the same time")
    parser.add_argument("--report", metavar="FILE", help="Markdown page whose simulation part is written anew")
    parser.add_argument("--image", metavar="FILE", help="PNG or SVG; needs matplotlib")
    return parser


if __name__ == "__main__":
    sys.exit(main())
