"""Packages that Python scripts declare: one folder for each pinned set, installed once and kept.

A set's states: ABSENT → BUILDING (in a folder beside, by one call; others of this worker wait for it) → READY (renamed
into its place, so another worker on the same folder sees all of it or nothing). Only wheels are installed: nothing of a
package is executed before a script imports it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from flint_core.problems import ProblemType
from flint_ops.config import ScriptSettings
from flint_worker.executors import ResolvedCall
from flint_worker.executors.arguments import failure
from flint_worker.processes import EndedBy, ProcessRunner, Program, ProgramLimits

__all__ = ["PackageSets"]

_PINNED: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.!+_-]+"
)
_INSTALL_S: Final = 600.0
_INSTALL_FILE_BYTES: Final = 4 * 2**30
_TAIL: Final = 1_000


class PackageSets:
    """The sets of one worker. Safe for many calls at once."""

    def __init__(self, settings: ScriptSettings, runner: ProcessRunner) -> None:
        self._settings = settings
        self._runner = runner
        self._building: dict[str, asyncio.Task[Path]] = {}

    async def folder(self, call: ResolvedCall, packages: list[str], limits: ProgramLimits) -> Path:
        """The folder that holds these packages; installed now when it is not there. Raises ExecutionFailed."""
        wanted = self._checked(call, packages)
        key = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:32]
        place = Path(self._settings.packages_folder) / key
        if await asyncio.to_thread(place.is_dir):
            return place
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = asyncio.create_task(self._build(call, wanted, place, limits))
            task.add_done_callback(lambda done: self._built(key, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Gives up what is being installed."""
        for task in list(self._building.values()):
            task.cancel()
        await asyncio.gather(*self._building.values(), return_exceptions=True)

    def _built(self, key: str, task: asyncio.Task[Path]) -> None:
        self._building.pop(key)
        if not task.cancelled():
            task.exception()  # those who wait see it

    def _checked(self, call: ResolvedCall, packages: list[str]) -> list[str]:
        allowed = {_normal(name) for name in self._settings.packages}
        if not allowed or not self._settings.packages_folder:
            detail = (
                "this worker installs no packages; its operator allows them with worker.scripts.packages and "
                "worker.scripts.packages_folder"
            )
            raise failure(call, ProblemType.CONFIGURATION, 400, "Packages are not allowed", detail)
        for package in packages:
            match = _PINNED.fullmatch(package)
            if match is None:
                detail = "/packages: each must be pinned, as in requests==2.32.3"
                raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)
            if "*" not in allowed and _normal(match["name"]) not in allowed:
                detail = f"{match['name']} is not among worker.scripts.packages of this worker"
                raise failure(call, ProblemType.CONFIGURATION, 400, "Package not allowed", detail)
        return sorted(set(packages))

    async def _build(self, call: ResolvedCall, packages: list[str], place: Path, limits: ProgramLimits) -> Path:
        parent = place.parent
        await asyncio.to_thread(parent.mkdir, parents=True, exist_ok=True)
        fresh = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".new-", dir=parent))
        try:
            owner = self._runner.owner
            if owner is not None:
                await asyncio.to_thread(os.chown, fresh, *owner)
            index = self._settings.packages_index
            program = Program(
                (
                    *(sys.executable, "-I", "-B", "-m", "pip", "install", "--isolated", "--no-input", "--quiet"),
                    *("--disable-pip-version-check", "--no-cache-dir", "--only-binary=:all:", "--target", str(fresh)),
                    *(("--index-url", index) if index else ()),
                    *packages,
                ),
                replace(limits, timeout_s=_INSTALL_S, file_bytes=_INSTALL_FILE_BYTES, cpu_s=int(_INSTALL_S)),
            )
            ending = await self._runner.run(program)
            if ending.by is EndedBy.TIMEOUT:
                raise failure(call, ProblemType.TIMEOUT, 408, "Installing the packages took too long")
            if ending.code != 0:
                detail = ending.stderr.decode(errors="replace").strip()[-_TAIL:]
                raise failure(call, ProblemType.CONFIGURATION, 400, "The packages cannot be installed", detail)
            await asyncio.to_thread(_publish, fresh, place)
        except (OSError, ValueError) as error:
            detail = f"worker.scripts.packages_folder: {type(error).__name__}"
            raise failure(call, ProblemType.CONFIGURATION, 400, "The packages cannot be kept", detail) from None
        finally:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        return place


def _publish(fresh: Path, place: Path) -> None:
    fresh.chmod(0o755)
    try:
        fresh.rename(place)
    except OSError:
        if not place.is_dir():
            raise  # another worker was not faster: something is wrong


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
