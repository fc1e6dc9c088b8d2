"""The whole stack: every process of its own, healthy, back when killed, drained at the end; and the commands."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
from rich.console import Console

from flint_stack.doctor import diagnose
from flint_stack.down import down
from flint_stack.layout import Layout
from flint_stack.processes import marked_processes
from flint_stack.state import read_state
from support.stack import eventually, running, running_stack

SERVICES = {"gateway", "scheduler-1", "scheduler-2", "registry-1", "registry-2", "worker-1", "worker-2"}
SERVERS = {"postgres", "nats", "etcd"}


async def flint(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs the command in `folder`, without the caller's own Flint settings."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from flint_cli.main import main; main()",
        *arguments,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("FLINT_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 200)
    return process.returncode or 0, output.decode(), errors.decode()


async def becomes_healthy(data_dir: Path) -> None:
    """A process is ready a moment before every shard group has its owner."""
    last: list[object] = []

    async def healthy() -> bool:
        diagnosis = await diagnose(data_dir)
        last[:] = [finding for finding in diagnosis.findings if finding.advice]
        return diagnosis.healthy

    try:
        await eventually(healthy, 60)
    except AssertionError as error:
        raise AssertionError(f"still not well: {last}") from error


async def test_all_processes_are_healthy_come_back_when_killed_and_leave_nothing(tmp_path: Path) -> None:
    async with running_stack(tmp_path) as stack:
        assert set(stack.pids) == SERVICES | SERVERS
        assert len(set(stack.pids.values())) == len(SERVICES | SERVERS)
        await becomes_healthy(stack.data_dir)
        key = stack.admin_key
        for name in ("worker-1", "scheduler-1", "registry-1", "gateway"):
            killed = await stack.kill(name)
            await stack.ready(name, 60)
            assert stack.pid(name) != killed.pid

        await becomes_healthy(stack.data_dir)
        identities = [stack.stack.supervisor.identity(name) for name in stack.pids]
    assert not any(running(identity) for identity in identities)
    assert marked_processes(tmp_path / "flint") == []
    # The second start: the same key, the same database.
    async with running_stack(tmp_path) as stack:
        assert stack.admin_key == key
        await becomes_healthy(stack.data_dir)


async def test_up_in_the_background_doctor_and_down(tmp_path: Path) -> None:
    data_dir = tmp_path / ".flint"
    try:
        code, output, errors = await flint(tmp_path, "up", "--detach", "--port-base", "0", "--workers", "1")
        assert code == 0, errors + output
        assert "gateway" in output
        assert "flint down" in output
        state = read_state(Layout.at(data_dir).state_file)
        assert state is not None
        assert state.supervisor.alive()
        await becomes_healthy(data_dir)
        code, output, errors = await flint(tmp_path, "doctor", "--output", "json")
        assert code == 0, output + errors
        assert {finding["verdict"] for finding in json.loads(output)["findings"]} <= {"ok", "warning"}
        code, output, errors = await flint(tmp_path, "up", "--port-base", "0")
        assert code == 1
        assert "Another Flint (process" in errors
        assert "Traceback" not in errors
        code, _, errors = await flint(tmp_path, "down")
        assert code == 0, errors
        assert not state.supervisor.alive()
        assert not any(child.identity.alive() for child in state.children)
        code, output, _ = await flint(tmp_path, "doctor")
        assert code == 1
        assert "Start it with `flint up`" in output
    finally:
        await down(data_dir, Console(quiet=True), hurry=True)


async def test_a_wrong_setting_is_one_paragraph_and_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "flint.toml").write_text("[worker]\nslot = 3\n")
    code, output, errors = await flint(tmp_path, "up", "--port-base", "0")
    assert code == 1
    assert "worker.slot: is not a key of Flint's configuration" in errors
    assert "Traceback" not in errors + output
    assert not any(
        str(tmp_path) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    )
