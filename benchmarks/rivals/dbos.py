"""DBOS Transact for Python, from PyPI, on the PostgreSQL that Flint uses."""

from __future__ import annotations

from rivals.harness import DRIVERS, Rival, python_packages

__all__ = ["Dbos"]

_PACKAGES = ("dbos==3.4.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")


class Dbos(Rival):
    """A library: workflows run in the process that starts them, without a server between."""

    name = "DBOS"
    settings = "the same PostgreSQL, 40 connections; async workflows, called in the process that waits for them; uvloop"
    uses_postgres = True
    share = 0.3

    async def install(self) -> None:
        self._python = await python_packages("dbos", _PACKAGES)

    async def start(self) -> None:
        await self.drive([self._python, DRIVERS / "dbos_driver.py", self.postgres])
