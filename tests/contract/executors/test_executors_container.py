"""The executor container: its conduct with a stand-in for the engine's command, and a real engine where one answers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.eventually import eventually

from flint_core.problems import ProblemType
from flint_ops.config import ContainerSettings, LimitSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.container import ContainerExecutor
from flint_worker.executors.engines import find_engine

FAKE = Path(__file__).resolve().parents[2] / "support" / "fake_engine.py"


class Docker:
    """The stand-in's containers, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = folder / "docker"
        self.state = folder / "state"
        self.state.mkdir()
        self.command.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} {self.state} "$@"\n')
        self.command.chmod(0o755)

    def names(self) -> list[str]:
        return [path.stem for path in self.state.glob("*.json")]

    def container(self) -> dict[str, Any]:
        (name,) = self.names()
        loaded: dict[str, Any] = json.loads((self.state / f"{name}.json").read_text())
        return loaded

    def calls(self, word: str) -> list[list[str]]:
        text = (self.state / "calls").read_text()
        return [words for line in text.splitlines() if (words := json.loads(line))[0] == word]


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


def build(docker: Docker, **containers: Any) -> ContainerExecutor:
    chosen = ContainerSettings(engine="docker", command=str(docker.command), grace_s=0, **containers)
    limits = LimitSettings(value_bytes=10_000)
    engine = find_engine(chosen)
    assert engine is not None
    return ContainerExecutor(Settings(worker=WorkerSettings(containers=chosen), limits=limits), engine)


@pytest.fixture
async def executor(docker: Docker) -> AsyncIterator[ContainerExecutor]:
    built = build(docker)
    yield built
    await built.close()


def call(key: str = "key-1", deadline_s: float | None = 60, **arguments: Any) -> ResolvedCall:
    return ResolvedCall("container", {"image": "alpine"} | arguments, key, "/do/0/x", "run-1", "", deadline_s)


async def failed(executor: ContainerExecutor, resolved: ResolvedCall) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await executor.execute(resolved)
    return raised.value


async def test_output_arguments_stdin_and_environment(executor: ContainerExecutor, docker: Docker) -> None:
    assert await executor.execute(call()) == "default of alpine\n"
    evil = "$(id) ' \""
    said = await executor.execute(
        call("k2", command='cat; echo " $1 $NAME"', arguments=[evil], stdin="in", environment={"NAME": "hush hush"})
    )
    assert said == f"in {evil} hush hush\n"
    assert await executor.execute(call("k3", command=["/bin/echo", "a"], arguments=["b c"])) == "a b c\n"
    everything = await executor.execute(call("k4", command="echo o; echo e >&2; exit 4", **{"return": "all"}))
    assert everything == {"code": 4, "stdout": "o\n", "stderr": "e\n"}
    error = await failed(executor, call("k5", command="echo why >&2; exit 4"))
    assert (error.problem.type, error.problem.detail) == (ProblemType.RUNTIME, "why")
    assert docker.names() == []
    assert "hush" not in (docker.state / "calls").read_text()


async def test_limits_and_labels_are_always_given(executor: ContainerExecutor, docker: Docker) -> None:
    await executor.execute(call())
    (words,) = docker.calls("create")
    for option in ("--memory", "--cpus", "--pids-limit", "--network", "--security-opt", "--ulimit", "--label"):
        assert option in words
    assert "dev.flint.run=run-1" in words


async def test_pull_policies(executor: ContainerExecutor, docker: Docker) -> None:
    error = await failed(executor, call(image="remote", pullPolicy="never"))
    assert error.problem.type == ProblemType.CONFIGURATION
    assert await executor.execute(call(image="remote")) == "default of remote\n"
    assert await executor.execute(call("k2", image="remote")) == "default of remote\n"
    assert len(docker.calls("pull")) == 1
    await executor.execute(call("k3", image="remote", pullPolicy="always"))
    assert len(docker.calls("pull")) == 2
    error = await failed(executor, call(image="nowhere"))
    assert (error.problem.type, error.problem.status) == (ProblemType.COMMUNICATION, 503)
    assert docker.names() == []


async def test_a_repeat_finds_the_container_of_the_first_try(docker: Docker) -> None:
    mark = docker.folder / "mark"
    command = f"echo began; echo x >> {mark}; until [ -e {mark}.go ]; do sleep 0.02; done; echo ended"
    first = build(docker)
    lost = asyncio.create_task(first.execute(call(command=command)))
    await eventually(mark.exists)
    again = build(docker)
    repeat = asyncio.create_task(again.execute(call(command=command)))
    await eventually(lambda: len(docker.calls("logs")) == len(docker.calls("wait")) == 1)
    (docker.folder / "mark.go").touch()
    # The first try lives: whether it removes the container before or after the repeat has looked, both have the result.
    assert await lost == await repeat == "began\nended\n"
    assert mark.read_text() == "x\n"
    for executor in (first, again):
        await executor.close()
    assert docker.names() == []


async def test_a_name_that_somebody_else_has(executor: ContainerExecutor, docker: Docker) -> None:
    lifetime = {"cleanup": "never"}
    assert await executor.execute(call("one", name="mine", lifetime=lifetime)) == "default of alpine\n"
    assert docker.names() == ["mine"]
    error = await failed(executor, call("two", name="mine"))
    assert (error.problem.status, error.problem.title) == (409, "The container's name is taken")
    assert await executor.execute(call("one", name="mine", lifetime=lifetime)) == "default of alpine\n"
    assert len(docker.calls("start")) == 1


async def test_cancelled_and_late_containers_are_removed(executor: ContainerExecutor, docker: Docker) -> None:
    task = asyncio.create_task(executor.execute(call(command="sleep 60")))
    await eventually(lambda: docker.names() != [] and docker.container()["status"] == "running")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert executor.unfinished == 1
    await eventually(lambda: executor.unfinished == 0 and docker.names() == [])
    error = await failed(executor, call("k2", 2.0, command="sleep 60"))
    assert error.problem.type == ProblemType.TIMEOUT
    await eventually(lambda: executor.unfinished == 0 and docker.names() == [])


async def test_too_much_output(executor: ContainerExecutor, docker: Docker) -> None:
    error = await failed(executor, call(command="head -c 20000 /dev/zero"))
    assert error.problem.status == 413
    await eventually(lambda: docker.names() == [])


async def test_lifetimes(executor: ContainerExecutor, docker: Docker) -> None:
    lifetime = {"cleanup": "eventually", "after": {"milliseconds": 1}}
    await executor.execute(call(lifetime=lifetime))
    assert docker.container()["labels"]["dev.flint.remove-after"] == "0.001"
    error = await failed(executor, call(lifetime={"cleanup": "eventually", "after": "soon"}))
    assert error.problem.type == ProblemType.VALIDATION
    sweeping = build(docker)  # as any worker does when it starts
    await eventually(lambda: docker.names() == [])
    await sweeping.close()


async def test_not_awaited(executor: ContainerExecutor, docker: Docker) -> None:
    mark = docker.folder / "mark"
    assert await executor.execute(call(command=f"echo x > {mark}", **{"await": False})) is None
    await eventually(mark.exists)
    await eventually(lambda: docker.names() == [])


async def test_volumes_and_ports_need_the_operators_leave(docker: Docker, tmp_path: Path) -> None:
    closed = build(docker)
    for arguments in ({"volumes": {"/etc": "/x"}}, {"ports": {"8080": 80}}):
        error = await failed(closed, call(**arguments))
        assert error.problem.type == ProblemType.CONFIGURATION
    await closed.close()
    shared, readable = tmp_path / "shared", tmp_path / "readable"
    shared.mkdir()
    readable.mkdir()
    (shared / "out").symlink_to("/etc")
    opened = build(docker, volumes=[str(shared), f"{readable}:ro"], publish_ports=True)
    keep = {"cleanup": "never"}
    volumes = {str(shared / "a"): "/a", str(readable): "/b"}
    await opened.execute(call(volumes=volumes, ports={"8080": 80, "53": "53/udp"}, lifetime=keep))
    options = docker.container()["options"]
    assert options["--mount"] == [
        f"type=bind,source={shared}/a,target=/a",
        f"type=bind,source={readable},target=/b,readonly",
    ]
    assert options["--publish"] == ["8080:80/tcp", "53:53/udp"]
    for outer in (f"{shared}/../x", f"{shared}/out", "relative", f"{shared}x", f"{shared}/a,readonly=false"):
        error = await failed(opened, call("k2", volumes={outer: "/a"}))
        assert error.problem.title == "Volume not allowed"
    for arguments in ({"ports": {"8080": "x"}}, {"ports": {"99999": 80}}, {"volumes": {str(shared): "a"}}):
        error = await failed(opened, call("k2", **arguments))
        assert error.problem.type == ProblemType.VALIDATION
    await opened.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"image": "--privileged"},
        {"image": "a b"},
        {"name": "-x"},
        {"environment": {"A=B": "x"}},
        {"environment": {"A": "x\nB=y"}},
        {"pullPolicy": "sometimes"},
        {"unknown": 1},
    ],
)
async def test_bad_arguments(executor: ContainerExecutor, docker: Docker, arguments: dict[str, Any]) -> None:
    assert (await failed(executor, call(**arguments))).problem.type == ProblemType.VALIDATION
    assert docker.calls("create") == []


async def test_engines_that_are_not_there(tmp_path: Path) -> None:
    assert find_engine(ContainerSettings(engine="off")) is None
    assert find_engine(ContainerSettings(engine="docker", command=str(tmp_path / "nowhere"))) is None
    assert find_engine(ContainerSettings(engine="podman", command="/bin/false")) is None


async def test_a_real_engine() -> None:
    chosen = ContainerSettings()
    engine = find_engine(chosen)
    if engine is None:
        pytest.skip("NO CONTAINER ENGINE ANSWERS ON THIS MACHINE: run container is tested with a stand-in only")
    executor = ContainerExecutor(Settings(worker=WorkerSettings(containers=chosen)), engine)
    try:
        said = await executor.execute(
            call("real", 120, image="busybox", command="cat; echo $1", arguments=["b"], stdin="a")
        )
        assert said == "ab\n"
    finally:
        await executor.close()
