"""Connections to PostgreSQL.

Engines are SQLAlchemy's asyncio engines on psycopg, in autocommit: nearly every unit of work of Flint's is one
statement, which is atomic by itself and costs one round trip. What needs a transaction opens one on its connection, and
`idle_in_transaction_session_timeout` bounds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from sqlalchemy import Row, TextClause
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from flint_store import columns
from flint_store.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from flint_ops.config import PostgresSettings

__all__ = ["Purpose", "connected", "create_engine", "database_url", "fetch", "transaction", "write"]

Purpose = Literal["lane", "reading"]
"""`lane`: the owners' hot statements, whose plans must stay on indexes however the statistics stand after a burst.
`reading`: everything else; the planner is free."""

CONNECT_TIMEOUT_S = 5
IDLE_IN_TRANSACTION_MS = 2_000
POOL_TIMEOUT_S = 5.0
TCP_USER_TIMEOUT_MS = 10_000
GRACE_S = 3.0
"""How much longer than the server's statement timeout a caller waits before it takes the connection for dead."""

_SESSION = {
    "application_name": "flint",
    "timezone": "UTC",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
    "jit": "off",
}
# UPDATE … FROM unnest(…) is otherwise planned with a sequential scan or a hash join on a growing table.
_LANE = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # The statements are prepared once for a connection; planning them anew cost more than executing them.
    "plan_cache_mode": "force_generic_plan",
}


def database_url(dsn: str) -> URL:
    """The configured `postgresql://…` as a URL for SQLAlchemy with psycopg. Raises `StoreError` when it is not one."""
    try:
        url = make_url(dsn)
    except ArgumentError as error:
        raise StoreError("postgres.dsn is not a URL such as postgresql://user:password@host:port/database") from error
    if url.get_backend_name() != "postgresql":
        raise StoreError(f"postgres.dsn names the scheme {url.drivername!r}; it must be postgresql://")
    return url.set(drivername="postgresql+psycopg")


def create_engine(settings: PostgresSettings, purpose: Purpose, *, pool_size: int | None = None) -> AsyncEngine:
    """An engine for one event loop; close it with `await engine.dispose()`. Connects lazily.

    `pool_size` defaults to `settings.pool_size`; no more connections than that are opened, and a caller that gets none
    within 5 s fails with `StoreUnavailable`.
    """
    columns.register(psycopg.adapters)  # SQLAlchemy's dialect begins with these
    session = _SESSION | {"statement_timeout": str(settings.statement_timeout_ms)}
    if purpose == "lane":
        session |= _LANE
    return create_async_engine(
        database_url(settings.dsn.get_secret_value()),
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size or settings.pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_use_lifo=True,
        pool_reset_on_return=None,  # in autocommit there is nothing to roll back: saves a round trip
        hide_parameters=True,  # payloads and hashes do not belong into logs
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
            "prepare_threshold": 1 if purpose == "lane" else 3,
            "options": " ".join(f"-c {name}={_escape(value)}" for name, value in session.items()),
        },
        execution_options={"flint_deadline_s": settings.statement_timeout_ms / 1000 + GRACE_S},
    )


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One connection with a deadline on everything done with it; what PostgreSQL cannot do now is `StoreUnavailable`.

    The deadline is the engine's statement timeout plus a few seconds, so a peer that is silent (not even resetting)
    blocks nobody. Errors that are not about reaching PostgreSQL pass unchanged.
    """
    deadline_s = engine.sync_engine.get_execution_options().get("flint_deadline_s")
    try:
        async with asyncio.timeout(deadline_s), engine.connect() as connection:
            yield connection
    except TimeoutError as error:
        raise StoreUnavailable(f"PostgreSQL did not answer within {deadline_s} s") from error
    except PoolTimeoutError as error:
        raise StoreUnavailable("all connections to PostgreSQL are in use") from error
    except (OperationalError, InterfaceError) as error:
        raise StoreUnavailable(f"PostgreSQL: {_reason(error)}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StoreUnavailable(f"PostgreSQL: {_reason(error)}") from error
        raise


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Several statements that happen together or not at all, at READ COMMITTED; the deadline is that of `connected`.

    When the commit's answer is lost (`StoreUnavailable`) they may have happened.
    """
    async with connected(engine) as connection:
        connection = await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            yield connection


async def fetch(
    engine: AsyncEngine, statement: TextClause, parameters: Mapping[str, Any]
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Rows of one reading statement. Tried once more when the connection had gone stale (a restart of PostgreSQL).

    Raises `StoreUnavailable`. Not for writes: a write that lost its connection may have happened.
    """
    try:
        return await write(engine, statement, parameters)
    except StoreUnavailable as error:
        cause = error.__cause__
        if not isinstance(cause, DBAPIError) or not cause.connection_invalidated:
            raise
    return await write(engine, statement, parameters)


async def write(
    engine: AsyncEngine, statement: TextClause, parameters: Mapping[str, Any]
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Rows returned by one statement, executed once. Raises `StoreUnavailable`, after which it may have happened."""
    async with connected(engine) as connection:
        result = await connection.execute(statement, parameters)
        return result.fetchall()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _reason(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split()) or type(error.orig).__name__
