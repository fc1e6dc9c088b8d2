"""A real PostgreSQL for the suite; a migrated database of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_ops.config import PostgresSettings
from flint_store.engine import create_engine
from flint_store.migrate import upgrade
from support.postgres import Server, postgres_server
from support.record import GROUPS


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with postgres_server() as started:
        yield started


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of a migrated database to copy."""
    dsn = server.create_database()
    upgrade(dsn, GROUPS)
    return dsn.rsplit("/", 1)[1]


@pytest.fixture
def empty_dsn(server: Server) -> str:
    """A database without a schema."""
    return server.create_database()


@pytest.fixture
def dsn(server: Server, template: str) -> str:
    """A migrated database."""
    return server.create_database(template)


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(dsn)), "reading")
    yield created
    await created.dispose()
