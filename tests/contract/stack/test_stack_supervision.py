"""Life of a supervisor as a process of its own: signals, kill -9, orphans, the lock, `flint down`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from rich.console import Console

from flint_stack.down import down
from flint_stack.errors import AlreadyRunning
from flint_stack.layout import Layout
from flint_stack.orphans import find_orphans
from flint_stack.processes import marked_processes
from flint_stack.stack import Stack, StackOptions
from flint_stack.state import StackState, read_state, write_state
from support.stack import eventually, running, running_stack

DRIVER = str(Path(__file__).parents[2] / "support" / "stack_driver.py")
SERVERS = {"postgres", "nats", "etcd"}


@asynccontextmanager
async def driver(data_dir: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The supervisor as a process; killed at the end if it is still there, and its children with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, DRIVER, str(data_dir), *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        await down(data_dir, Console(quiet=True), hurry=True)


async def ready_state(data_dir: Path) -> StackState:
    def ready() -> StackState | None:
        state = read_state(Layout.at(data_dir).state_file)
        return state if state is not None and state.phase == "ready" else None

    return await eventually(ready, 60)


def dsn(data_dir: Path) -> str:
    state = read_state(Layout.at(data_dir).state_file)
    assert state is not None
    return f"postgresql://flint:{Layout.at(data_dir).load_secrets().postgres}@{state.addresses['postgres']}/flint"


def traces(data_dir: Path) -> list[str]:
    """Every process that has the data directory in its command line or as its working folder, drivers excepted."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            command = " ".join(process.cmdline())
            inside = str(data_dir) in command or process.cwd().startswith(str(data_dir))
            if inside and process.status() != psutil.STATUS_ZOMBIE and DRIVER not in command:
                found.append(f"{process.pid} {command}")
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_everything_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    data_dir = tmp_path / "flint"
    async with driver(data_dir) as process:
        state = await ready_state(data_dir)
        assert {child.name for child in state.children} == SERVERS
        assert len({child.identity.pid for child in state.children}) == len(SERVERS)
        process.send_signal(number)
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert b"Stopped." in output
        assert traces(data_dir) == []
        assert not (data_dir / "postgres" / "data" / "postmaster.pid").exists()


async def test_a_terminal_that_has_gone_does_not_keep_anything_running(tmp_path: Path) -> None:
    data_dir = tmp_path / "flint"
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, DRIVER, str(data_dir), stdout=writing, stderr=writing
    )
    os.close(writing)
    try:
        await ready_state(data_dir)
        os.close(reading)
        process.send_signal(signal.SIGHUP)
        await process.wait()
        assert traces(data_dir) == []
    finally:
        await down(data_dir, Console(quiet=True), hurry=True)


async def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    data_dir = tmp_path / "flint"
    async with driver(data_dir) as process:
        await eventually(lambda: traces(data_dir))
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode in (0, 130)
        assert traces(data_dir) == []


@pytest.mark.parametrize("options", [(), ("--services",)], ids=["servers", "everything"])
async def test_children_end_when_their_supervisor_is_killed(tmp_path: Path, options: tuple[str, ...]) -> None:
    if sys.platform != "linux":
        pytest.skip("needs PR_SET_PDEATHSIG")
    data_dir = tmp_path / "flint"
    async with driver(data_dir, *options) as process:
        state = await ready_state(data_dir)
        process.kill()
        await process.communicate()
        await eventually(lambda: not any(child.identity.alive() for child in state.children))
        await eventually(lambda: not marked_processes(data_dir))


@pytest.mark.parametrize("lost", ["nothing", "the state file"])
async def test_orphans_are_found_and_ended_at_the_next_start_and_data_survives(tmp_path: Path, lost: str) -> None:
    data_dir = tmp_path / "flint"
    async with driver(data_dir, "--leave-children") as process:
        orphans = [child.identity for child in (await ready_state(data_dir)).children]
        async with await psycopg.AsyncConnection.connect(dsn(data_dir)) as connection:
            await connection.execute("create table kept as select 42 as answer")
        process.kill()
        await process.communicate()
        assert all(running(identity) for identity in orphans)
        assert set(orphans) <= set(find_orphans(Layout.at(data_dir)))
        if lost == "the state file":
            Layout.at(data_dir).state_file.write_text("{ half a sta")
        async with running_stack(tmp_path, servers_only=True) as stack:
            assert not any(running(identity) for identity in orphans)
            assert stack.stack.orphans_ended >= len(SERVERS)
            async with await psycopg.AsyncConnection.connect(
                stack.settings.postgres.dsn.get_secret_value()
            ) as connection:
                assert await (await connection.execute("select answer from kept")).fetchone() == (42,)
        assert traces(data_dir) == []


async def test_everything_killed_at_once_comes_back_with_its_data(tmp_path: Path) -> None:
    data_dir = tmp_path / "flint"
    async with driver(data_dir, "--leave-children") as process:
        state = await ready_state(data_dir)
        async with await psycopg.AsyncConnection.connect(dsn(data_dir)) as connection:
            await connection.execute("create table kept as select 42 as answer")
        for pid in (process.pid, *(child.identity.pid for child in state.children)):
            os.kill(pid, signal.SIGKILL)
        await process.communicate()
        assert (data_dir / "postgres" / "data" / "postmaster.pid").exists()
        async with (
            running_stack(tmp_path, servers_only=True) as stack,
            await psycopg.AsyncConnection.connect(stack.settings.postgres.dsn.get_secret_value()) as connection,
        ):
            assert await (await connection.execute("select answer from kept")).fetchone() == (42,)


async def test_a_stale_postmaster_pid_of_another_living_process_does_not_stop_the_start(tmp_path: Path) -> None:
    async with running_stack(tmp_path, servers_only=True) as stack:
        cluster = stack.stack.layout.postgres_dir / "data"
    (cluster / "postmaster.pid").write_text(f"{os.getppid()}\n{cluster}\n1\n1\n\n127.0.0.1\n")
    async with running_stack(tmp_path, servers_only=True) as stack:
        assert stack.restarts("postgres") == 0


async def test_the_state_file_never_gets_a_stranger_killed(tmp_path: Path) -> None:
    """The pid of an orphan may belong to somebody else by the next start."""
    data_dir = tmp_path / "flint"
    async with running_stack(tmp_path, servers_only=True):
        state = read_state(Layout.at(data_dir).state_file)
        assert state is not None
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        child = state.children[0]
        forged = type(child)(child.name, child.wave, child.stop_signal, type(child.identity)(stranger.pid, "earlier"))
        write_state(Layout.at(data_dir).state_file, StackState(state.supervisor, "ready", "", (forged,)))
        async with running_stack(tmp_path, servers_only=True) as stack:
            assert stack.stack.orphans_ended == 0
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_second_up_on_one_directory_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    data_dir = tmp_path / "flint"
    async with driver(data_dir) as process:
        state = await ready_state(data_dir)
        async with driver_without_cleanup(data_dir) as second:
            _, said = await second.communicate()
        assert second.returncode == 1
        assert f"Another Flint (process {process.pid}) uses the data directory {data_dir}".encode() in said
        assert b"Traceback" not in said
        with pytest.raises(AlreadyRunning):
            await Stack(StackOptions(data_dir=data_dir, port_base=0, servers_only=True)).start()
        assert all(running(child.identity) for child in state.children)


@asynccontextmanager
async def driver_without_cleanup(data_dir: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, DRIVER, str(data_dir), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("hurry", [False, True])
async def test_down_stops_a_running_stack(tmp_path: Path, hurry: bool) -> None:
    data_dir = tmp_path / "flint"
    async with driver(data_dir) as process:
        await ready_state(data_dir)
        reading = asyncio.create_task(process.communicate())
        assert await down(data_dir, Console(quiet=True), hurry=hurry)
        await reading
        assert process.returncode == 0
        assert traces(data_dir) == []
        assert not await down(data_dir, Console(quiet=True))


async def test_down_where_nothing_ever_ran(tmp_path: Path) -> None:
    assert not await down(tmp_path / "flint", Console(quiet=True))
    assert not (tmp_path / "flint").exists()
