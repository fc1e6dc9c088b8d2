"""The statements of the owners' lanes, executed by the driver itself.

SQLAlchemy takes three times as long around a statement as psycopg and PostgreSQL's protocol do: nothing for a read, but
every run pays a part of each commit of its start, its legs and its folds. So these few statements are compiled by
SQLAlchemy once and then go to the connection that SQLAlchemy keeps; they fail with SQLAlchemy's errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["execute_hot"]


async def execute_hot(connection: AsyncConnection, statement: TextClause, parameters: Mapping[str, object]) -> Any:
    """The one row that the statement answers, with its columns as attributes. `statement` must be one of a few.

    Like `AsyncConnection.execute`, within the transaction that the connection is in, if it is in one. Raises
    SQLAlchemy's errors; after one that tells of a lost connection the caller gives the connection up.
    """
    driver: Any = (await connection.get_raw_connection()).driver_connection
    query = _query(statement)
    try:
        cursor = driver.cursor(row_factory=namedtuple_row)
        await cursor.execute(query, parameters)
        return await cursor.fetchone()
    except psycopg.Error as error:
        raise DBAPIError.instance(
            query,
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=bool(driver.closed),
            dialect=connection.dialect,
        ) from error


@cache
def _query(statement: TextClause) -> str:
    return str(statement.compile(dialect=dialect()))  # type: ignore[no-untyped-call]
