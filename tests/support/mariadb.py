"""A real MariaDB for tests, from Debian's package: its own folder, a free port, gone when the block ends."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql
import pytest

START_TIMEOUT_S = 120.0


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"SKIPPED, NOT TESTED: {name} is not installed (Debian: apt-get install mariadb-server)")
    return found


@contextmanager
def mariadb_server() -> Iterator[str]:
    """The URL of an empty database on a server of its own. Skips the test where MariaDB is not installed."""
    server, install = _program("mariadbd"), _program("mariadb-install-db")
    folder = Path(tempfile.mkdtemp(prefix="flint-my-"))
    try:
        data = folder / "data"
        user = f"--user={getpass.getuser()}"
        subprocess.run(
            [install, "--no-defaults", f"--datadir={data}", user, "--skip-test-db"],
            check=True,
            capture_output=True,
            timeout=START_TIMEOUT_S,
        )
        first = folder / "first.sql"
        first.write_text(
            "CREATE DATABASE shop CHARACTER SET utf8mb4;\n"
            "CREATE USER flint@'127.0.0.1' IDENTIFIED BY 'hush';\n"
            "GRANT ALL ON shop.* TO flint@'127.0.0.1';\n"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    server,
                    "--no-defaults",
                    user,
                    f"--datadir={data}",
                    f"--socket={folder}/s",
                    f"--pid-file={folder}/pid",
                    f"--init-file={first}",
                    "--bind-address=127.0.0.1",
                    f"--port={port}",
                    "--skip-name-resolve",
                    "--innodb-flush-log-at-trx-commit=0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait(port, process, folder / "log")
            yield f"mariadb://flint:hush@127.0.0.1:{port}/shop"
        finally:
            process.kill()  # nothing in it is wanted any more
            process.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            pymysql.connect(host="127.0.0.1", port=port, user="flint", password="hush", database="shop").close()
            return
        except pymysql.err.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MariaDB did not start:\n{log.read_text(errors='replace')[-3000:]}") from None
            time.sleep(0.05)
