"""Packages that Python scripts declare: one folder for each pinned set, installed once and kept.

A set's states: ABSENT → BUILDING (in a folder beside, by one call; others of this worker wait for it) → READY (renamed
into its place, so another worker on the same folder sees all of it or nothing). Only wheels are installed: nothing of a
package is executed before a script imports it.

A script must not change what another imports. Where programs run as another user than the worker, a built set is copied
into a folder that belongs to the worker, and all workers on the same folder share it. Where they run as the same user
nothing can be kept from them: each worker process then has its own sets, and installs one anew when it was changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from flint_core.problems import ProblemType
from flint_ops.config import ScriptSettings
from flint_ops.logging import get_logger
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import failure
from flint_worker.executors.package_folders import WorkersFolder, is_kept_by, signature, taken_over
from flint_worker.processes import EndedBy, ProcessRunner, Program, ProgramLimits
from flint_worker.processes.folders import remove_folder

__all__ = ["PackageSets"]

_PINNED: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.!+_-]+"
)
_INSTALL_S: Final = 600.0
_INSTALL_FILE_BYTES: Final = 4 * 2**30
_TAIL: Final = 1_000
_FORM: Final = "2"
"""Counts up when sets of before must not be used any more."""

_log = get_logger("flint_worker.packages")


class PackageSets:
    """The sets of one worker. Safe for many calls at once."""

    def __init__(self, settings: ScriptSettings, runner: ProcessRunner) -> None:
        self._settings = settings
        self._runner = runner
        self._parent = Path(settings.packages_folder)
        self._apart = runner.owner is not None and runner.owner[0] != os.geteuid()
        self._known: dict[str, tuple[Path, bytes]] = {}
        self._own: WorkersFolder | None = None
        self._opening = asyncio.Lock()
        self._building: dict[str, asyncio.Task[Path]] = {}

    async def folder(self, call: ResolvedCall, packages: list[str], limits: ProgramLimits) -> Path:
        """The folder that holds these packages; installed now when it is not there. Raises ExecutionFailed."""
        wanted = self._checked(call, packages)
        key = hashlib.sha256("\n".join([sys.version, _FORM, *wanted]).encode()).hexdigest()[:32]
        try:
            found = await self._found(key)
        except OSError as error:
            raise _not_kept(call, type(error).__name__) from None
        if found is not None:
            return found
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = asyncio.create_task(self._build(call, wanted, key, limits))
            task.add_done_callback(lambda done: self._built(key, done))
        return await asyncio.shield(task)

    async def _found(self, key: str) -> Path | None:
        if self._apart:
            place = self._parent / key
            if await asyncio.to_thread(is_kept_by, place, os.geteuid()):
                return place
            return None
        known = self._known.get(key)
        if known is None:
            return None
        place, seal = known
        try:
            if await asyncio.to_thread(signature, place) == seal:
                return place
        except FileNotFoundError:
            pass  # part of it is gone: it was changed
        if self._known.get(key) is known:
            del self._known[key]
            _log.warning("package_set_changed", set=key, why="a program wrote into it; it is installed anew")
        return None

    async def close(self) -> None:
        """Gives up what is being installed."""
        for task in list(self._building.values()):
            task.cancel()
        await asyncio.gather(*self._building.values(), return_exceptions=True)

    async def clear(self) -> None:
        """Removes the sets that are this process's alone. No program runs any more."""
        if self._own is not None:
            await asyncio.to_thread(self._own.close)
            self._own = None

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

    async def _build(self, call: ResolvedCall, packages: list[str], key: str, limits: ProgramLimits) -> Path:
        fresh: Path | None = None
        try:
            parent = await self._folder()
            fresh = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".new-", dir=parent))
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
            if self._apart and owner is not None:
                return await asyncio.to_thread(_publish, fresh, parent / key, owner[0])
            place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=f"{key[:8]}-", dir=parent))
            await asyncio.to_thread(fresh.rename, place)
            fresh = None
            self._known[key] = place, await asyncio.to_thread(signature, place)
        except (OSError, ValueError) as error:
            raise _not_kept(call, type(error).__name__) from None
        finally:
            if fresh is not None:
                await asyncio.to_thread(remove_folder, fresh)
        return place

    async def _folder(self) -> Path:
        """Where sets are made. Raises OSError."""
        if not self._apart:
            async with self._opening:
                if self._own is None:
                    self._own = await asyncio.to_thread(WorkersFolder, self._parent)
            return self._own.path
        await asyncio.to_thread(self._parent.mkdir, mode=0o755, parents=True, exist_ok=True)
        if not await asyncio.to_thread(is_kept_by, self._parent, os.geteuid()):
            raise PermissionError("others may write into the folder")
        return self._parent


def _not_kept(call: ResolvedCall, why: str) -> ExecutionFailed:
    detail = f"worker.scripts.packages_folder: {why}; it must be the worker's own, and nobody else may write into it"
    return failure(call, ProblemType.CONFIGURATION, 400, "The packages cannot be kept", detail)


def _publish(fresh: Path, place: Path, owner: int) -> Path:
    """The set as a copy that belongs to the worker, renamed into its place."""
    copy = Path(tempfile.mkdtemp(prefix=".own-", dir=place.parent))
    try:
        taken_over(fresh, copy / "set", owner)
        try:
            (copy / "set").rename(place)
        except OSError:
            if not is_kept_by(place, os.geteuid()):
                raise  # another worker was not faster: something is wrong
    finally:
        remove_folder(copy)
    return place


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
