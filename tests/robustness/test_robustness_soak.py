"""A few short trials of the soak, each with a random seed: mixed traffic under random faults, judged afterwards.

FLINT_SOAK_SEED fixes the first seed. `make soak` runs many, and longer ones.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support.soak.trial import trial

pytestmark = pytest.mark.robustness

LENGTH_S, FAULTS, TRIALS = 7.0, 5, 3
FIRST = int(os.environ.get("FLINT_SOAK_SEED") or random.SystemRandom().randrange(1_000_000))


@pytest.mark.parametrize("number", range(TRIALS))
async def test_promises_hold_under_random_faults(number: int, tmp_path: Path) -> None:
    seed = FIRST + number
    again = f"cd tests && python -m support.soak --seeds 1 --first {seed} --length {LENGTH_S:g} --faults {FAULTS}"
    print(f"seed {seed}; again: {again}")
    verdict = await trial(seed, tmp_path, print, length_s=LENGTH_S, faults=FAULTS)
    assert not verdict.wrong, "\n".join([*verdict.wrong, again])
