"""The container engine of a worker: its command line, found at start, called with limits.

The engine's own command gets nothing of a definition but words; secrets go through files that only it can open.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from flint_ops.config import ContainerSettings
from flint_ops.logging import get_logger
from flint_worker.processes.output import Output

__all__ = ["Engine", "Said", "find_engine"]

_PROBE_S: Final = 5.0
_PIPES_S: Final = 2.0
_SMALL: Final = 1_000_000
_PASSED: Final = (
    "PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "CONTAINER_HOST",
)
"""What of the worker's environment says where the engine is; it gets nothing else."""

_log = get_logger("flint_worker.engines")


@dataclass(frozen=True, slots=True)
class Said:
    """What one call of the engine's command gave. `full`: it wrote more than it might."""

    code: int
    stdout: bytes
    stderr: bytes
    full: bool

    @property
    def error(self) -> str:
        """The last line of standard error."""
        lines = self.stderr.decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""


class Engine:
    """One engine's command. Stateless, safe for many calls at once."""

    def __init__(self, name: str, command: str) -> None:
        self.name = name
        self.command = command

    async def call(
        self, *words: str, stdin: bytes = b"", file: bytes | None = None, within_s: float, limit: int = _SMALL
    ) -> Said:
        """Runs the engine's command; `{file}` among the words is a path at which it reads `file`.

        Raises TimeoutError; then, and when cancelled, the command is killed (what it started in the engine is not).
        """
        with _memory(stdin) as given, _memory(file or b"") as extra:
            descriptor = extra.fileno()
            words = tuple(f"/proc/self/fd/{descriptor}" if word == "{file}" else word for word in words)
            output = Output(limit)
            stdout, out, stderr, err = await output.pair()
            try:
                process = await asyncio.create_subprocess_exec(
                    self.command,
                    *words,
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    pass_fds=(descriptor,) if file is not None else (),
                    start_new_session=True,
                    env=_environment(),
                    cwd="/",
                )
            except BaseException:
                await asyncio.gather(stdout.close(0), stderr.close(0))
                raise
            finally:
                os.close(out)
                os.close(err)
            try:
                async with asyncio.timeout(within_s):
                    await _first(process.wait(), output.full.wait())
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                await asyncio.gather(stdout.close(_PIPES_S), stderr.close(_PIPES_S))
            code = process.returncode if process.returncode is not None else -1
            return Said(code, bytes(stdout.content), bytes(stderr.content), output.full.is_set())


def find_engine(settings: ContainerSettings) -> Engine | None:
    """The engine that the configuration names, when it answers now. Blocks for at most some seconds."""
    if settings.engine == "off":
        return None
    for name in ("docker", "podman") if settings.engine == "auto" else (settings.engine,):
        command = settings.command or shutil.which(name)
        if not command:
            continue
        try:
            asked = subprocess.run(  # noqa: S603  (the command that the operator configured)
                [command, "version", "--format", "{{.Server.Version}}" if name == "docker" else "{{.Client.Version}}"],
                capture_output=True,
                timeout=_PROBE_S,
                check=False,
                env=_environment(),
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if asked.returncode == 0:
            _log.info("engine_found", engine=name, version=asked.stdout.decode(errors="replace").strip()[:40])
            return Engine(name, command)
    if settings.engine != "auto":
        _log.warning("engine_missing", engine=settings.engine)
    return None


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED if name in os.environ}


def _memory(data: bytes) -> Any:
    file = os.fdopen(os.memfd_create("engine"), "w+b")
    file.write(data)
    file.seek(0)
    return file


async def _first(*waits: Any) -> None:
    """Until the first of these is done; the others are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
