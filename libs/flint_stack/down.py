"""`flint down`: stops the stack of a data directory from outside, or what is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from rich.console import Console

from flint_stack.errors import AlreadyRunning, StackError
from flint_stack.layout import Layout
from flint_stack.orphans import end_orphans
from flint_stack.state import StackLock, StackState, read_state

__all__ = ["down"]

_DRAIN_DEADLINE_S = 90.0
_HURRY_DEADLINE_S = 15.0
_POLL_S = 0.05


async def down(data_dir: Path, console: Console, *, hurry: bool = False) -> bool:
    """Drains and ends what runs on `data_dir`; True when something ran. Raises StackError when it cannot be ended.

    `hurry` does not wait for steps in progress. A supervisor that outlives the deadline is killed.
    """
    layout = Layout.at(data_dir)
    if not layout.lock_file.exists():
        return False
    lock = StackLock(layout.lock_file)
    supervised = not _taken(lock)
    if supervised:
        # Only who holds the lock is a supervisor; a process that is merely named in the state file may be done with it.
        state = read_state(layout.state_file)
        if state is None or not state.supervisor.alive():
            raise StackError(f"Something uses {layout.root}, but its state file does not say which process. Try again.")
        console.print(f"Stopping process {state.supervisor.pid} and what it runs.")
        await _ask(state, hurry=hurry)
        lock.acquire()
    try:
        ended = await end_orphans(layout)
    finally:
        lock.release()
    if ended:
        console.print(f"Ended {len(ended)} processes that no supervisor kept any more.")
    return supervised or bool(ended)


def _taken(lock: StackLock) -> bool:
    try:
        lock.acquire()
    except AlreadyRunning:
        return False
    return True


async def _ask(state: StackState, *, hurry: bool) -> None:
    for number, wait_s in (
        (signal.SIGTERM, 0.5 if hurry else _DRAIN_DEADLINE_S),
        (signal.SIGTERM, _HURRY_DEADLINE_S),
        (signal.SIGKILL, 5.0),
    ):
        if not state.supervisor.alive():
            return
        os.kill(state.supervisor.pid, number)
        if await _gone(state, wait_s):
            return
    raise StackError(f"Process {state.supervisor.pid} cannot be ended.")


async def _gone(state: StackState, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while state.supervisor.alive():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True
