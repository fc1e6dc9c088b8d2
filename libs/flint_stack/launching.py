"""Starts one child process for the supervisor: as a fork where that is possible, else as a program of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flint_stack.child import ChildSpec
from flint_stack.forking import Forker, ForkerGone, Process
from flint_stack.processes import STACK_MARK
from flint_stack.programs import Program

__all__ = ["Launcher"]

_EXEC_CHILD: Final = str(Path(__file__).with_name("exec_child.py"))


class Launcher:
    """Starts the children of one data directory; used from one event loop.

    `die_with_supervisor`: the kernel gives children their stop signal when this process dies, where it can.
    """

    def __init__(self, data_dir: Path, environ: Mapping[str, str], *, die_with_supervisor: bool) -> None:
        self._environ = {**environ, STACK_MARK: str(data_dir)}
        self._tied = die_with_supervisor and sys.platform == "linux"
        self._forker = Forker()

    async def preload(self, log: Path) -> None:
        """Begins to load what services share, in a process of its own; those that start from now on wait for it.

        Nothing happens where children cannot be tied to it, or are not to be.
        """
        if self._tied:
            await self._forker.begin(log, self._environ)

    async def launch(self, spec: ChildSpec, log: int) -> Process:
        """Starts the child with the output `log`, in a session of its own. Raises OSError when it cannot be started."""
        if spec.forks and not (spec.env or spec.cwd or spec.wrapper):
            try:
                return await self._forker.fork(spec.argv[2], spec.argv[3:], log, spec.stop_signal)
            except ForkerGone:
                pass  # a program of its own does as well, and only takes longer
        command = spec.argv
        if self._tied:
            command = (sys.executable, "-I", "-S", _EXEC_CHILD, str(os.getpid()), str(int(spec.stop_signal)), *command)
        process = await asyncio.create_subprocess_exec(
            *spec.wrapper,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=spec.cwd,
            env={**self._environ, **spec.env},
            start_new_session=True,
        )
        return Program(process)

    async def close(self) -> None:
        """Gives up what `preload` began, once all children have ended."""
        await self._forker.close()
