"""Programs of their own, as asyncio starts them, but for how they are signalled.

`asyncio.subprocess.Process.send_signal` (`kill` and `terminate` too) looks first whether the process has ended, and so
takes the exit code of one that has just done so away from asyncio's own thread that waits for it: that logs "Unknown
child process pid" and reports 255, whatever the code was (https://github.com/python/cpython/issues/87744).
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from flint_stack.processes import identify

__all__ = ["Program"]


class Program:
    """One of this process's children; for the event loop that started it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._identity = identify(process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs, and until the event loop has heard of its end."""
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for its end."""
        return await self._process.wait()

    async def communicate(self) -> bytes:
        """What it writes, up to its end."""
        output, _ = await self._process.communicate()
        return output

    def send_signal(self, signal: int) -> None:
        """Does nothing when it has ended."""
        # It may have ended, and its number be somebody else's already, before the event loop hears of it.
        if self.returncode is None and self._identity is not None and self._identity.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal)
