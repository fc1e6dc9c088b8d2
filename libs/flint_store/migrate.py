"""Migrations: `python -m flint_store.migrate --config FILE`, and what a service checks before it starts.

One migration at a time: a session-level advisory lock. Waiters poll with `pg_try_advisory_lock` instead of waiting
inside `pg_advisory_lock`, because a waiting statement holds a snapshot, and `CREATE INDEX CONCURRENTLY` waits for it.
When a migration dies its connection ends, the lock with it, and the transaction of the revision it was in is undone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, create_engine, pool, text
from sqlalchemy.exc import OperationalError

from flint_ops.config import ConfigError, load
from flint_store.engine import CONNECT_TIMEOUT_S, database_url, fetch
from flint_store.errors import (
    MigrationLocked,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    ShardGroupsDiffer,
    StoreError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["CODE_REVISION", "ClusterFacts", "check_schema", "main", "upgrade"]

CODE_REVISION = 17
"""The newest revision that this build knows: the number of the last file in `migrations/versions`."""

LOCK_KEY = 0x666C696E74  # "flint"
LOCK_POLL_S = 0.1

_ALEMBIC = threading.Lock()  # Alembic keeps its context in globals: one migration at a time in a process, too

TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
# Both tables may be missing: to_regclass answers NULL instead of failing.
HAS_SCHEMA = text("SELECT to_regclass('schema_revision') IS NOT NULL AND to_regclass('cluster') IS NOT NULL")
# One row each.
READ_FACTS = text(
    "SELECT revision.version_num, cluster.shard_groups, cluster.journal_generation, cluster.oldest_code"
    " FROM schema_revision revision, cluster"
)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the database says of the cluster."""

    revision: int
    shard_groups: int
    journal_generation: int


def upgrade(dsn: str, groups: int, *, lock_wait_s: float = 60.0) -> list[str]:
    """Bring the schema to this build's revision. Blocking. Answers the revisions that were applied, oldest first.

    Any number of processes may call it at once; one migrates, the others wait up to `lock_wait_s` and find nothing to
    do. Raises `SchemaTooNew` when a newer build has migrated already, `ShardGroupsDiffer` when `groups` is not what the
    first migration fixed, `MigrationLocked`, `StoreUnavailable`. A revision is applied completely or not at all.
    """
    engine = create_engine(
        database_url(dsn),
        poolclass=pool.NullPool,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "flint-migrate"},
    )
    try:
        with engine.connect() as connection:
            _lock(connection, lock_wait_s)
            return _upgrade_locked(connection, groups)
    except OperationalError as error:
        reason = " ".join(str(error.orig).split())
        raise StoreUnavailable(f"PostgreSQL cannot be reached for the migration: {reason}") from error
    finally:
        engine.dispose()


async def check_schema(engine: AsyncEngine, groups: int) -> ClusterFacts:
    """Make sure at a service's start that this build may work on the database.

    Raises `SchemaMissing`, `SchemaTooOld`, `SchemaTooNew` or `ShardGroupsDiffer`, each saying what to do. A newer
    schema is accepted while its migrations have only expanded it: during a deploy, processes of the build before may
    restart.
    """
    if not (await fetch(engine, HAS_SCHEMA, {}))[0][0]:
        raise SchemaMissing("the database has no schema of Flint's: run python -m flint_store.migrate --config FILE")
    rows = await fetch(engine, READ_FACTS, {})
    if not rows:
        raise SchemaMissing("the database's schema is not complete: run python -m flint_store.migrate --config FILE")
    version, shard_groups, generation, oldest_code = rows[0]
    revision = int(version)
    if revision < CODE_REVISION:
        raise SchemaTooOld(
            f"the database's schema is at {revision:04d}, this build needs {CODE_REVISION:04d}:"
            " run python -m flint_store.migrate --config FILE"
        )
    if oldest_code > CODE_REVISION:
        raise SchemaTooNew(
            f"the database's schema ({revision:04d}) needs a build that knows {oldest_code:04d} or newer;"
            f" this one knows {CODE_REVISION:04d}: install the newer build"
        )
    _check_groups(shard_groups, groups)
    return ClusterFacts(revision=revision, shard_groups=shard_groups, journal_generation=generation)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0 when the schema is up to date, 1 when it cannot be brought there, 2 for settings."""
    try:
        settings = load(list(sys.argv[1:] if argv is None else argv), require=["postgres.dsn"])
    except ConfigError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        sys.stderr.write(f"The schema cannot be migrated: the configuration is wrong.\n{problems}\n")
        return 2
    try:
        applied = upgrade(settings.postgres.dsn.get_secret_value(), settings.cluster.shard_groups)
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"schema {CODE_REVISION:04d}: {'applied ' + ', '.join(applied) if applied else 'nothing to do'}\n")
    return 0


def _lock(connection: Connection, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not connection.execute(TRY_LOCK, {"key": LOCK_KEY}).scalar_one():
        connection.rollback()
        if time.monotonic() >= deadline:
            raise MigrationLocked(f"another migration has held the lock for more than {wait_s:g} s; try again later")
        time.sleep(LOCK_POLL_S)
    connection.commit()  # the lock belongs to the session, not to the transaction


def _upgrade_locked(connection: Connection, groups: int) -> list[str]:
    # A service that only checks the schema starts faster without them, by a tenth.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    before = 0
    if connection.execute(HAS_SCHEMA).scalar_one():
        version, shard_groups, _, _ = connection.execute(READ_FACTS).one()
        before = int(version)
        if before > CODE_REVISION:
            raise SchemaTooNew(
                f"the database's schema is at {before:04d}, this build knows only up to {CODE_REVISION:04d}:"
                " migrate with the newer build"
            )
        _check_groups(shard_groups, groups)
    connection.commit()
    config = Config()
    config.set_main_option("script_location", "flint_store:migrations")
    config.attributes["connection"] = connection
    config.attributes["shard_groups"] = groups
    head = ScriptDirectory.from_config(config).get_current_head()
    if head != f"{CODE_REVISION:04d}":
        raise RuntimeError(f"CODE_REVISION is {CODE_REVISION}, the newest migration is {head}")
    if before < CODE_REVISION:
        with _ALEMBIC:
            command.upgrade(config, "head")
        connection.commit()
    return [f"{revision:04d}" for revision in range(before + 1, CODE_REVISION + 1)]


def _check_groups(fixed: int, configured: int) -> None:
    if fixed != configured:
        raise ShardGroupsDiffer(
            f"cluster.shard_groups is {configured} in the settings, but this database was made with {fixed}:"
            f" the number is fixed by the first migration; set cluster.shard_groups = {fixed}"
        )


if __name__ == "__main__":
    sys.exit(main())
