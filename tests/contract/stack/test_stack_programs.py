"""A program that ends while it is signalled: its exit code is its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from flint_stack.child import ChildSpec
from flint_stack.launching import Launcher
from flint_stack.logfiles import open_log
from flint_stack.processes import identify
from support.eventually import eventually


@pytest.mark.skipif(sys.platform != "linux", reason="a program that ended and was not waited for is told by Linux only")
async def test_a_signal_to_one_that_has_just_ended_leaves_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited = threading.Event()
    waitpid = os.waitpid

    def late(pid: int, options: int) -> tuple[int, int]:
        """In the thread in which asyncio waits."""
        if threading.current_thread() is not threading.main_thread():
            waited.wait(60)
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", late)
    launcher = Launcher(tmp_path, os.environ, die_with_supervisor=False)
    log = open_log(tmp_path / "child.log")
    try:
        command = (sys.executable, "-c", "import time; time.sleep(600)")
        process = await launcher.launch(ChildSpec("child", command), log)
    finally:
        os.close(log)
    try:
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: identify(process.pid) is None)
        for number in (signal.SIGCONT, signal.SIGKILL):
            process.send_signal(number)
    finally:
        waited.set()
    assert await process.wait() == -signal.SIGTERM
    process.send_signal(signal.SIGTERM)
    assert "Unknown child process" not in caplog.text
