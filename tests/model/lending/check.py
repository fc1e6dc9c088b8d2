"""Explore the lending' scenarios from the command line: `python -m model.lending.check [NAME ...]`."""

from __future__ import annotations

import sys

from model.lending.moves import LendingModel
from model.lending.scenarios import COMPLETE, FULL
from model.search import explore

__all__ = ["main"]


def main(names: list[str]) -> int:
    """Explore; 1 when something was violated."""
    known = COMPLETE | FULL
    failed = False
    for name in names or list(known):
        result = explore(LendingModel(**known[name]), limit=10_000_000)
        print(
            f"{name:20s} {result.states:>9} states {result.edges:>10} steps {result.seconds:6.1f} s  {result.verdict}"
        )
        for number, label in enumerate(result.trace, 1):
            print(f"  {number:3d} {label}")
        failed |= bool(result.violation)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
