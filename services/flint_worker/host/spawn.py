"""Starting one worker as a process of its own: by fork where that is safe, else as a fresh program.

A fork of a process that has everything imported is a worker within milliseconds; a fresh program imports for half a
second. Forking is safe while this process has one thread and gRPC was imported but never used: it is looked at before
every fork, and a host that found a second thread starts fresh programs instead.

A worker leads a session and process group of its own, has its own log, and inherits no file of the host's. Where the
kernel knows PR_SET_PDEATHSIG it gets SIGTERM when the host dies in whatever way, and so gives its legs back and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from flint_ops.lifecycle import run_service

__all__ = ["adopt_orphans", "forks", "preload", "spawn_worker", "strays"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_EXECUTORS: Final = ("a2a", "asyncapi", "email", "grpc", "http", "mcp", "noop", "openapi", "outbound", "running", "sql")
_PRELOADED: Final = (
    "flint_worker.app",
    *(f"flint_worker.executors.{name}" for name in _EXECUTORS),
    "grpc.aio",
    "uvloop",
    "psutil",
)
_REQUIRED: Final = ("cluster.internal_token",)
_DEFAULT_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


def preload() -> None:
    """Imports what a worker needs, once, and puts it where the collector never copies it."""
    for name in _PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()


def forks() -> bool:
    """Whether a fork of this process is safe now."""
    if sys.platform != "linux":
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - one call before every fork
    except OSError:
        return False


def spawn_worker(arguments: Sequence[str], log: Path, close: Callable[[], None]) -> int:
    """Starts a worker with these arguments; returns its process id. `close` gives up the host's files in the child.

    Raises OSError when the system has no room for one more process or file.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        if not forks():
            return _fresh(arguments, descriptor)
        host = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_worker(host, arguments, descriptor, close)
        return pid
    finally:
        os.close(descriptor)


def _fresh(arguments: Sequence[str], log: int) -> int:
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "flint_worker", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    process.returncode = 0  # the host's own loop waits for it
    return process.pid


def _be_worker(host: int, arguments: Sequence[str], log: int, close: Callable[[], None]) -> None:
    """In the child: becomes a worker and never returns."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != host:  # it died before the signal was armed
            os._exit(1)
        close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, max(nothing, log) + 1)
        main = import_module("flint_worker.app").main
        code = run_service("worker", main, list(arguments), require=_REQUIRED)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def adopt_orphans() -> None:
    """Lets processes that lost their parent come to this one, so that what a worker leaves behind can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def strays(known: set[int]) -> list[int]:
    """Children of this process beyond the known ones. Empty where the system does not tell."""
    pid = os.getpid()
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [child for child in map(int, listed.split()) if child not in known]
