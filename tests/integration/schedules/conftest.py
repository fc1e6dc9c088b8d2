"""Schedules on the shared Flint."""

from __future__ import annotations

import pytest_asyncio

from support.house import House
from support.houses import Houses


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(houses: Houses) -> House:
    return await houses.common()
