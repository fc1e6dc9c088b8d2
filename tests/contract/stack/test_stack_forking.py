"""Services as forks of one process: what each of them is, how it ends, and what happens when that process dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from flint_stack.child import ChildSpec
from flint_stack.forking import Forker, ForkerGone, Process
from flint_stack.launching import Launcher
from flint_stack.logfiles import log_tail, open_log
from flint_stack.processes import STACK_MARK, marked_processes
from support.stack import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux only")

LONG = "import time\nprint('here', flush=True)\ntime.sleep(600)\n"
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{LONG}"


class Bench:
    """A launcher that has a forker, and modules for it to run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.modules, self.log = folder, folder / "modules", folder / "child.log"
        self.modules.mkdir()
        environ = {**os.environ, "PYTHONPATH": str(self.modules)}
        self.launcher = Launcher(folder, environ, die_with_supervisor=True)

    async def preload(self) -> None:
        await self.launcher.preload(self.folder / "forker.log")

    async def launch(self, code: str, *arguments: str) -> Process:
        """The code as a module."""
        module = self.modules / f"child_of_tests_{zlib.crc32(code.encode())}.py"
        if not module.exists():
            module.write_text(code, encoding="utf-8")
        log = open_log(self.log)
        try:
            command = (sys.executable, "-m", module.stem, *arguments)
            return await self.launcher.launch(ChildSpec("child", command, forks=True), log)
        finally:
            os.close(log)

    async def here(self) -> None:
        await eventually(lambda: "here" in log_tail(self.log), 60)

    def children(self) -> list[int]:
        """Those that run now."""
        found = []
        for identity in marked_processes(self.folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "child_of_tests" in " ".join(psutil.Process(identity.pid).cmdline()):
                    found.append(identity.pid)
        return found

    def forker(self, process: Process) -> psutil.Process:
        """The parent of a fork."""
        parent = psutil.Process(process.pid).parent()
        assert parent is not None
        assert "flint_stack.forker" in parent.cmdline()
        return parent


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.preload()
    try:
        yield bench
    finally:
        for pid in bench.children():
            os.kill(pid, signal.SIGKILL)
        await bench.launcher.close()
        await eventually(lambda: not marked_processes(tmp_path), 60)


async def test_a_fork_looks_and_ends_like_a_program_of_its_own(bench: Bench) -> None:
    process = await bench.launch(LONG, "--config", "some file")
    await bench.here()
    seen = psutil.Process(process.pid)
    bench.forker(process)
    words = [word for word in seen.cmdline() if word]
    assert words[:2] + words[3:] == [sys.executable, "-m", "--config", "some file"]
    assert words[2].startswith("child_of_tests")
    assert seen.environ()[STACK_MARK] == str(bench.folder)
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    assert {file.path for file in seen.open_files()} == {str(bench.log)}
    assert seen.net_connections() == []
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    assert process.returncode == -signal.SIGTERM
    process.send_signal(signal.SIGTERM)  # to nobody


async def test_exit_codes_output_and_randomness_are_those_of_programs(bench: Bench) -> None:
    for code, exit_code, said in (
        ("import sys; print(sys.argv[1:]); sys.exit(int(sys.argv[1]))", 2, "['2']"),
        ("raise SystemExit('this is wrong')", 1, "this is wrong"),
        ("raise ValueError('not caught')", 1, "ValueError: not caught"),
        ("print('done')", 0, "done"),
    ):
        process = await bench.launch(code, "2")
        assert await process.wait() == exit_code
        assert said in log_tail(bench.log)
    bench.log.unlink()
    # In one write each: they share the file.
    code = "import random, sys, uuid; sys.stdout.write(f'{random.random()} {uuid.uuid4()}\\n')"
    processes = [await bench.launch(code) for _ in range(3)]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    words = log_tail(bench.log).split()
    assert len(words) == 6
    assert len(set(words)) == 6


async def test_when_the_forker_dies_its_forks_are_told_and_programs_follow(bench: Bench) -> None:
    told = await bench.launch(LONG)
    await bench.here()
    forker = bench.forker(told)
    stubborn = await bench.launch(STUBBORN)
    await eventually(lambda: log_tail(bench.log).count("here") == 2, 60)
    forker.kill()
    assert await told.wait() < 0
    assert stubborn.returncode is None, "it has not ended, so nobody may start another in its place"
    stubborn.send_signal(signal.SIGKILL)
    assert await stubborn.wait() < 0
    process = await bench.launch(LONG)
    parent = psutil.Process(process.pid).parent()
    assert parent is not None
    assert parent.pid == os.getpid()
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def test_who_gives_up_waiting_for_a_fork_leaves_none(bench: Bench) -> None:
    asking = asyncio.create_task(bench.launch(LONG))
    await asyncio.sleep(0)  # it has asked, and the forker is still loading
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    after = await bench.launch("print('after')")
    assert await after.wait() == 0
    await eventually(lambda: not bench.children(), 60)


async def test_a_forker_that_cannot_load_is_done_without(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.modules / "uvloop.py").write_text("raise ImportError('broken')", encoding="utf-8")
    await bench.preload()
    try:
        process = await bench.launch("print('here')")
        assert await process.wait() == 0
        await bench.here()
        assert "broken" in log_tail(tmp_path / "forker.log")
    finally:
        await bench.launcher.close()


async def test_where_there_is_no_forker_it_says_so() -> None:
    with pytest.raises(ForkerGone, match="not there"):
        await Forker().fork("json.tool", [], 1, signal.SIGTERM)
