"""One whole Flint without fixed workers, for all tests of the folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from flint_bus import Bus
from flint_sdk import AsyncFlint
from support.house import House
from support.record_reader import Record
from support.stack import running_stack

LEASE_S = 60
SLOTS = 10

SETTINGS = {
    "registry": {"lease_ttl_s": LEASE_S, "heartbeat_interval_s": 0.5},
    "fleet": {
        "provisioner": "local",
        "decide_s": 0.3,
        "evaluate_s": 2.0,
        "defaults": {"maximum_workers": 4, "idle_s": 3.0, "cooldown_s": 0.0, "worker_slots": SLOTS},
        "pools": {"watched": {"mode": "shadow"}},
        "quarantine": {"window_s": 30.0, "minimum_calls": 20, "slowness": 100.0, "quarantine_s": 3600.0},
    },
    # A wait keeps its slot and its leg.
    "worker": {"slots": SLOTS, "inline_wait_s": 300.0, "drain_s": 20.0},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with running_stack(tmp_path_factory.mktemp("elastic"), workers=0, overrides=SETTINGS) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        bus = await Bus.connect(stack.settings.nats, name="test")
        house = House(stack, flint, Record(stack.settings.postgres), bus)
        try:
            yield house
        finally:
            await house.close()
