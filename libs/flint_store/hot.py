"""The statements of the owners' lanes, executed by the driver itself.

SQLAlchemy takes three times as long around a statement as psycopg and PostgreSQL's protocol do, and psycopg's cursor as
long again as the protocol alone: nothing for a read, but every run pays a part of each commit of its start, its legs
and its folds, and whoever starts one waits for all of it. So these few statements are compiled by SQLAlchemy once and
prepared on the connection that SQLAlchemy keeps; then an execution is one message to PostgreSQL and one answer. They
fail with SQLAlchemy's errors.
"""

from __future__ import annotations

import asyncio
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus
from psycopg.rows import namedtuple_row
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["execute_hot"]

_ENCODING: Final = "utf-8"

_Driver = Any  # psycopg.AsyncConnection; parts of it are not in its types
_prepared: WeakKeyDictionary[_Driver, dict[tuple[TextClause, tuple[int, ...]], bytes]] = WeakKeyDictionary()


class _Query(NamedTuple):
    text: bytes
    names: tuple[str, ...]  # of its parameters, in order
    formats: list[PyFormat]


async def execute_hot(connection: AsyncConnection, statement: TextClause, parameters: Mapping[str, object]) -> Any:
    """The one row that the statement answers, with its columns as attributes. `statement` must be one of a few.

    Like `AsyncConnection.execute`, within the transaction that the connection is in, if it is in one. Raises
    SQLAlchemy's errors; after one that tells of a lost connection, and when it is cancelled, the caller gives the
    connection up: what was sent may have happened.
    """
    driver: _Driver = await _driver(connection)
    try:
        if driver.autocommit:
            async with driver.lock:
                return await _execute(driver, statement, parameters)
        cursor = driver.cursor(row_factory=namedtuple_row)
        await cursor.execute(_text(statement), parameters)
        return await cursor.fetchone()
    except psycopg.Error as error:
        raise DBAPIError.instance(
            _text(statement),
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=bool(driver.closed),
            dialect=connection.dialect,
        ) from error


async def _driver(connection: AsyncConnection) -> _Driver:
    """The driver's connection. SQLAlchemy's own way to it is made for connections that may have to be made first."""
    ready = connection.sync_connection
    if ready is None or connection.closed or connection.invalidated:
        return (await connection.get_raw_connection()).driver_connection
    return ready.connection.driver_connection


async def _execute(driver: _Driver, statement: TextClause, parameters: Mapping[str, object]) -> Any:
    query = _query(statement)
    pgconn = driver.pgconn
    adapter = Transformer(driver)
    values = adapter.dump_sequence([parameters[name] for name in query.names], query.formats)
    types = adapter.types or ()
    names = _prepared.get(driver)
    if names is None:
        names = _prepared[driver] = {}
    name = names.get((statement, types))
    if name is None:
        name = b"flint_%d" % len(names)
        await _answer(pgconn, lambda: pgconn.send_prepare(name, query.text, types))
        names[statement, types] = name
    result = await _answer(pgconn, lambda: pgconn.send_query_prepared(name, values, adapter.formats))
    if not result.ntuples:
        return None
    adapter.set_pgresult(result)
    columns = tuple(result.fname(place) for place in range(result.nfields))
    return adapter.load_row(0, _row(columns))


async def _answer(pgconn: Any, send: Callable[[], None]) -> Any:
    """Sends one message and waits until PostgreSQL is ready for the next: what was written is committed then.

    Raises what it was refused with, also where only its commit was. A connection on which it was broken off is closed.
    """
    answered = False
    try:
        send()
        results = await _results(pgconn)
        answered = True
    finally:
        if not answered:
            pgconn.finish()  # an answer that is still to come would be taken for that of the next statement
    for result in results:
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(result, _ENCODING)
    if not results:
        raise psycopg.OperationalError("the connection was lost")
    return results[0]


async def _results(pgconn: Any) -> list[Any]:
    """Once all is sent, and everything that it is answered has come."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    socket = pgconn.socket
    results: list[Any] = []

    def receive() -> None:
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():  # else to ask for the next result would block
                result = pgconn.get_result()
                if result is None:
                    _settle(done)
                    return
                results.append(result)
        except psycopg.Error as error:
            _settle(done, error)

    def send_more() -> None:
        try:
            if not pgconn.flush():
                loop.remove_writer(socket)
        except psycopg.Error as error:
            loop.remove_writer(socket)
            _settle(done, error)

    more = pgconn.flush()
    loop.add_reader(socket, receive)
    try:
        if more:
            loop.add_writer(socket, send_more)
        await done
    finally:
        loop.remove_reader(socket)
        if more:
            loop.remove_writer(socket)
    return results


def _settle(done: asyncio.Future[None], error: Exception | None = None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


@cache
def _row(columns: tuple[bytes, ...]) -> Callable[[Any], Any]:
    kind: Any = namedtuple  # its names are known at run time only
    made: Callable[[Any], Any] = kind("Row", [name.decode() for name in columns])._make
    return made


@cache
def _query(statement: TextClause) -> _Query:
    made: Any = statement.compile(dialect=dialect(paramstyle="numeric_dollar"))  # type: ignore[no-untyped-call]
    names = tuple(made.positiontup)
    return _Query(str(made).encode(), names, [PyFormat.AUTO] * len(names))


@cache
def _text(statement: TextClause) -> str:
    return str(statement.compile(dialect=dialect()))  # type: ignore[no-untyped-call]
