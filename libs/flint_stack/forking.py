"""The supervisor's side of `flint_stack.forker`: begins it, has it fork services, hears how they end.

States: absent (another system than Linux, or the children are to outlive the supervisor) · SERVING → gone (it died, or
could not load what it should). Whoever finds it absent or gone starts a program of its own instead. What it had forked
gets its stop signal from the kernel when it dies, and is waited for by its process id; how it ended is then not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from flint_stack.forker import COMMAND_BYTES, MESSAGE_BYTES
from flint_stack.logfiles import open_log
from flint_stack.processes import identify
from flint_stack.programs import Program

__all__ = ["Forker", "ForkerGone", "Process"]

_EXEC_CHILD: Final = str(Path(__file__).with_name("exec_child.py"))
_ANSWER_S: Final = 60.0
_LEAVE_S: Final = 5.0
_POLL_S: Final = 0.02


class ForkerGone(Exception):
    """It cannot fork; the message says why. Start a program of its own."""


class Process(Protocol):
    """What the supervisor needs of a process, forked or not."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """How it ended, as `subprocess` tells it; None while it runs."""

    async def wait(self) -> int:
        """Waits for its end."""

    def send_signal(self, signal: int) -> None:
        """Does nothing when it has ended."""


class Forked:
    """A service that the forker has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.identity = identify(pid)

    @property
    def returncode(self) -> int | None:
        """How it ended."""
        return self.ended.result() if self.ended.done() else None

    async def wait(self) -> int:
        """Waits for its end."""
        return await asyncio.shield(self.ended)

    def send_signal(self, signal: int) -> None:
        """Does nothing when it has ended."""
        if self.identity is not None and self.identity.alive():  # the forker may have reaped it, and not told yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal)


class Forker:
    """One forker process for one supervisor; used from its event loop."""

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._process: Program | None = None
        self._asked: dict[int, asyncio.Future[Forked]] = {}
        self._count = 0
        self._forked: dict[int, Forked] = {}
        self._waits: set[asyncio.Task[None]] = set()

    async def begin(self, log: Path, environ: Mapping[str, str]) -> None:
        """Starts the process, which loads what services share. On other systems than Linux nothing happens."""
        if sys.platform != "linux" or self._process is not None:
            return
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        file = open_log(log)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _EXEC_CHILD, str(os.getpid()), str(int(signal.SIGTERM))),
                *(sys.executable, "-m", "flint_stack.forker", str(its.fileno()), " " * COMMAND_BYTES),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=dict(environ),
                pass_fds=(its.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            mine.close()
            raise
        finally:
            its.close()
            os.close(file)
        self._link, self._process = mine, Program(process)
        asyncio.get_running_loop().add_reader(mine.fileno(), self._hear)

    @property
    def serves(self) -> bool:
        """Whether it can be asked."""
        return self._link is not None

    async def fork(self, module: str, arguments: Sequence[str], log: int, stop_signal: int) -> Forked:
        """`python -m module arguments` as a fork with the output `log`. Raises ForkerGone.

        A cancelled call ends what it began.
        """
        if self._link is None:
            raise ForkerGone("it is not there")
        self._count += 1
        number = self._count
        order = {"id": number, "module": module, "arguments": list(arguments), "signal": int(stop_signal)}
        message = json.dumps(order).encode()
        if len(message) > MESSAGE_BYTES:
            raise ForkerGone("the command is too long for it")
        answer: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._link, [message], [log])
        except OSError as error:
            raise ForkerGone(error.strerror or str(error)) from None
        self._asked[number] = answer
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await asyncio.shield(answer)
        except TimeoutError:
            answer.add_done_callback(_end)
            raise ForkerGone(f"it gave no answer within {_ANSWER_S:g} s") from None
        except asyncio.CancelledError:
            answer.add_done_callback(_end)
            raise

    async def close(self) -> None:
        """Ends it, after all that it has forked."""
        self._lose()
        if self._process is None:
            return
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        await asyncio.gather(*self._waits)

    def _hear(self) -> None:
        while self._link is not None:
            try:
                data = self._link.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            self._take(json.loads(data))

    def _take(self, message: Mapping[str, Any]) -> None:
        if "ended" in message:
            forked = self._forked.pop(message["ended"], None)
            if forked is not None and not forked.ended.done():
                forked.ended.set_result(message["code"])
            return
        answer = self._asked.pop(message["id"])
        if "refused" in message:
            answer.set_exception(ForkerGone(message["refused"]))
        else:
            self._forked[message["pid"]] = forked = Forked(message["pid"])
            answer.set_result(forked)

    def _lose(self) -> None:
        """It is gone, or to go."""
        link, self._link = self._link, None
        if link is None:
            return
        asyncio.get_running_loop().remove_reader(link.fileno())
        link.close()
        for answer in self._asked.values():
            answer.set_exception(ForkerGone("it has ended"))
        self._asked.clear()
        for forked in self._forked.values():
            wait = asyncio.create_task(_gone(forked))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)
        self._forked.clear()


def _end(answer: asyncio.Future[Forked]) -> None:
    """A fork that nobody waits for any more."""
    if answer.cancelled() or answer.exception() is not None:
        return
    answer.result().send_signal(signal.SIGKILL)


async def _gone(forked: Forked) -> None:
    while forked.identity is not None and forked.identity.alive():  # noqa: ASYNC110 - not a child: nothing tells its end
        await asyncio.sleep(_POLL_S)
    if not forked.ended.done():
        forked.ended.set_result(-signal.SIGTERM)
