"""`sql`: statements on a named connection, through whatever dialect SQLAlchemy has for it.

Database drivers block, so each connection has a pool of as many threads as it has database connections. A call that is
cancelled or late is interrupted in the driver where the driver can do that (PostgreSQL, SQLite), and by a second
connection on MariaDB and MySQL; elsewhere its thread stays taken until the database answers, and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy
from sqlalchemy import event, exc, make_url
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.pool import QueuePool

from flint_core.problems import ProblemType
from flint_ops.config import ConnectionSettings, Settings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import check_arguments, failure, named_connection
from flint_worker.executors.rows import TooManyBytes, TooManyRows, rows_of
from flint_worker.executors.statements import prepare
from flint_worker.executors.transactions import breaks_rules, transaction, wants_repeat

__all__ = ["SqlExecutor"]


_STOP_S: Final = (0.02, 1.0)
_DRIVERS: Final = {"postgresql": "psycopg", "mariadb": "pymysql", "mysql": "pymysql"}
"""What a URL that names no driver means."""


@dataclass(slots=True)
class _Database:
    """One named connection: its engine and its threads."""

    engine: Engine
    threads: ThreadPoolExecutor


@dataclass(slots=True)
class _Job:
    """One call in a thread. `interrupt` may be called from any other thread, at any time."""

    call: ResolvedCall
    engine: Engine
    max_rows: int
    max_bytes: int
    """What the results of the call that are still to come may take."""
    value_bytes: int
    stopped: bool = False
    driver: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def interrupt(self) -> None:
        """Stops what the driver is doing, if it can, and whatever would come after."""
        with self.lock:
            self.stopped = True
            stop = getattr(self.driver, "cancel", None) or getattr(self.driver, "interrupt", None)
            with suppress(Exception):  # drivers differ; the statement then runs to its end
                if stop is not None:
                    stop()
                elif hasattr(self.driver, "thread_id"):
                    _kill_query(self.engine, self.driver.thread_id())

    def begin(self, driver: Any) -> None:
        """The driver's connection that this job uses from now on."""
        with self.lock:
            if self.stopped:
                raise _Stopped
            self.driver = driver

    def check(self) -> None:
        """Called before each statement: an interrupt between two of them would reach neither. Raises _Stopped."""
        if self.stopped:
            raise _Stopped

    def end(self) -> None:
        """The connection goes back to the pool: an interrupt must not reach its next user."""
        with self.lock:
            self.driver = None


class _Stopped(Exception):
    """The call was given up before it reached the database."""


class SqlExecutor:
    """The function `sql`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._databases: dict[str, _Database] = {}
        self._running: set[asyncio.Future[Any]] = set()
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def unfinished(self) -> int:
        """Calls in threads, also those that nobody waits for any more."""
        return len(self._running)

    async def close(self) -> None:
        """Closes the database connections."""
        for task in self._stopping:
            task.cancel()
        await asyncio.gather(*self._stopping, return_exceptions=True)
        for database in self._databases.values():
            database.threads.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(database.engine.dispose)

    async def execute(self, call: ResolvedCall) -> Any:
        """Rows, or counts, or a list of both; many rows as RawJson. All statements of a call take effect, or none.

        Raises ExecutionFailed.
        """
        arguments = check_arguments(call)
        connection = named_connection(self._settings, call, "sql")
        database = self._database(call, connection)
        limit_s = connection.timeout_s if call.deadline_s is None else min(call.deadline_s, connection.timeout_s)
        max_rows = min(arguments.get("max_rows", connection.max_rows), connection.max_rows)
        value_bytes = self._settings.limits.value_bytes
        job = _Job(call, database.engine, max_rows, value_bytes, value_bytes)
        work = asyncio.get_running_loop().run_in_executor(database.threads, _run, database.engine, job)
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.shield(work)
        except (TimeoutError, asyncio.CancelledError) as error:
            work.add_done_callback(_retrieve)
            stopping = asyncio.create_task(_stop(job, work))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise failure(call, ProblemType.TIMEOUT, 408, "The database took too long") from None
        except (exc.SQLAlchemyError, _Stopped, TooManyRows, TooManyBytes, UnicodeError) as error:
            raise _failed(call, error) from None

    def _database(self, call: ResolvedCall, connection: ConnectionSettings) -> _Database:
        name = call.arguments["connection"]
        database = self._databases.get(name)
        if database is None:
            try:
                engine = _engine(connection)
            except (exc.ArgumentError, exc.NoSuchModuleError, ImportError) as error:
                title = f"connections.{name} is not usable"
                reason = "no such dialect or driver" if not isinstance(error, exc.ArgumentError) else "not a URL"
                raise failure(call, ProblemType.CONFIGURATION, 400, title, f"url: {reason}") from None
            threads = ThreadPoolExecutor(connection.pool_size, thread_name_prefix=f"sql-{name}")
            database = self._databases[name] = _Database(engine, threads)
        return database


async def _stop(job: _Job, work: asyncio.Future[Any]) -> None:
    """Interrupts a call until its thread is free: an interrupt that comes before its statement has begun is lost."""
    pause_s = _STOP_S[0]
    while not work.done():
        await asyncio.get_running_loop().run_in_executor(None, job.interrupt)
        await asyncio.wait({work}, timeout=pause_s)
        pause_s = min(2 * pause_s, _STOP_S[1])


def _kill_query(engine: Engine, thread_id: int) -> None:
    """Ends what a connection of MariaDB or MySQL does, through another one."""
    words, options = engine.dialect.create_connect_args(engine.url)
    connection = engine.dialect.connect(*words, **options)
    try:
        cursor = connection.cursor()
        cursor.execute(f"KILL QUERY {int(thread_id)}")
    finally:
        connection.close()


def _retrieve(work: asyncio.Future[Any]) -> None:
    """Takes note of what became of a call that nobody waits for any more."""
    if not work.cancelled():
        work.exception()


def _engine(connection: ConnectionSettings) -> Engine:
    url = make_url(connection.url.get_secret_value())
    if url.drivername in _DRIVERS:
        url = url.set(drivername=f"{url.drivername}+{_DRIVERS[url.drivername]}")
    options: dict[str, Any] = {}
    pool = sqlalchemy.create_engine(url).pool  # the dialect's own choice; nothing connects yet
    if isinstance(pool, QueuePool):
        options = {
            "pool_size": connection.pool_size,
            "max_overflow": 0,
            "pool_timeout": connection.timeout_s,
            "pool_pre_ping": True,
        }
    engine = sqlalchemy.create_engine(url, hide_parameters=True, **options)
    event.listen(engine, "handle_error", _close_cursor)
    return engine


def _close_cursor(context: ExceptionContext) -> None:
    """SQLAlchemy leaves the cursor of a connection that was lost open; psycopg warns when such a one is collected."""
    execution = context.execution_context
    if context.is_disconnect and execution is not None:
        with suppress(Exception):  # the driver's own: there is nothing left that closing it could tell
            execution.cursor.close()


def _run(engine: Engine, job: _Job) -> Any:
    """The whole call, in a thread."""
    arguments = job.call.arguments
    if job.stopped:
        raise _Stopped
    with engine.connect() as connection, transaction(connection, arguments):
        job.begin(connection.connection.driver_connection)
        try:
            if "transaction" in arguments:
                return [_statement(connection, job, part) for part in arguments["transaction"]]
            if "batch" in arguments:
                return _batch(connection, job, arguments["batch"])
            return _statement(connection, job, arguments)
        finally:
            job.end()


def _statement(connection: Connection, job: _Job, part: dict[str, Any]) -> Any:
    job.check()
    text = part["query"] if "query" in part else part["execute"]
    prepared = prepare(text, [part.get("parameters", {})], job.call.idempotency_key, engine=connection.dialect.name)
    result = connection.execute(
        prepared.clause, prepared.parameters[0], execution_options={"stream_results": prepared.streams}
    )
    try:
        rows, size = rows_of(result, job.max_rows, job.max_bytes)
    except TooManyBytes:
        raise TooManyBytes(job.value_bytes) from None
    job.max_bytes -= size
    if "query" in part:
        return rows
    return {"affected": max(result.rowcount, 0), "rows": rows}


def _batch(connection: Connection, job: _Job, batch: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare(
        batch["statement"], batch["parameters"], job.call.idempotency_key, engine=connection.dialect.name, many=True
    )
    result = connection.execute(prepared.clause, prepared.parameters)
    return {"affected": max(result.rowcount, 0), "rows": []}


def _failed(call: ResolvedCall, error: Exception) -> ExecutionFailed:
    """The database's own words, without parameters; connection trouble and broken rules apart."""
    if isinstance(error, TooManyRows):
        detail = f"the statement gave more than {error.limit} rows; ask for fewer, or raise max_rows"
        return failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "Too many rows", detail)
    if isinstance(error, TooManyBytes):
        detail = f"the call gave more than {error.limit} bytes; ask for fewer rows or columns"
        return failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "Too large a result", detail)
    if isinstance(error, UnicodeError):
        return failure(call, ProblemType.VALIDATION, 400, "The statement cannot be executed", "a text is not Unicode")
    if isinstance(error, _Stopped | exc.TimeoutError):
        return failure(call, ProblemType.TIMEOUT, 408, "No database connection became free in time")
    if not isinstance(error, exc.DBAPIError):
        title = "The statement cannot be executed"
        return failure(call, ProblemType.VALIDATION, 400, title, str(error).splitlines()[0][:300])
    detail = _own_words(error)
    if wants_repeat(error):
        return failure(call, ProblemType.COMMUNICATION, 503, "The database asks to try again", detail)
    if error.connection_invalidated:
        return failure(call, ProblemType.COMMUNICATION, 503, "The connection to the database was lost", detail)
    if isinstance(error, exc.IntegrityError) or breaks_rules(error):
        return failure(call, ProblemType.RUNTIME, 409, "The database's rules forbid it", detail)
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return failure(call, ProblemType.COMMUNICATION, 500, "The database failed", detail)
    return failure(call, ProblemType.RUNTIME, 500, "The statement failed", detail)


def _own_words(error: exc.DBAPIError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    words = error.orig.args if error.orig is not None else ()
    if len(words) == 2 and isinstance(words[0], int):  # MariaDB and MySQL: a number and a text
        primary = f"{words[1]} ({words[0]})"
    text = primary or (str(error.orig).splitlines() or [""])[0]
    return str(text)[:300]
