"""`python -m support.soak [--seeds N] [--first SEED] [--length SECONDS] [--faults N]`, run below `tests`."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from support.soak.trial import trial


def main() -> int:
    """Trials of many seeds, one after the other; the exit code says whether all held."""
    parser = argparse.ArgumentParser(prog="python -m support.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many trials")
    parser.add_argument("--first", type=int, default=None, help="the first seed, which is drawn unless it is given")
    parser.add_argument("--length", type=float, default=20.0, help="seconds in which faults begin, of each trial")
    parser.add_argument("--faults", type=int, default=10, help="faults of each trial")
    asked = parser.parse_args()
    first = random.randrange(1_000_000) if asked.first is None else asked.first
    failed: list[int] = []
    for seed in range(first, first + asked.seeds):
        folder = Path(tempfile.mkdtemp(prefix=f"flint-soak-{seed}-"))
        wrong = asyncio.run(
            trial(seed, folder, lambda line: print(line, flush=True), length_s=asked.length, faults=asked.faults)
        )
        for problem in wrong:
            print(f"seed {seed}: {problem}", flush=True)
        if wrong:
            failed.append(seed)
            print(f"seed {seed} FAILED; its logs are in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    print(
        f"{asked.seeds - len(failed)} of {asked.seeds} seeds passed, from {first}"
        + (f"; not {failed}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
