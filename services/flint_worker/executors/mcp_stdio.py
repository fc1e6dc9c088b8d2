"""MCP over standard input and output: a server that is started for one call and ends with it.

Only programs that the configuration lists are started. They inherit no environment (PATH and the locale apart), work in
an empty folder of their own, and are a process group of their own, which is killed at the end; a server whose worker
died sees its input end, at which the protocol tells it to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from flint_core.problems import ProblemType
from flint_worker.executors.faults import Fault

__all__ = ["StdioServer"]

_ENDING_S: Final = 1.0
"""A server that was told to stop has this long."""


class StdioServer:
    """One server, for one call. `fault`: why it failed, when it did."""

    def __init__(
        self,
        allowed: Sequence[str],
        command: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        limit_bytes: int,
    ) -> None:
        """Raises Fault when the program may not or cannot be started."""
        if command not in allowed:
            detail = "the worker's configuration does not list this program in worker.mcp_commands"
            raise Fault(ProblemType.AUTHORIZATION, 403, "The program is not permitted", detail)
        found = shutil.which(command)
        if found is None:
            raise Fault(
                ProblemType.CONFIGURATION, 400, "The program is not there", f"{command[:200]} is not on the worker"
            )
        self.fault: Fault | None = None
        self._command = [os.path.abspath(found), *arguments]  # noqa: PTH100  (a link's own name may matter)
        self._environment = environment
        self._limit_bytes = limit_bytes

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Streams for the SDK's session."""
        with tempfile.TemporaryDirectory(prefix="flint-mcp-", ignore_cleanup_errors=True) as folder:
            process = await self._start(folder)
            to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
            to_server, from_session = anyio.create_memory_object_stream[SessionMessage](0)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read, process, to_session)
                    tasks.start_soon(self._write, process, from_session)
                    try:
                        yield from_server, to_server
                    finally:
                        tasks.cancel_scope.cancel()
            finally:
                for stream in (to_session, from_server, to_server, from_session):
                    stream.close()
                await asyncio.shield(asyncio.ensure_future(_end(process)))

    async def _start(self, folder: str) -> asyncio.subprocess.Process:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": folder,
            "TMPDIR": folder,
            **self._environment,
        }
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                cwd=folder,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                limit=self._limit_bytes,
            )
        except (OSError, ValueError) as error:
            detail = type(error).__name__
            raise Fault(ProblemType.CONFIGURATION, 400, "The MCP server cannot be started", detail) from None

    async def _read(self, process: asyncio.subprocess.Process, to_session: Any) -> None:
        if process.stdout is None:
            raise TypeError("the process has no standard output")
        with to_session:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:
                    detail = f"a message of more than {self._limit_bytes} bytes (limits.value_bytes)"
                    title = "The MCP server's answer is too large"
                    self.fault = Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, title, detail)
                    return
                if not line:
                    title = "The MCP server ended before it answered"
                    self.fault = Fault(ProblemType.COMMUNICATION, 502, title)
                    return
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    continue  # some servers print to their output; the answer is still to come
                try:
                    await to_session.send(SessionMessage(message))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return  # the session is over

    async def _write(self, process: asyncio.subprocess.Process, from_session: Any) -> None:
        if process.stdin is None:
            raise TypeError("the process has no standard input")
        with from_session:
            async for entry in from_session:
                text = entry.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                try:
                    await process.stdin.drain()
                except (ConnectionError, BrokenPipeError):
                    return  # it ended: reading tells


async def _end(process: asyncio.subprocess.Process) -> None:
    """As the protocol has it: its input ends, then SIGTERM, then SIGKILL for whatever is left of the group."""
    if process.stdin is not None:
        process.stdin.close()
    for number in (None, signal.SIGTERM):
        if number is not None:
            _signal(process.pid, number)
        try:
            async with asyncio.timeout(_ENDING_S):
                await process.wait()
            break
        except TimeoutError:
            continue
    _signal(process.pid, signal.SIGKILL)
    await process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
