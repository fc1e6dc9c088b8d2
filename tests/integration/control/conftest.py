"""One stack for the folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.house import House, open_house
from support.outside import Outside, outside_world


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(
        tmp_path_factory.mktemp("house"),
        scheduler={"sweep_interval_s": 1.0},
        worker={"inline_wait_s": 0.5},
        retention={"sweep_s": 0.5},
    ) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="package")
async def world() -> AsyncIterator[Outside]:
    async with outside_world(delay_s=0) as world:
        yield world
