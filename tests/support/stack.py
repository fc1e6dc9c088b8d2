"""A whole Flint for tests, or its servers alone: real processes on free ports below a temporary folder.

    async with running_stack(tmp_path, servers_only=True) as stack:
        stack.settings.postgres.dsn; await stack.kill("nats")

Everything is ended when the block is left, however it is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flint_ops.config import Settings
from flint_stack.logfiles import log_tail
from flint_stack.ports import Counts, Ports
from flint_stack.processes import ProcessIdentity, identify
from flint_stack.stack import Stack, StackOptions, no_process_settings
from flint_stack.supervisor import ChildEvent

Found = TypeVar("Found")


@dataclass
class RunningStack:
    """Handles on a running stack; children by name: postgres nats etcd gateway scheduler-1 registry-1 worker-1 …"""

    stack: Stack
    events: list[ChildEvent]

    @property
    def settings(self) -> Settings:
        """Settings in force; `settings.nats` logs in as operator."""
        return self.stack.settings

    @property
    def ports(self) -> Ports:
        return self.stack.ports

    @property
    def addresses(self) -> dict[str, str]:
        return self.stack.addresses()

    @property
    def data_dir(self) -> Path:
        return self.stack.layout.root

    @property
    def gateway(self) -> str:
        return self.settings.gateway.listen

    @property
    def admin_key(self) -> str:
        return self.stack.layout.load_admin_key().token

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        return self.stack.supervisor.pids()

    def pid(self, name: str) -> int:
        return self.stack.supervisor.pid(name)

    def restarts(self, name: str) -> int:
        return self.stack.supervisor.restarts(name)

    def log(self, name: str, lines: int = 50) -> str:
        return log_tail(self.stack.layout.log_file(name), lines=lines)

    async def kill(self, name: str, *, hold: bool = False) -> ProcessIdentity:
        """kill -9; returns who it was, once gone. It is started again at once, unless `hold` (then by `start`)."""
        return await self.stack.supervisor.kill_child(name, hold=hold)

    async def stop(self, name: str) -> None:
        """SIGTERM, waits for the end, does not start again."""
        await self.stack.supervisor.stop_child(name)

    async def start(self, name: str) -> None:
        """Starts what `stop` or `kill(hold=True)` ended; returns when it is ready."""
        await self.stack.supervisor.start_child(name)

    async def restart(self, name: str) -> None:
        await self.stop(name)
        await self.start(name)

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self.stack.supervisor.signal_child(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.stack.supervisor.signal_child(name, signal.SIGCONT)

    async def ready(self, name: str, timeout_s: float = 60.0) -> None:
        """Waits until a child is ready (again)."""
        await self.stack.supervisor.wait_ready(name, timeout_s)

    async def add_worker(self, name: str, **settings: Any) -> None:
        """One more worker; `settings` go into its section."""
        port = Ports.free(Counts(0, 0, 1)).worker_ops[0]
        await self.stack.supervisor.start([self.stack.plan.worker_at(name, port, **settings)])

    async def add_gateway(self, name: str) -> str:
        """One more gateway: its address."""
        port, ops_port = Ports.free(Counts(0, 0, 2)).worker_ops
        await self.stack.supervisor.start([self.stack.plan.gateway_at(name, port, ops_port)])
        return f"127.0.0.1:{port}"


@asynccontextmanager
async def running_stack(
    folder: Path,
    *,
    servers_only: bool = False,
    workers: int = 2,
    schedulers: int = 2,
    registries: int = 2,
    overrides: Mapping[str, Any] | None = None,
    die_with_supervisor: bool = True,
    process_settings: Callable[[Ports, str], Mapping[str, Any]] = no_process_settings,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningStack]:
    """A stack below `folder`. `overrides`: nested settings, e.g. {"registry": {"lease_ttl_s": 2}}.

    `process_settings`: over those, of the process so named. `environ`: the environment of all, else this one's.
    """
    events: list[ChildEvent] = []
    stack = Stack(
        StackOptions(
            data_dir=folder / "flint",
            port_base=0,
            counts=Counts(schedulers=schedulers, registries=registries, workers=workers),
            extra_settings=lambda layout: overrides or {},
            servers_only=servers_only,
            die_with_supervisor=die_with_supervisor,
            process_settings=process_settings,
            environ=dict(os.environ) if environ is None else environ,
        ),
        on_event=events.append,
    )
    await stack.start()
    try:
        yield RunningStack(stack, events)
    finally:
        await asyncio.shield(stack.stop())


async def eventually(
    condition: Callable[[], Awaitable[Found] | Found], timeout_s: float = 60.0, interval_s: float = 0.02
) -> Found:
    """The first true answer of `condition`, asked again and again; fails after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        answer = condition()
        found = await answer if isinstance(answer, Awaitable) else answer
        if found:
            return found
        if loop.time() > deadline:
            raise AssertionError(f"did not come true within {timeout_s:g} s")
        await asyncio.sleep(interval_s)


def running(identity: ProcessIdentity) -> bool:
    """Whether exactly this process runs."""
    return identify(identity.pid) == identity
