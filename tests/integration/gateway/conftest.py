"""One Flint for all tests of this folder.

Tests share it, so each makes workflows of its own and leaves no run behind that holds a slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from support.house import House
from support.houses import Houses
from support.outside import Outside, outside_world

SLOTS = 32


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses) -> House:
    return await houses.get("gateway", worker={"slots": SLOTS}, identity={"cache_ttl_s": 1.0})


@pytest_asyncio.fixture(loop_scope="session")
async def world() -> AsyncIterator[Outside]:
    """What steps call; in the event loop of the tests."""
    async with outside_world(delay_s=0) as world:
        yield world
