"""One set of running Flints for all integration tests of a process; see `support.houses`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.houses import Houses


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def houses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Houses]:
    """The running Flints of this process. A module's `house` asks for its own."""
    shared = Houses(tmp_path_factory.mktemp)
    try:
        yield shared
    finally:
        await shared.close()
