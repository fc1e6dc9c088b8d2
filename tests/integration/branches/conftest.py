"""One Flint with three workers and one outside world for all tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from flint_sdk import AsyncFlint
from support.house import House
from support.outside import Outside, outside_world
from support.record_reader import Record
from support.stack import running_stack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world() -> AsyncIterator[Outside]:
    """What branches call, in the event loop of the tests."""
    async with outside_world(delay_s=0.0) as world:
        yield world


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    from flint_bus import Bus

    overrides = {
        "worker": {"slots": 4, "allow_private_addresses": True},
        "scheduler": {"sweep_interval_s": 1.0},
        "limits": {"spread_above": 1, "spread_least": 1},
    }
    async with running_stack(tmp_path_factory.mktemp("house"), workers=3, overrides=overrides) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        bus = await Bus.connect(stack.settings.nats, name="test")
        house = House(stack, flint, Record(stack.settings.postgres), bus)
        try:
            yield house
        finally:
            await house.close()
