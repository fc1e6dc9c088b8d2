"""One PostgreSQL 18: its cluster below a folder, a role and a database for Flint, and recovery after a kill.

Life of the cluster: missing -> `initdb` into a folder beside it, renamed when complete (so a kill cannot leave half a
cluster) -> started by the supervisor -> role and database made once it accepts connections. Before each start,
processes that a killed postmaster left in the folder are ended, and a `postmaster.pid` whose process is not a server of
this folder is removed: PostgreSQL refuses to start over either.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from flint_stack.child import WAVE_SERVERS, ChildSpec
from flint_stack.errors import MissingServer, ProbeFailed, StackError
from flint_stack.processes import end_processes, processes_inside
from flint_stack.programs import Program
from flint_stack.servers.programs import postgres_programs

__all__ = ["PostgresServer"]

_SUPERUSER = "postgres"
_ROLE = "flint"
_DATABASE = "flint"
_STATE_LINE = 7  # of postmaster.pid, counted from 0

_CONFIGURATION = """\
# Written at every start; changes belong into the file that is included at the end.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = {max_connections}
password_encryption = 'scram-sha-256'
timezone = 'UTC'

# Every commit that was answered is on the disk.
fsync = on
synchronous_commit = on
full_page_writes = on

shared_buffers = 128MB
work_mem = 8MB
maintenance_work_mem = 64MB
wal_buffers = 16MB
min_wal_size = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
random_page_cost = 1.1
jit = off
max_parallel_workers_per_gather = 0

# Few processes and few wake-ups while nothing happens.
io_method = sync
max_logical_replication_workers = 0
wal_writer_delay = 500ms

# Rows of runs change several times and then never again.
autovacuum_naptime = 30s
autovacuum_vacuum_threshold = 500
autovacuum_vacuum_scale_factor = 0.02
autovacuum_analyze_threshold = 500
autovacuum_analyze_scale_factor = 0.02
autovacuum_vacuum_cost_limit = 1000

logging_collector = off
log_destination = 'stderr'
log_line_prefix = '%m [%p] %q%u@%d '
log_min_messages = warning
log_checkpoints = off

include_if_exists = 'local.conf'
"""

_HBA = """\
# Written at every start. Passwords only, this machine only.
host all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """An embedded PostgreSQL with its cluster in `directory`/data, on 127.0.0.1."""

    directory: Path
    port: int
    superuser_password: str
    password: str
    max_connections: int = 100

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        """Flint's database, with Flint's role and password."""
        return f"postgresql://{_ROLE}:{self.password}@{self.address}/{_DATABASE}"

    @property
    def cluster_dir(self) -> Path:
        """PostgreSQL's data directory."""
        return self.directory / "data"

    def spec(self) -> ChildSpec:
        """The child. Ended by SIGINT: a fast shutdown, which does not wait for clients to leave."""
        return ChildSpec(
            name="postgres",
            argv=(str(postgres_programs() / "postgres"), "-D", str(self.cluster_dir)),
            wave=WAVE_SERVERS,
            wrapper=_as_other_user(),
            address=self.address,
            ready=self.ready,
            before_start=self.before_start,
            after_ready=self.ensure_database,
            ready_deadline_s=60.0,
            stop_signal=signal.SIGINT,
            stop_deadline_s=30.0,
        )

    async def ready(self) -> None:
        """Ready means that it answers a query, so recovery is over.

        It is asked only once it has written down that it takes connections: each refused one costs it a process.
        """
        if (state := self._state()) != "ready":
            raise ProbeFailed(f"PostgreSQL at {self.address} takes no connections yet: {state or 'it has not begun'}")
        try:
            async with asyncio.timeout(5), await self._connect_superuser() as connection:
                await connection.execute("select 1")
        except (psycopg.Error, TimeoutError) as error:
            raise ProbeFailed(f"PostgreSQL at {self.address}: {' '.join(str(error).split()) or 'no answer'}") from None

    def _state(self) -> str:
        """What its postmaster says of itself: `starting`, `ready`, `stopping`; nothing before it says anything."""
        try:
            lines = (self.cluster_dir / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return lines[_STATE_LINE].strip() if len(lines) > _STATE_LINE else ""

    async def before_start(self) -> None:
        """Makes the cluster when there is none, ends what a killed server left in it, writes its configuration."""
        if not self.cluster_dir.exists():
            await self._initialise()
        await self.end_leftovers()
        (self.cluster_dir / "postgresql.conf").write_text(
            _CONFIGURATION.format(port=self.port, max_connections=self.max_connections)
        )
        (self.cluster_dir / "pg_hba.conf").write_text(_HBA)

    async def end_leftovers(self) -> None:
        """Ends server processes in the cluster's folder and removes a stale `postmaster.pid`. Raises StackError."""
        left = await end_processes(
            processes_inside(self.cluster_dir, "postgres"), first=signal.SIGQUIT, grace_s=5.0, kill_wait_s=5.0
        )
        if left:
            raise StackError(
                f"Processes {', '.join(str(identity.pid) for identity in left)} of an earlier PostgreSQL in "
                f"{self.cluster_dir} cannot be ended."
            )
        # No server of this folder is left, so whatever process has the number in this file now, it is not one.
        (self.cluster_dir / "postmaster.pid").unlink(missing_ok=True)

    async def ensure_database(self) -> None:
        """Makes the role and the database unless they are there; sets the role's password."""
        try:
            async with asyncio.timeout(20), await self._connect_superuser() as connection:
                role, database = sql.Identifier(_ROLE), sql.Identifier(_DATABASE)
                found = await connection.execute("select 1 from pg_roles where rolname = %s", (_ROLE,))
                verb = "alter" if await found.fetchone() else "create"
                await connection.execute(
                    sql.SQL(verb + " role {} login password {}").format(role, sql.Literal(self.password))
                )
                found = await connection.execute("select 1 from pg_database where datname = %s", (_DATABASE,))
                if not await found.fetchone():
                    await connection.execute(sql.SQL("create database {} owner {}").format(database, role))
                    await connection.execute(sql.SQL("revoke all on database {} from public").format(database))
        except (psycopg.Error, TimeoutError) as error:
            raise StackError(f"PostgreSQL at {self.address} refuses to make the database: {error}") from None

    async def _connect_superuser(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        return await psycopg.AsyncConnection.connect(
            host="127.0.0.1",
            port=self.port,
            user=_SUPERUSER,
            password=self.superuser_password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=3,
        )

    async def _initialise(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self.directory / "data.new"
        if fresh.exists():
            await asyncio.to_thread(shutil.rmtree, fresh)
        with tempfile.NamedTemporaryFile("w", dir=self.directory, prefix="password-") as secret:
            secret.write(self.superuser_password)
            secret.flush()
            initdb = await asyncio.create_subprocess_exec(
                *_as_other_user(),
                str(postgres_programs() / "initdb"),
                f"--pgdata={fresh}",
                f"--username={_SUPERUSER}",
                f"--pwfile={secret.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-instructions",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            process = Program(initdb)
            try:
                output = await asyncio.wait_for(process.communicate(), 60)
            except (TimeoutError, asyncio.CancelledError):
                process.send_signal(signal.SIGKILL)
                await process.wait()
                raise
        if process.returncode != 0:
            raise StackError(f"PostgreSQL's initdb failed:\n{output.decode(errors='replace').strip()}{_root_hint()}")
        fresh.rename(self.cluster_dir)


def _as_other_user() -> tuple[str, ...]:
    """What lets PostgreSQL run although this process is root: a user namespace that shows another user."""
    if os.geteuid() != 0:
        return ()
    unshare = shutil.which("unshare")
    if unshare is None:
        raise MissingServer(
            "PostgreSQL refuses to run as root, and `unshare` is not there to help. Start as another user."
        )
    users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0}
    if not users:
        raise MissingServer("PostgreSQL refuses to run as root, and /etc/passwd names no other user.")
    uid = users.get("postgres", users.get("nobody", min(users.values())))
    return (unshare, "-U", f"--map-user={uid}")


def _root_hint() -> str:
    if os.geteuid() != 0:
        return ""
    return "\nPostgreSQL refuses to run as root and user namespaces seem to be forbidden here. Start as another user."
