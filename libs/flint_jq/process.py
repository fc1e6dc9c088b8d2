"""The pool's end of one evaluator process: start it, ask it, end it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Final

from flint_jq.errors import EvaluatorsBusy
from flint_jq.frames import HEADER, LARGEST, frame

__all__ = ["EvaluatorProcess"]

_START_S: Final = 30.0
"""A process that is not ready by then never will be; a busy machine may well take seconds."""
_END_S: Final = 5.0
_PAGE: Final = os.sysconf("SC_PAGESIZE")


class EvaluatorProcess:
    """One running evaluator. Not for concurrent use: one question at a time."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, memory_bytes: int, output_bytes: int, alarm_s: float, *, large: bool = False
    ) -> EvaluatorProcess:
        """A process that is ready to evaluate. Raises EvaluatorsBusy when none starts."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            "flint_jq.evaluator",
            f"--parent={os.getpid()}",
            f"--memory-bytes={memory_bytes}",
            f"--output-bytes={output_bytes}",
            f"--alarm-s={alarm_s}",
            *(["--large"] if large else []),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
            limit=2**20,
        )
        evaluator = cls(process)
        try:
            async with asyncio.timeout(_START_S):
                ready = await evaluator._receive()
        except (TimeoutError, EOFError, OSError):
            await evaluator.kill()
            raise EvaluatorsBusy("an evaluator process did not start") from None
        except BaseException:
            await evaluator.kill()
            raise
        if ready != b"R":
            await evaluator.kill()
            raise EvaluatorsBusy("an evaluator process did not start as it should")
        return evaluator

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is known to have ended."""
        return self._process.returncode is not None

    async def ask(self, head: bytes, body: bytes) -> bytes:
        """The answer to one question. Raises EOFError when the process ended instead; sets no time limit itself."""
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101  (a pipe by construction)
        try:
            stdin.write(frame(head) + frame(body))
            await stdin.drain()
            return await self._receive()
        except OSError:
            raise EOFError("the evaluator's pipe broke") from None

    async def _receive(self) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101  (a pipe by construction)
        (size,) = HEADER.unpack(await stdout.readexactly(HEADER.size))
        if size > LARGEST:
            raise EOFError("the evaluator's stream is broken")
        return await stdout.readexactly(size)

    async def ended_by(self) -> int:
        """The signal that ended the process, which has ended or is about to; 0 for none.

        SIGPROF: its processor time was used up. SIGKILL: somebody else did it, when `kill` was not called.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        return max(0, -(self._process.returncode or 0))

    def resident_bytes(self) -> int:
        """Memory that the process holds now; 0 when it has ended, and where the system does not tell (not Linux)."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
        except (OSError, IndexError):
            return 0

    async def kill(self) -> None:
        """Ends the process, its group with it, and reaps it."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # it ended by itself; wait() below reaps it
                os.killpg(self._process.pid, signal.SIGKILL)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101  (pipes by construction)
        stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                while await stdout.read(2**20):
                    pass  # what it had written already
                await self._process.wait()
                await stdin.wait_closed()
        except (TimeoutError, OSError):
            return  # killed but not gone, stuck in the kernel; or the pipe broke with it
