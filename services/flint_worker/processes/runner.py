"""Runs programs: a bounded number at a time, each under a launcher of its own.

A program's states: WAITING (for a place) → RUNNING → ENDING (asked to end: timeout, cancellation, too much output;
killed after the grace) → ENDED (its work folder is gone). A cancelled call returns at once; its program ends in the
background and counts as unfinished until then. When the worker dies the launcher sees its socket close and kills the
program.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import sys
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from flint_ops.config import ScriptSettings
from flint_ops.logging import get_logger
from flint_worker.processes.folders import make_folder, remove_folder
from flint_worker.processes.output import Output
from flint_worker.processes.program import EndedBy, Ending, Program

__all__ = ["ProcessRunner"]

_LAUNCHER: Final = str(Path(__file__).with_name("launcher.py"))
_ANSWER_BYTES: Final = 65_536
_AUTO: Final = "auto"
_NOBODY: Final = "nobody"
_PIPES_S: Final = 2.0
_AFTER_KILL_S: Final = 10.0
_REASONS: Final = {"memory": EndedBy.MEMORY, "processes": EndedBy.PROCESSES, "start": EndedBy.NOT_STARTED}

_log = get_logger("flint_worker.processes")


class ProcessRunner:
    """Runs programs for one executor. Safe for many calls at once on one event loop."""

    def __init__(self, settings: ScriptSettings) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(settings.concurrency)
        self._running: dict[asyncio.Task[Ending], asyncio.Event] = {}
        self.owner = _ids(settings)
        """User and group id that programs run as; None: the worker's own. KeyError at start for an unknown user."""

    @property
    def unfinished(self) -> int:
        """Programs that have not ended, those included that nobody waits for."""
        return len(self._running)

    async def run(self, program: Program) -> Ending:
        """Runs it to its end. When cancelled the program is asked to end and CancelledError passes at once."""
        await self._places.acquire()
        stop = asyncio.Event()
        task = self._spawn(self._one(program, stop, keep_output=True), stop)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.set()
            raise

    async def start(self, program: Program) -> None:
        """Starts it and does not wait for its end. It takes a place, has all limits, and ends with the worker."""
        await self._places.acquire()
        stop = asyncio.Event()
        self._spawn(self._one(program, stop, keep_output=False), stop).add_done_callback(_report)

    async def close(self) -> None:
        """Ends every program that still runs; bounded by the grace."""
        for stop in self._running.values():
            stop.set()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, Ending], stop: asyncio.Event) -> asyncio.Task[Ending]:
        task = asyncio.create_task(work)
        self._running[task] = stop
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Ending]) -> None:
        self._running.pop(task)
        self._places.release()
        if not task.cancelled():
            task.exception()  # whoever waits for it sees it; nobody else has to

    async def _one(self, program: Program, stop: asyncio.Event, *, keep_output: bool) -> Ending:
        owner = self.owner
        try:
            folder = await asyncio.to_thread(make_folder, self._settings.folder, program.files, owner)
        except OSError as error:  # the disk is full, or not to be written
            why = error.strerror or type(error).__name__
            _log.error("no_work_folder", folder=self._settings.folder, error=str(error))
            return Ending(EndedBy.NO_FOLDER, None, None, b"", b"", why)
        try:
            return await self._launch(program, stop, folder, owner, keep_output)
        finally:
            await asyncio.to_thread(remove_folder, folder)

    async def _launch(
        self,
        program: Program,
        stop: asyncio.Event,
        folder: Path,
        owner: tuple[int, int] | None,
        keep_output: bool,
    ) -> Ending:
        output = Output(program.limits.output_bytes if keep_output else 0)
        stdout, out, stderr, err = await output.pair()
        ours, theirs = socket.socketpair()
        with _content(program.stdin) as stdin:
            try:
                launcher = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    "-B",
                    _LAUNCHER,
                    str(theirs.fileno()),
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env={"PATH": self._settings.path, "LANG": "C.UTF-8"},
                    cwd="/",
                )
            except BaseException:
                ours.close()
                await asyncio.gather(stdout.close(0), stderr.close(0))
                raise
            finally:
                theirs.close()
                os.close(out)
                os.close(err)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            order = self._order(program, folder, owner)
            writer.write(len(order).to_bytes(4, "big") + order)
            full = output.full if keep_output else asyncio.Event()
            by, answer = await self._watch(program, reader, writer, stop, full)
        finally:
            writer.close()  # the launcher kills everything at once when it still runs
            with suppress(OSError):
                await writer.wait_closed()
            await _gone(launcher)
            await asyncio.gather(stdout.close(_PIPES_S), stderr.close(_PIPES_S))
        reason = answer.get("reason", "")
        if by is EndedBy.ITSELF:
            by = _REASONS.get(reason, EndedBy.NOT_ISOLATED if reason == "isolation" else by)
        if not answer and by is EndedBy.ITSELF:
            by = EndedBy.LOST
        return Ending(
            by,
            answer.get("code"),
            answer.get("signal"),
            bytes(stdout.content),
            bytes(stderr.content),
            answer.get("detail", ""),
        )

    async def _watch(
        self,
        program: Program,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stop: asyncio.Event,
        full: asyncio.Event,
    ) -> tuple[EndedBy, dict[str, Any]]:
        """Waits for the launcher's answer; asks it to end the program when there is a reason. Answers why."""
        answering = asyncio.create_task(_answer(reader))
        stopping = asyncio.create_task(stop.wait())
        filling = asyncio.create_task(full.wait())
        try:
            await asyncio.wait(
                {answering, stopping, filling},
                timeout=program.limits.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answering.done():
                return (EndedBy.OUTPUT if filling.done() else EndedBy.ITSELF), answering.result()
            by = EndedBy.CANCELLED if stopping.done() else EndedBy.OUTPUT if filling.done() else EndedBy.TIMEOUT
            with suppress(OSError):
                writer.write(b"K" if by is EndedBy.OUTPUT else b"T")
            await asyncio.wait({answering}, timeout=self._settings.grace_s + _AFTER_KILL_S)
            return by, answering.result() if answering.done() else {}
        finally:
            for task in (answering, stopping, filling):
                task.cancel()
            await asyncio.gather(answering, stopping, filling, return_exceptions=True)

    def _order(self, program: Program, folder: Path, owner: tuple[int, int] | None) -> bytes:
        limits = program.limits
        environment = {
            "PATH": self._settings.path,
            "LANG": "C.UTF-8",
            **program.environment,
            "HOME": str(folder),
            "TMPDIR": str(folder),
        }
        order = {
            "argv": program.argv,
            "environment": environment,
            "folder": str(folder),
            "uid": owner[0] if owner else None,
            "gid": owner[1] if owner else None,
            "isolation": self._settings.isolation,
            "as_root": self._settings.user == "root",
            "grace_s": self._settings.grace_s,
            "extra": program.extra,
            "limits": {
                "cpu_s": limits.cpu_s,
                "memory_bytes": limits.memory_bytes,
                "address_bytes": limits.address_bytes,
                "file_bytes": limits.file_bytes,
                "files": limits.files,
                "processes": limits.processes,
            },
        }
        return json.dumps(order).encode()


def _ids(settings: ScriptSettings) -> tuple[int, int] | None:
    """User and group id that programs run as; None for the worker's own. Raises KeyError for an unknown user."""
    if not settings.user or os.geteuid() != 0:
        return None
    if settings.user != _AUTO:
        entry = pwd.getpwnam(settings.user)
        return entry.pw_uid, entry.pw_gid
    try:
        entry = pwd.getpwnam(_NOBODY)
    except KeyError:
        return None
    places = (settings.python or sys.executable, sys.base_prefix, settings.folder or tempfile.gettempdir())
    if all(_open_to_all(Path(place).resolve()) for place in places):
        return entry.pw_uid, entry.pw_gid
    _log.warning(
        "programs_run_as_root",
        why="another user cannot reach the interpreter or the work folders; without namespaces they are refused",
    )
    return None


def _open_to_all(path: Path) -> bool:
    """Whether any user may enter a folder, or run a file, and everything above it."""
    try:
        return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
    except OSError:
        return False


def _content(data: bytes) -> Any:
    """An open file that holds these bytes: no pipe has to be fed while the program runs."""
    file = os.fdopen(os.memfd_create("stdin"), "w+b")
    file.write(data)
    file.seek(0)
    return file


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The launcher's one answer; empty when it ended without one."""
    with suppress(OSError, ValueError):
        found = json.loads(await reader.read(_ANSWER_BYTES))
        if isinstance(found, dict):
            return found
    return {}


async def _gone(launcher: asyncio.subprocess.Process) -> None:
    """Until the launcher is reaped; it is killed when it does not end by itself."""
    try:
        async with asyncio.timeout(_AFTER_KILL_S):
            await launcher.wait()
    except TimeoutError:
        _log.error("launcher_killed", pid=launcher.pid)
        with suppress(ProcessLookupError):
            launcher.kill()
        await launcher.wait()


def _report(task: asyncio.Task[Ending]) -> None:
    """A program that nobody waited for has ended: the only trace of how."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _log.warning("detached_program_failed", error=type(error).__name__)
    else:
        ending = task.result()
        _log.info("detached_program_ended", by=ending.by.value, code=ending.code, signal=ending.signal)
