"""kill -9 of everything at once, the supervisor and the servers too; then a second start on what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from flint_ops.config import Settings, load
from flint_sdk import AsyncFlint, AsyncRunHandle, FlintError
from flint_stack.down import down
from flint_stack.layout import Layout
from flint_stack.processes import identify
from flint_stack.state import StackState, read_state
from support.outside import outside_world
from support.stack import eventually
from support.traffic import Traffic, run_of

pytestmark = pytest.mark.robustness

DRIVER = str(Path(__file__).parents[1] / "support" / "stack_driver.py")
RUNS = 200


@dataclass
class Machine:
    """A stack kept by a process of its own."""

    data_dir: Path
    supervisor: asyncio.subprocess.Process
    state: StackState

    @property
    def settings(self) -> Settings:
        return load(["--config", str(Layout.at(self.data_dir).config_file)], environ={})

    @property
    def gateway(self) -> str:
        return self.settings.gateway.listen

    @property
    def admin_key(self) -> str:
        return Layout.at(self.data_dir).load_admin_key().token

    async def power_cut(self) -> None:
        """SIGKILLs the supervisor, then all of its children; returns when none of them is left."""
        victims = [child.identity for child in self.state.children]
        assert len(victims) == 10  # three servers, seven services
        assert [v for v in victims if identify(v.pid) == v] == victims
        for pid in (self.supervisor.pid, *(victim.pid for victim in victims)):
            os.kill(pid, signal.SIGKILL)
        await self.supervisor.wait()
        await eventually(lambda: not [v for v in victims if identify(v.pid) == v])


@asynccontextmanager
async def machine(data_dir: Path) -> AsyncIterator[Machine]:
    """`flint up`; whatever is left of it at the end is ended."""
    with (data_dir.parent / "supervisor.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, DRIVER, str(data_dir), "--services", "--leave-children", stdout=log, stderr=log
        )

    def ready() -> StackState | None:
        assert process.returncode is None, (data_dir.parent / "supervisor.log").read_text()
        state = read_state(Layout.at(data_dir).state_file)
        ours = state is not None and state.supervisor.pid == process.pid and state.phase == "ready"
        return state if ours else None

    try:
        yield Machine(data_dir, process, await eventually(ready, 90))
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.wait()
        await down(data_dir, Console(quiet=True), hurry=True)


async def test_kill_everything(tmp_path: Path) -> None:
    data_dir = tmp_path / "flint"
    answered: dict[str, str] = {}
    asked: list[str] = []
    async with outside_world(delay_s=0.5) as world:
        async with machine(data_dir) as first:
            traffic = await Traffic.start(first, world, RUNS)
            starting = asyncio.create_task(keep_starting(first, world.url, asked, answered))
            try:
                await traffic.until_executions(2 * RUNS)
                await eventually(lambda: len(answered) > 20)
                held = await traffic.record.open_legs()
                assert sum(map(len, held.values())), "no leg was open"
                terms = await traffic.record.terms()
                lost = await traffic.moment()
                await first.power_cut()
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await traffic.close()
        async with machine(data_dir) as second:
            again = Traffic(second, world)
            try:
                # What was answered is there, under the same id; what was not may be asked for again.
                handles = [await again.flint.start("robust", {"url": world.url}, request_id=r) for r in asked]
                assert {h.run.request_id: h.id for h in handles if h.run.request_id in answered} == answered
                assert not [h for h in handles if h.created and h.run.request_id in answered]
                again.runs = [*traffic.runs, *(h.id for h in handles)]
                await again.finish()
                repeats = await again.judge()
                legs = await again.record.legs()
                now = await again.record.terms()
                assert all(now[group] > term for group, term in terms.items()), "a term did not rise"
                assert any(legs[run] > 1 for runs in held.values() for run in runs)
                assert all(1 < count <= legs[run_of(key)] for key, count in repeats.items())
                before = {key: n for key, n in repeats.items() if run_of(key) in set(traffic.runs)}
                assert len({run_of(key) for key in before}) == len(before), "two steps of one run ran again"
                assert not {(run_of(key), "/" + key.split("/", 2)[2].rstrip("/")) for key in before} & lost.recorded
            finally:
                await again.close()


async def keep_starting(place: Machine, url: str, asked: list[str], answered: dict[str, str]) -> None:
    """Starts runs one after the other until it is cancelled or nobody answers any more."""
    async with AsyncFlint(place.gateway, place.admin_key, timeout_s=2) as flint:
        while True:
            asked.append(f"start-{len(asked)}")
            try:
                handle: AsyncRunHandle = await flint.start("robust", {"url": url}, request_id=asked[-1])
            except FlintError:
                return
            answered[asked[-1]] = handle.id
