"""Registries against a real etcd, a real NATS and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flint_coord import Coord
from flint_ops.config import (
    ClusterSettings,
    EtcdSettings,
    NatsSettings,
    PostgresSettings,
    RegistrySettings,
    Settings,
)
from flint_ops.lifecycle import Lifecycle
from flint_registry.app import serve
from flint_store import migrate
from support.etcd_server import EtcdServer, free_ports
from support.nats_server import NatsServer
from support.postgres import Server, postgres_server
from support.registry_client import TOKEN, RegistryClient


class Registry:
    """One replica in this process, and a client of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle("registry", settings.registry.id)
        self.client = RegistryClient(settings.registry.listen)
        self._task = asyncio.create_task(serve(settings, self.lifecycle))

    async def stop(self) -> None:
        self.lifecycle.stop()
        async with asyncio.timeout(60):
            await self._task
        assert self.lifecycle.failure is None
        await self.client.close()


Start = Callable[..., Registry]
Eventually = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def settings(postgres: Server, nats: NatsServer, etcd: EtcdServer) -> Settings:
    dsn = postgres.create_database()
    migrate.upgrade(dsn, 4)
    return Settings(
        cluster=ClusterSettings(name=f"test-{uuid.uuid4().hex[:8]}", internal_token=TOKEN, shard_groups=4),
        postgres=PostgresSettings(dsn=dsn),
        nats=NatsSettings(urls=[nats.url]),
        etcd=EtcdSettings(endpoints=[etcd.endpoint], lease_ttl_s=2),
    )


@pytest.fixture
async def start(settings: Settings) -> AsyncIterator[Start]:
    """Starts a replica: `start("registry-1", lease_ttl_s=2)`."""
    async with contextlib.AsyncExitStack() as stack:

        def start_one(name: str, changed: Settings | None = None, **fields: Any) -> Registry:
            listen, ops = (f"127.0.0.1:{port}" for port in free_ports(2))
            fields.setdefault("lease_ttl_s", 30)  # nobody is lost because a busy machine paused
            section = RegistrySettings(id=name, listen=listen, ops_listen=ops, **fields)
            registry = Registry((changed or settings).model_copy(update={"registry": section}))
            stack.push_async_callback(registry.stop)
            return registry

        yield start_one


@pytest.fixture
async def coord(settings: Settings) -> AsyncIterator[Coord]:
    made = await Coord.connect(settings.etcd, cluster=settings.cluster.name)
    yield made
    await made.close()


@pytest.fixture
def eventually() -> Eventually:
    """Waits until an asynchronous condition holds, at most a minute."""

    async def wait(condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(60):
            while not await condition():
                await asyncio.sleep(0.02)

    return wait
