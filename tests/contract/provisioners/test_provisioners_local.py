"""The worker host and its provisioner with real processes. The workers find no NATS, and so only wait and end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from flint_registry.provisioners import Order, Provisioned, ProvisionerRefused, ProvisionerUnavailable
from flint_registry.provisioners.local import LocalProvisioner
from support.stack import eventually

WITHIN_S = 60.0
CONFIG = """
[cluster]
internal_token = "a-token-of-the-test"
[nats]
urls = ["nats://127.0.0.1:1"]
[worker]
drain_s = 20
"""


class Host:
    """A worker host of the test's own."""

    def __init__(self, folder: Path) -> None:
        # Longer than the path of a socket may be: hosts and provisioners must not mind.
        self.folder = folder / ("a-long-name-" * 8)
        self.folder.mkdir()
        (self.folder / "worker.toml").write_text(CONFIG)
        self.socket = self.folder / "workers.sock"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, most: int = 4) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "flint_worker.host",
            f"--socket={self.socket}",
            f"--logs={self.folder}",
            f"--workers={most}",
            "--config",
            str(self.folder / "worker.toml"),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children()


@asynccontextmanager
async def hosted(folder: Path, most: int = 4) -> AsyncIterator[tuple[Host, LocalProvisioner]]:
    host = Host(folder)
    await host.start(most)
    provisioner = LocalProvisioner(host.socket)

    async def answers() -> bool:
        try:
            await provisioner.list()
        except ProvisionerUnavailable:
            return False
        return True

    try:
        await eventually(answers, WITHIN_S)
        yield host, provisioner
    finally:
        await provisioner.close()
        await host.end(signal.SIGTERM)


def order(name: str) -> Order:
    return Order(name, "default", "local", 8)


async def test_workers_start_once_end_and_are_seen_to_end(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, provisioner):
        told: dict[str, Provisioned] = {}

        async def follow() -> None:
            async for worker in provisioner.watch():
                told[worker.worker_id] = worker

        following = asyncio.create_task(follow())
        try:
            await provisioner.start([order("a"), order("b")])
            await provisioner.start([order("a")])  # repeated
            assert len(host.children()) == 2
            groups = {os.getpgid(child.pid) for child in host.children()}
            assert groups == {child.pid for child in host.children()}, "each leads a group of its own"
            (killed, asked) = sorted(host.children(), key=lambda child: child.pid)
            os.kill(killed.pid, signal.SIGKILL)
            await eventually(lambda: "a" in told, WITHIN_S)
            assert told["a"].ended and told["a"].failed and told["a"].detail == "signal 9"
            await provisioner.end(["b", "nobody"])
            await eventually(lambda: "b" in told, WITHIN_S)
            assert not told["b"].failed and not asked.is_running()
            await provisioner.start([order("a")])  # an id is never used again
            assert not host.children()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        fresh = LocalProvisioner(host.socket)  # another registry leads now: it is told what ended before
        watching = fresh.watch()
        assert {(await anext(watching)).worker_id for _ in range(2)} == {"a", "b"}
        await watching.aclose()
        await fresh.close()


async def test_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    async with hosted(tmp_path, most=1) as (host, provisioner):
        with pytest.raises(ProvisionerRefused, match="local_workers"):
            await provisioner.start([order("a"), order("b")])
        assert [worker.worker_id for worker in await provisioner.list()] == ["a"]
        assert len(host.children()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel tells nobody that a parent died")
async def test_no_worker_outlives_its_host(tmp_path: Path, number: signal.Signals) -> None:
    async with hosted(tmp_path) as (host, provisioner):
        await provisioner.start([order("a"), order("b")])
        children = host.children()
        await host.end(number)
        await eventually(lambda: not any(_lives(child) for child in children), WITHIN_S)
        with pytest.raises(ProvisionerUnavailable):
            await provisioner.list()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
