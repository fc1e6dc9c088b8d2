"""Migrations: at once from several processes, refusals, the lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from flint_ops.config import PostgresSettings
from flint_store.engine import create_engine
from flint_store.errors import (
    MigrationLocked,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    ShardGroupsDiffer,
    StoreError,
    StoreUnavailable,
)
from flint_store.migrate import CODE_REVISION, LOCK_KEY, check_schema, upgrade
from support.postgres import Server
from support.record import GROUPS


@pytest.fixture
async def empty_engine(empty_dsn: str) -> AsyncIterator[AsyncEngine]:
    created = create_engine(PostgresSettings(dsn=SecretStr(empty_dsn)), "reading")
    yield created
    await created.dispose()


def one(dsn: str, query: str) -> tuple[object, ...]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return tuple(row)


def run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


STARTER = """
import sys
from flint_store.migrate import upgrade
print("ready", flush=True)
sys.stdin.readline()
print(",".join(upgrade(sys.argv[1], 5)), flush=True)
"""


def test_starters_at_once_migrate_once(empty_dsn: str) -> None:
    """Real processes, let go at the same moment when all of them have done their imports."""
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, empty_dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "ready\n"
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("go\n")
            starter.stdin.flush()
        ended = [(*starter.communicate(timeout=150), starter.returncode) for starter in starters]
    finally:
        for starter in starters:
            starter.kill()
            starter.communicate()
    everything = ",".join(f"{revision:04d}" for revision in range(1, CODE_REVISION + 1))
    assert [code for _, _, code in ended] == [0] * 4, ended
    assert sorted(out for out, _, _ in ended) == ["\n"] * 3 + [f"{everything}\n"]
    assert one(empty_dsn, "SELECT count(*), min(group_id), max(group_id) FROM shard_group") == (5, 0, 4)
    assert one(empty_dsn, "SELECT count(*) FROM namespace WHERE namespace_id = 'default'") == (1,)


def test_threads_may_migrate_several_databases(server: Server) -> None:
    databases = [server.create_database() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        applied = list(pool.map(lambda database: upgrade(database, GROUPS), databases))
    assert all(applied)
    assert [one(database, "SELECT count(*) FROM shard_group") for database in databases] == [(GROUPS,)] * 3


def test_waits_for_the_lock_and_gives_up_with_a_reason(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        with pytest.raises(MigrationLocked, match="another migration"):
            upgrade(empty_dsn, GROUPS, lock_wait_s=0.2)
        assert one(empty_dsn, "SELECT to_regclass('cluster')") == (None,)
        finished = Event()
        applied: list[str] = []

        def wait() -> None:
            applied.extend(upgrade(empty_dsn, GROUPS, lock_wait_s=120))
            finished.set()

        waiter = Thread(target=wait)
        waiter.start()
        assert not finished.wait(0.3), "migrated while another held the lock"
        other.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))
        assert finished.wait(120)
        waiter.join()
    assert applied


def test_a_second_migration_finds_nothing_to_do(dsn: str) -> None:
    assert upgrade(dsn, GROUPS) == []


def test_shard_groups_are_fixed(dsn: str) -> None:
    with pytest.raises(ShardGroupsDiffer, match=f"set cluster.shard_groups = {GROUPS}"):
        upgrade(dsn, GROUPS + 1)
    assert one(dsn, "SELECT count(*) FROM shard_group") == (GROUPS,)


def test_refuses_to_migrate_a_newer_schema(dsn: str) -> None:
    run(dsn, f"UPDATE schema_revision SET version_num = '{CODE_REVISION + 1:04d}'")
    with pytest.raises(SchemaTooNew, match="migrate with the newer build"):
        upgrade(dsn, GROUPS)


def test_a_failed_revision_leaves_nothing(empty_dsn: str) -> None:
    run(empty_dsn, "CREATE TABLE worker (incarnation text)")  # the migration's own last table collides
    with pytest.raises(Exception, match="already exists"):
        upgrade(empty_dsn, GROUPS)
    assert one(empty_dsn, "SELECT to_regclass('cluster'), to_regclass('run')") == (None, None)
    run(empty_dsn, "DROP TABLE worker")
    assert upgrade(empty_dsn, GROUPS)


def test_unreachable_is_said(empty_dsn: str) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        upgrade(empty_dsn.replace("test_", "missing_"), GROUPS)


@pytest.mark.parametrize("dsn_text", ["", "mysql://root@localhost/db", "no url"])
def test_a_wrong_dsn_names_the_key(dsn_text: str) -> None:
    with pytest.raises(StoreError, match=r"postgres\.dsn"):
        upgrade(dsn_text, GROUPS)


async def test_check_reads_the_cluster(engine: AsyncEngine) -> None:
    facts = await check_schema(engine, GROUPS)
    assert (facts.revision, facts.shard_groups, facts.journal_generation) == (CODE_REVISION, GROUPS, 0)


async def test_check_refuses_an_empty_database(empty_engine: AsyncEngine) -> None:
    with pytest.raises(SchemaMissing, match=r"flint_store\.migrate"):
        await check_schema(empty_engine, GROUPS)


async def test_check_refuses_other_groups(engine: AsyncEngine) -> None:
    with pytest.raises(ShardGroupsDiffer):
        await check_schema(engine, GROUPS * 2)


async def test_check_refuses_an_older_schema(engine: AsyncEngine, dsn: str) -> None:
    run(dsn, f"UPDATE schema_revision SET version_num = '{CODE_REVISION - 1:04d}'")
    with pytest.raises(SchemaTooOld):
        await check_schema(engine, GROUPS)


async def test_check_accepts_a_newer_schema_until_it_contracts(engine: AsyncEngine, dsn: str) -> None:
    run(dsn, f"UPDATE schema_revision SET version_num = '{CODE_REVISION + 2:04d}'")
    assert (await check_schema(engine, GROUPS)).revision == CODE_REVISION + 2
    run(dsn, f"UPDATE cluster SET oldest_code = {CODE_REVISION + 1}")
    with pytest.raises(SchemaTooNew, match="install the newer build"):
        await check_schema(engine, GROUPS)


def test_the_command(empty_dsn: str, tmp_path: Path) -> None:
    config = tmp_path / "flint.toml"

    def command(groups: int) -> subprocess.CompletedProcess[str]:
        config.write_text(
            f'[cluster]\nshard_groups = {groups}\ninternal_token = "for-tests-only-0123456789"\n'
            f'[postgres]\ndsn = "{empty_dsn}"\n'
        )
        return subprocess.run(
            [sys.executable, "-m", "flint_store.migrate", "--config", str(config)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    first, second, refused = command(4), command(4), command(5)
    assert (first.returncode, second.returncode, refused.returncode) == (0, 0, 1), first.stderr + second.stderr
    assert "applied 0001" in first.stderr
    assert "nothing to do" in second.stderr
    assert "shard_groups = 4" in refused.stderr
    assert "Traceback" not in refused.stderr
    config.write_text("")
    unset = subprocess.run(
        [sys.executable, "-m", "flint_store.migrate", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert unset.returncode == 2
    assert "postgres.dsn" in unset.stderr and "Traceback" not in unset.stderr
