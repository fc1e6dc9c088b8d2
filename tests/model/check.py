"""Explore scenarios from the command line.

python -m model.check                   those that run with the tests
python -m model.check NAME ...          these, with the trace of a violation
python -m model.check --full NAME ...   large ones; `--full all` for every one of them
"""

from __future__ import annotations

import argparse
import sys

from model.scenarios import BROKEN, COMPLETE, FULL, Scenario
from model.search import explore

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Explore; 1 when a scenario did not end as it must."""
    parser = argparse.ArgumentParser(prog="model.check", description="Explore the model of Flint's protocol.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true", help="the large scenarios")
    parser.add_argument("--limit", type=int, default=20_000_000, help="states after which to give up")
    options = parser.parse_args(arguments)
    known: dict[str, Scenario] = FULL if options.full else COMPLETE | {n: s for n, (_, s) in BROKEN.items()}
    names = list(known) if options.names in ([], ["all"]) else options.names
    if missing := [n for n in names if n not in known]:
        parser.error(f"no such scenario: {', '.join(missing)}; there are {', '.join(known)}")
    failed = False
    for name in names:
        scenario = known[name]
        result = explore(scenario.model(), limit=options.limit)
        print(
            f"{name:32s} faults<={scenario.faults} {result.states:>9} states {result.edges:>10} steps "
            f"{result.seconds:7.1f} s  {result.verdict}",
            flush=True,
        )
        expected = BROKEN[name][0] if not options.full and name in BROKEN else ""
        failed |= result.violation[:2] != expected
        if options.names and result.trace:
            for number, label in enumerate(result.trace, 1):
                print(f"  {number:3d} {label}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
