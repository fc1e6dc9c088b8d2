"""`python -m support.soak [--seeds N] [--first SEED] [--length SECONDS] [--faults N]`, run below `tests`.

Trials of N seeds, one after the other. Each prints its faults as they are done and one line when it is judged; one that
failed leaves its folder (the stack's data and logs, and `trial.log`), and the next begins. Exit code 1 when any failed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from support.soak.trial import Verdict, trial

_TRIAL_S = 600.0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m support.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many trials")
    parser.add_argument("--first", type=int, default=None, help="the first seed, which is drawn unless it is given")
    parser.add_argument("--length", type=float, default=20.0, help="seconds in which faults begin, of each trial")
    parser.add_argument("--faults", type=int, default=10, help="faults of each trial")
    asked = parser.parse_args()
    first = random.randrange(1_000_000) if asked.first is None else asked.first
    failed: list[int] = []
    began = time.monotonic()
    for number, seed in enumerate(range(first, first + asked.seeds), 1):
        folder = Path(tempfile.mkdtemp(prefix=f"flint-soak-{seed}-"))
        trial_began = time.monotonic()
        verdict = _tried(seed, folder, asked.length, asked.faults)
        outcome = "passed" if not verdict.wrong else f"FAILED, {len(verdict.wrong)} wrong"
        for problem in verdict.wrong:
            print(f"seed {seed}: {problem}", flush=True)
        took_s = time.monotonic() - trial_began
        print(f"seed {seed} {outcome} in {took_s:.0f} s ({number} of {asked.seeds}): {verdict.told}", flush=True)
        if verdict.wrong:
            failed.append(seed)
            again = f"--seeds 1 --first {seed} --length {asked.length:g} --faults {asked.faults}"
            print(f"seed {seed}: its logs are in {folder}; again: python -m support.soak {again}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{asked.seeds - len(failed)} of {asked.seeds} seeds passed, from {first}, in {time.monotonic() - began:.0f} s"
        + (f"; failed: {failed}" if failed else "")
    )
    return 1 if failed else 0


def _tried(seed: int, folder: Path, length_s: float, faults: int) -> Verdict:
    """The trial's verdict; a trial that could not be carried through has failed."""
    with (folder / "trial.log").open("w") as log:

        def tell(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        async def bounded() -> Verdict:
            async with asyncio.timeout(_TRIAL_S):
                return await trial(seed, folder, tell, length_s=length_s, faults=faults)

        try:
            verdict = asyncio.run(bounded())
        except Exception as error:  # whatever it is: the other seeds are tried all the same
            tell(traceback.format_exc())
            verdict = Verdict([f"the trial broke off: {type(error).__name__}: {error}"])
        for problem in verdict.wrong:
            print(problem, file=log)
        return verdict


if __name__ == "__main__":
    sys.exit(main())
