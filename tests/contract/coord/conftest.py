"""A real etcd per test, and a Coord on it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from flint_coord import Coord
from support.etcd_server import EtcdServer


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def cluster() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def coord(etcd: EtcdServer, cluster: str) -> AsyncIterator[Coord]:
    made = await Coord.connect(etcd.settings(), cluster=cluster)
    yield made
    await made.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[bool] | bool]], Awaitable[None]]:
    """Waits until a condition holds, at most 60 seconds."""

    async def wait(condition: Callable[[], Awaitable[bool] | bool], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while True:
                outcome = condition()
                if isinstance(outcome, Awaitable):
                    outcome = await outcome
                if outcome:
                    return
                await asyncio.sleep(0.02)

    return wait
