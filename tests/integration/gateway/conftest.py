"""One Flint for all tests of this folder: real processes, started once.

Tests share it, so each makes workflows of its own and leaves no run behind that holds a slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.house import House, open_house
from support.outside import Outside, outside_world

SLOTS = 32


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(
        tmp_path_factory.mktemp("house"), worker={"slots": SLOTS}, identity={"cache_ttl_s": 1.0}
    ) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="session")
async def world() -> AsyncIterator[Outside]:
    """What steps call; in the event loop of the tests."""
    async with outside_world(delay_s=0) as world:
        yield world
