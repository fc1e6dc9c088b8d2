"""procrastinate, from PyPI, on the PostgreSQL that Flint uses: a queue of jobs, without durable steps."""

from __future__ import annotations

from rivals.harness import DRIVERS, Rival, python_packages

__all__ = ["Procrastinate"]

_PACKAGES = ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0")


class Procrastinate(Rival):
    """Its worker is a process of its own; a job is one step."""

    name = "procrastinate"
    settings = "the same PostgreSQL; one worker process with 50 jobs at a time, woken by NOTIFY; uvloop"
    uses_postgres = True
    durable_steps = False
    without = frozenset({"one_ms", "fan_s", "begin_ms", "begin_half_ms"})
    """Nobody can wait for a single job."""
    share = 0.5

    async def install(self) -> None:
        self._python = await python_packages("procrastinate", _PACKAGES)

    async def start(self) -> None:
        script = DRIVERS / "procrastinate_driver.py"
        await self.drive([self._python, script, "client", self.postgres])
        await self.spawn("worker", [self._python, script, "worker", self.postgres])
