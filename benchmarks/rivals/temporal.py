"""Temporal: the development server of its command line program, and its Go SDK, both as Go modules.

Newer versions of the program than this one have a module beside them that no proxy has.
"""

from __future__ import annotations

import shutil

from rivals.harness import CACHE, DRIVERS, Rival, free_port, listening, run

__all__ = ["Temporal", "TemporalLocal"]

_PROGRAM = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
_SDK = "go.temporal.io/sdk@v1.37.0"
_BUILD_S = 1800.0
_LIMITS = ("frontend.namespaceRPS", "frontend.rps", "history.rps", "matching.rps", "history.persistenceMaxQPS")
_LIFTED = 1_000_000
_PRAGMAS = ("journal_mode=wal", "synchronous=normal")
_SETTINGS = (
    "development server 1.29.1, state in a file (SQLite in WAL mode, synchronous normal: four times its defaults), "
    "limits of calls lifted, without web pages; Go SDK 1.37, worker and client each a process, 16 pollers of each kind"
)


class Temporal(Rival):
    """Steps are activities: tasks of their own, that any worker may take."""

    name = "Temporal, activities"
    settings = _SETTINGS
    share = 0.05
    kind = "activity"

    async def install(self) -> None:
        folder, wanted = CACHE / "temporal", f"{_PROGRAM}\n{_SDK}\n{(DRIVERS / 'temporal.go').read_text()}"
        self._server, self._driver_program = folder / "bin" / "temporal", folder / "bin" / "driver"
        marker = folder / "installed"
        if marker.exists() and marker.read_text() == wanted:
            return
        driver = folder / "driver"
        shutil.rmtree(driver, ignore_errors=True)
        driver.mkdir(parents=True)
        shutil.copy(DRIVERS / "temporal.go", driver / "main.go")
        await run(["env", f"GOBIN={folder / 'bin'}", "go", "install", _PROGRAM], timeout_s=_BUILD_S)
        await run(["go", "mod", "init", "bench"], cwd=driver)
        await run(["go", "get", _SDK], cwd=driver)
        await run(["go", "mod", "tidy"], cwd=driver)
        await run(["go", "build", "-o", self._driver_program, "."], cwd=driver, timeout_s=_BUILD_S)
        marker.write_text(wanted)

    async def start(self) -> None:
        port = free_port()
        address = f"127.0.0.1:{port}"
        command = [self._server, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
        command += ["--db-filename", self.folder / "temporal.db", "--log-level", "error"]
        for name in _LIMITS:
            command += ["--dynamic-config-value", f"{name}={_LIFTED}"]
        for pragma in _PRAGMAS:
            command += ["--sqlite-pragma", pragma]
        await self.spawn("server", command)
        await listening(port)
        await self.spawn("worker", [self._driver_program, "worker", address])
        await self.drive([self._driver_program, "client", address, self.kind])


class TemporalLocal(Temporal):
    """Steps are local activities: in the task of their workflow, which records them when it is over."""

    name = "Temporal, local activities"
    share = 0.1
    kind = "local"
