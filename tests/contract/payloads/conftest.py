"""A real PostgreSQL and a real NATS, with a desk that answers for the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus
from flint_bus.payloads import PayloadClient
from flint_ops.config import NatsSettings, PayloadSettings, PostgresSettings
from flint_scheduler.payloads import PayloadDesk
from flint_store.engine import create_engine
from flint_store.migrate import upgrade
from support.nats_server import NatsServer
from support.postgres import Server, postgres_server
from support.record import GROUPS


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as started:
        yield started


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    started = NatsServer(tmp_path_factory.mktemp("nats"))
    started.start()
    yield started
    started.kill()


@dataclass
class Shop:
    """A client, the desk behind it, and the database behind that."""

    bus: Bus
    engine: AsyncEngine
    client: PayloadClient
    desk: PayloadDesk


@pytest.fixture
def settings() -> PayloadSettings:
    return PayloadSettings(unused_s=60)


@pytest.fixture
async def shop(server: Server, nats: NatsServer, settings: PayloadSettings) -> AsyncIterator[Shop]:
    dsn = server.create_database()
    upgrade(dsn, GROUPS)
    engine = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "reading")
    desks = await Bus.connect(NatsSettings(urls=[nats.url]), name="desk")
    bus = await Bus.connect(NatsSettings(urls=[nats.url]), name="client")
    desk = PayloadDesk(desks, engine, settings)
    await desk.open()
    yield Shop(bus, engine, PayloadClient(bus, 8 * 2**20), desk)
    await bus.close()
    await desks.close()
    await engine.dispose()
