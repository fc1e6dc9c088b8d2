"""A thousand random workflows: the same on the core, on the engine, and on the engine while workers are killed.

FLINT_RANDOM_SEED chooses the workflows (`chosen_seed`); each failure tells the command that shows its workflow.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.random_runs import Batch, Killer
from support.random_workflows import chosen_seed, generate_batch
from support.random_world import random_world
from support.stack import running_stack

pytestmark = [pytest.mark.robustness, pytest.mark.timeout(400)]

DEFINITIONS, INPUTS = 250, 4
SETTINGS = {"registry": {"lease_ttl_s": 2, "heartbeat_interval_s": 0.5}, "limits": {"leg_losses": 1_000}}


async def test_random_workflows(tmp_path: Path) -> None:
    seed = chosen_seed(7)
    began = time.monotonic()

    def tell(what: object) -> None:
        print(f"seed {seed}, {time.monotonic() - began:.1f} s: {what}")

    async with random_world() as world, running_stack(tmp_path, workers=4, overrides=SETTINGS) as stack:
        batch = Batch(stack, world, generate_batch(seed, DEFINITIONS), INPUTS)
        try:
            await batch.apply()
            tell("applied")
            calm = await batch.run("calm")
            tell(calm.states)
            wrong = await calm.differences(attempts=True)
            tell("compared")
            assert not wrong, "\n".join([f"seed {seed}: {len(wrong)} differ", *wrong[:5]])
            async with Killer(stack, seed) as killer:
                shaken = await batch.run("shaken", wave=100)
            tell(f"{shaken.states}, killed {killer.killed}")
            wrong = await shaken.differences(attempts=False) + await batch.late()
            tell("compared")
            assert not wrong, "\n".join([f"seed {seed}: {len(wrong)} differ", *wrong[:5]])
            assert killer.killed["worker"] >= 5
            assert killer.killed["scheduler"] == 1
        finally:
            await batch.close()
