"""The supervisor with small children: readiness, failures at the start, backoff, groups, environment, logs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from flint_stack.child import ChildSpec
from flint_stack.errors import ChildFailed, ProbeFailed, StackError
from flint_stack.layout import Layout
from flint_stack.logfiles import ROTATE_BYTES, open_log
from flint_stack.state import read_state
from flint_stack.supervisor import ChildEvent, Supervisor
from support.stack import eventually

SLEEP = "import time; time.sleep(600)"


class Bench:
    """A supervisor with its folder and what it told."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout.at(folder / "flint")
        self.layout.make()
        self.events: list[ChildEvent] = []
        self.supervisor = Supervisor(self.layout.root, on_event=self.events.append)

    def kinds(self, name: str) -> list[str]:
        return [event.kind for event in self.events if event.name == name]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        await bench.supervisor.stop()


def python(name: str, code: str, **more: object) -> ChildSpec:
    return ChildSpec(name=name, argv=(sys.executable, "-I", "-S", "-c", code), **more)  # type: ignore[arg-type]


def file_probe(path: Path) -> Callable[[], Awaitable[None]]:
    there = path.exists

    async def probe() -> None:
        if not there():
            raise ProbeFailed(f"{path.name} is not there")

    return probe


async def test_start_returns_when_the_probe_answers(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch(); {SLEEP}"
    await bench.supervisor.start([python("one", code, ready=file_probe(mark))])
    assert bench.supervisor.state("one") == "ready"
    assert bench.kinds("one") == ["started", "ready"]
    state = read_state(bench.layout.state_file)
    assert state is not None
    assert [child.identity.pid for child in state.children] == [bench.supervisor.pid("one")]


async def test_a_child_that_never_gets_ready_fails_the_start_with_probe_and_log(bench: Bench, tmp_path: Path) -> None:
    child = python(
        "mute", f"print('warming up', flush=True); {SLEEP}", ready=file_probe(tmp_path / "never"), ready_deadline_s=4.0
    )
    with pytest.raises(ChildFailed) as failure:
        await bench.supervisor.start([child])
    assert "mute was not ready within 4 s (never is not there)" in str(failure.value)
    assert "warming up" in str(failure.value)


async def test_a_child_that_dies_at_its_start_is_tried_again_then_fails_with_its_log(bench: Bench) -> None:
    with pytest.raises(ChildFailed) as failure:
        await bench.supervisor.start([python("brief", "raise SystemExit('port is taken')", ready=never)])
    assert "brief ended at its start (exit code 1)" in str(failure.value)
    assert "port is taken" in str(failure.value)
    assert bench.kinds("brief").count("started") == 4


async def never() -> None:
    raise ProbeFailed("never")


async def test_a_fatal_exit_code_is_not_tried_again(bench: Bench) -> None:
    child = python("wrong", "raise SystemExit(2)", ready=never, fatal_exit_codes=frozenset({2}))
    with pytest.raises(ChildFailed):
        await bench.supervisor.start([child])
    assert bench.kinds("wrong").count("started") == 1


async def test_a_missing_program_is_named(bench: Bench) -> None:
    # The process is made by an interpreter that becomes the program: its log says what is missing.
    with pytest.raises(ChildFailed, match=r"No such file or directory|cannot be started"):
        await bench.supervisor.start([ChildSpec("absent", ("/nowhere/program",), ready=never)])


async def test_one_failure_does_not_wait_for_the_others(bench: Bench, tmp_path: Path) -> None:
    slow = python("slow", SLEEP, ready=file_probe(tmp_path / "never"), ready_deadline_s=120)
    wrong = python("wrong", "raise SystemExit(2)", ready=never, fatal_exit_codes=frozenset({2}))
    with pytest.raises(ChildFailed, match="wrong ended"):
        await asyncio.wait_for(bench.supervisor.start([slow, wrong]), 30)


async def test_a_killed_child_comes_back_and_its_own_children_do_not_outlive_it(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "grandchild"
    code = (
        "import subprocess, sys, pathlib, time;"
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {SLEEP!r}]);"
        f"m = pathlib.Path({str(mark)!r}); n = m.with_suffix('.new'); n.write_text(str(p.pid)); n.rename(m);"
        " time.sleep(600)"
    )
    await bench.supervisor.start([python("parent", code, ready=file_probe(mark))])
    grandchild = int(mark.read_text())
    killed = await bench.supervisor.kill_child("parent")
    await bench.supervisor.wait_ready("parent")
    assert bench.supervisor.pid("parent") != killed.pid
    await eventually(lambda: not lives(grandchild))


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_child_that_keeps_dying_is_started_again_until_it_lives(bench: Bench, tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    code = f"import pathlib, time\nif pathlib.Path({str(crash)!r}).exists(): raise SystemExit(1)\ntime.sleep(600)"
    await bench.supervisor.start([python("flaky", code, ready=absent_probe(crash))])
    crash.touch()
    await bench.supervisor.kill_child("flaky")
    await eventually(lambda: bench.kinds("flaky").count("died") >= 3)
    crash.unlink()
    await bench.supervisor.wait_ready("flaky")
    assert not bench.supervisor.broken.is_set()


def absent_probe(path: Path) -> Callable[[], Awaitable[None]]:
    crashing = path.exists

    async def probe() -> None:
        if crashing():
            raise ProbeFailed("crashing")

    return probe


async def test_a_stubborn_child_is_killed_after_its_deadline(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import signal, pathlib, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(mark)!r}).touch(); time.sleep(600)"
    )
    await bench.supervisor.start([python("stubborn", code, ready=file_probe(mark), stop_deadline_s=0.3)])
    await bench.supervisor.stop_child("stubborn")
    assert bench.kinds("stubborn")[-2:] == ["killed", "ended"]
    assert bench.supervisor.state("stubborn") == "held"


async def test_hurry_cuts_a_long_drain_short(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import signal, pathlib, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(mark)!r}).touch(); time.sleep(600)"
    )
    await bench.supervisor.start([python("drains", code, ready=file_probe(mark), stop_deadline_s=300)])
    hurry = asyncio.Event()
    stopping = asyncio.create_task(bench.supervisor.stop(hurry=hurry))
    hurry.set()
    await asyncio.wait_for(stopping, 30)


async def test_waves_end_in_reverse_order(bench: Bench, tmp_path: Path) -> None:
    record = tmp_path / "record"
    specs = [
        python(
            f"wave-{wave}",
            _records_its_end(record, tmp_path, wave),
            wave=wave,
            ready=file_probe(tmp_path / f"ready-{wave}"),
        )
        for wave in (0, 3, 5)
    ]
    await bench.supervisor.start(specs)
    await bench.supervisor.stop()
    assert record.read_text() == "530"


def _records_its_end(record: Path, folder: Path, wave: int) -> str:
    return (
        "import signal, sys, pathlib, time\n"
        f"def end(*_):\n open({str(record)!r}, 'a').write('{wave}'); sys.exit(0)\n"
        f"signal.signal(signal.SIGTERM, end); pathlib.Path({str(folder)!r}, 'ready-{wave}').touch()\n"
        "time.sleep(600)"
    )


async def test_a_failing_after_ready_fails_the_start_and_ends_the_child(bench: Bench) -> None:
    async def refuse() -> None:
        raise StackError("the database refuses")

    with pytest.raises(StackError, match="the database refuses"):
        await bench.supervisor.start([python("one", SLEEP, after_ready=refuse)])
    with pytest.raises(StackError):
        bench.supervisor.pid("one")


async def test_a_held_child_can_be_signalled_only_while_it_runs(bench: Bench) -> None:
    await bench.supervisor.start([python("one", SLEEP)])
    bench.supervisor.signal_child("one", signal.SIGSTOP)
    await bench.supervisor.stop_child("one")
    with pytest.raises(StackError, match="does not run"):
        bench.supervisor.signal_child("one", signal.SIGCONT)
    with pytest.raises(StackError, match="no child named two"):
        bench.supervisor.pid("two")


def test_a_large_log_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "child.log"
    path.write_bytes(b"x" * (ROTATE_BYTES + 1))
    for _ in range(2):
        with os.fdopen(open_log(path), "ab") as log:
            log.write(b"fresh\n")
    assert path.read_bytes() == b"fresh\nfresh\n"
    assert (tmp_path / "child.log.1").stat().st_size == ROTATE_BYTES + 1
