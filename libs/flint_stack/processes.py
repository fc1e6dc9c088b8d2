"""Processes of the operating system, told apart safely: a process id alone may belong to somebody else by now."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["STACK_MARK", "ProcessIdentity", "end_processes", "identify", "marked_processes", "processes_inside"]

STACK_MARK = "FLINT_STACK_DIRECTORY"
"""Environment variable that every child carries: the data directory of its stack."""

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for ever: its id, and a start mark that no later process with the same id shares."""

    pid: int
    started: str

    def alive(self) -> bool:
        """True while exactly this process exists and is not a zombie."""
        return identify(self.pid) == self


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has `pid` now, or None when there is none (a zombie counts as none)."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return None
        # Ticks since boot do not move with the wall clock, as a computed start time would.
        return ProcessIdentity(pid, f"{_boot_id()}:{fields[19]}")
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(pid, f"{process.create_time():.3f}")
    except psutil.NoSuchProcess:
        return None


def _search(matches: Callable[[psutil.Process], bool]) -> list[ProcessIdentity]:
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            wanted = matches(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # gone meanwhile, or not ours to look at: then it is not ours at all
        if wanted and (identity := identify(process.pid)) is not None:
            found.append(identity)
    return found


def marked_processes(directory: Path) -> list[ProcessIdentity]:
    """Processes of this user that were started for the stack in `directory`, this process excepted."""
    mark = str(directory)
    return _search(lambda process: process.environ().get(STACK_MARK) == mark)


def processes_inside(directory: Path, program: str) -> list[ProcessIdentity]:
    """Processes of this user whose working folder is `directory` and whose program's name is `program`.

    PostgreSQL's backends overwrite their environment and lead sessions of their own; their folder tells them.
    """
    where = str(directory)
    return _search(lambda process: process.cwd() == where and Path(process.exe()).name == program)


def _signal(identity: ProcessIdentity, number: int, *, group: bool) -> None:
    if not identity.alive():
        return
    try:
        if group and os.getpgid(identity.pid) == identity.pid:
            os.killpg(identity.pid, number)
        else:
            os.kill(identity.pid, number)
    except ProcessLookupError:
        return


async def end_processes(
    identities: Iterable[ProcessIdentity],
    *,
    first: int = signal.SIGTERM,
    grace_s: float = 3.0,
    kill_wait_s: float = 5.0,
) -> list[ProcessIdentity]:
    """Asks with `first`, waits up to `grace_s`, then kills (with the process group). Returns those still there.

    Verifies the identity before each signal. SIGCONT goes along, so that a stopped process can act on the request.
    """
    left = [identity for identity in identities if identity.alive()]
    for identity in left:
        _signal(identity, first, group=False)
        _signal(identity, signal.SIGCONT, group=False)
    left = await _await_gone(left, grace_s)
    for identity in left:
        _signal(identity, signal.SIGKILL, group=True)
    return await _await_gone(left, kill_wait_s)


async def _await_gone(identities: list[ProcessIdentity], timeout_s: float) -> list[ProcessIdentity]:
    deadline = asyncio.get_running_loop().time() + timeout_s
    left = [identity for identity in identities if identity.alive()]
    while left and asyncio.get_running_loop().time() < deadline:
        # Not our children, so there is nothing to wait on but the process table.
        await asyncio.sleep(_POLL_S)
        left = [identity for identity in left if identity.alive()]
    return left
