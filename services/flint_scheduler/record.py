"""The scheduler's connections to PostgreSQL: one kept open for each lane, and a pool for reads.

Lane connections are in autocommit and forbid plans that do not use an index: each commit is one statement and one round
trip. A connection that breaks is replaced at the next use; the commit under way then may or may not have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flint_ops import failpoints
from flint_store.errors import StoreUnavailable

__all__ = ["Record", "RecordUnavailable"]

Result = TypeVar("Result")


class RecordUnavailable(Exception):
    """PostgreSQL cannot be reached, or did not answer in time. What was sent may have happened."""


class Record:
    """Lanes and reads. Used from one event loop; callers of one lane take turns."""

    def __init__(self, lanes: AsyncEngine, reads: AsyncEngine, deadline_s: float) -> None:
        """`deadline_s`: a PostgreSQL that is silent is unavailable after this; above its statement timeout."""
        self._lanes = lanes
        self._reads = reads
        self._deadline_s = deadline_s
        self._open: dict[str, AsyncConnection] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def lane(self, name: str, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do one unit of work on a lane's own connection.

        Raises RecordUnavailable, or whatever `work` raises of its own (`Fenced`, a DataError: nothing was written).
        """
        try:
            async with self._turns.setdefault(name, asyncio.Lock()), asyncio.timeout(self._deadline_s):
                connection = self._open.get(name)
                if connection is None or connection.closed or connection.invalidated:
                    connection = self._open[name] = await self._lanes.connect()
                if failpoints.ARMED:
                    failpoints.reach(f"commit.{name}.before")
                result = await work(connection)
                if failpoints.ARMED:
                    failpoints.reach(f"commit.{name}.after")
                return result
        except BaseException as error:
            unavailable = _unavailable(error)
            if unavailable is not None:
                await self._discard(name)
                raise unavailable from error
            if isinstance(error, asyncio.CancelledError):
                await self._discard(name)  # in the middle of something: its state is not known
            raise

    async def read(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Read with a connection of the pool. Raises RecordUnavailable."""
        try:
            async with asyncio.timeout(self._deadline_s), self._reads.connect() as connection:
                return await work(connection)
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable(error) or error from error

    async def transaction(self, work: Callable[[AsyncEngine], Awaitable[Result]]) -> Result:
        """Let `work` open a transaction of its own, on a connection of the pool. Raises RecordUnavailable."""
        try:
            async with asyncio.timeout(self._deadline_s):
                if failpoints.ARMED:
                    failpoints.reach("commit.transaction.before")
                result = await work(self._reads)
                if failpoints.ARMED:
                    failpoints.reach("commit.transaction.after")
                return result
        except StoreUnavailable as error:
            raise RecordUnavailable(str(error)) from error
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable(error) or error from error

    async def _discard(self, name: str) -> None:
        connection = self._open.pop(name, None)
        if connection is None:
            return
        try:
            await connection.invalidate()
            await connection.close()
        except (SQLAlchemyError, OSError):
            return  # it was broken already

    async def close(self) -> None:
        """Close all connections."""
        for name in list(self._open):
            connection = self._open.pop(name)
            await connection.close()
        await self._lanes.dispose()
        await self._reads.dispose()


def _unavailable(error: BaseException) -> RecordUnavailable | None:
    """The failure as «PostgreSQL is not there», if it is of that kind."""
    if isinstance(error, DataError | IntegrityError) and not error.connection_invalidated:
        return None  # about a value or a row
    # Whatever else PostgreSQL says is about itself: gone, starting, read-only, migrated under a prepared statement.
    if isinstance(error, DBAPIError | PoolTimeoutError | OSError):  # OSError: deadlines too
        return RecordUnavailable(_cause(error))
    return None


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
