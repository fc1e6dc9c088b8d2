"""Prefect, from PyPI, with its own server.

On PostgreSQL that needs the extension pg_trgm, which the PostgreSQL of the benchmarks is built without: so on SQLite,
which is its default. Version 3.9.1 asks for a certifi that PyPI does not have, and 3.8.8 fails with
newer versions of FastAPI.
"""

from __future__ import annotations

import asyncio
import urllib.request

from rivals.harness import DRIVERS, Missing, Rival, free_port, python_packages

__all__ = ["Prefect"]

_PACKAGES = ("prefect==3.8.8", "fastapi==0.139.2", "uvloop==0.23.0")
_READY_S = 120


class Prefect(Rival):
    """Flows run in the process that starts them, and tell their states to the server."""

    name = "Prefect"
    settings = (
        "version 3.8.8, one server process with its services but those for schedules, on SQLite as by default (the "
        "PostgreSQL here lacks the extension pg_trgm); results of steps persisted in files; logs are not sent to the "
        "server, telemetry off; 16 flows at a time"
    )
    share = 0.015
    without = frozenset({"fan_s", "begin_half_ms", "w2_50", "w2_500", "w2_batch"})
    """A thousand steps of one run take minutes; its rate is too low for a half of it to be a load; and with 16 flows at
    a time it makes no difference how many more wait."""

    async def install(self) -> None:
        self._python = await python_packages("prefect", _PACKAGES)

    async def start(self) -> None:
        port = free_port()
        environ = {
            "PYTHONPATH": str(DRIVERS),
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        command = [self._python, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        await self.spawn("server", [*command, "--no-ui"], environ)
        await self._healthy(f"http://127.0.0.1:{port}/api/health")
        await self.drive([self._python, DRIVERS / "prefect_driver.py"], environ)

    async def _healthy(self, url: str) -> None:
        """Its first start brings the database to its schema."""
        for _ in range(_READY_S * 2):
            try:
                await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())
            except OSError:
                if self.processes[0].returncode is not None:
                    break
                await asyncio.sleep(0.5)
            else:
                return
        raise Missing(f"its server did not start: {self.log('server')}")
