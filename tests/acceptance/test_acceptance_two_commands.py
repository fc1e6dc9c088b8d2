"""The README's words: `flint up --demo`, then the commands in a second terminal, then kills while a watch is open.

One stack for the module, started by the real command as a process of its own.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
FLINT = (sys.executable, "-c", "from flint_cli.main import main; main()")
READY_S = 120

SLOW_STEPS = 30  # long enough for two commands to look at the run while it goes on
SLOW = """
document: {dsl: 1.0.3, namespace: default, name: slow, version: 1.0.0}
timeout: {after: {minutes: 4}}
do:
STEPS
"""
STEP = """
  - stepN:
      call: noop
      with: {delay_ms: 700, output: {n: N}}
"""


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLINT_")}


class Terminal:
    """A command whose output is read line by line."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue(100_000)
        self.process = subprocess.Popen(
            [*FLINT, *arguments],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._fresh.put(line.rstrip())
        self._fresh.put(None)

    def until(self, text: str, timeout_s: float) -> str:
        """The first line that holds the text."""
        while True:
            try:
                line = self._fresh.get(timeout=timeout_s)
            except queue.Empty:
                raise AssertionError(f"{text!r} did not come:\n" + "\n".join(self.lines)) from None
            assert line is not None, f"ended before {text!r}:\n" + "\n".join(self.lines)
            self.lines.append(line)
            if text in line:
                return line

    def end(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        while (line := self._fresh.get_nowait()) is not None:
            self.lines.append(line)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@dataclass
class Machine:
    folder: Path
    terminal: Terminal
    demo: list[str] = field(default_factory=list)

    def flint(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [*FLINT, *arguments],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done.stdout

    def pid(self, name: str) -> int:
        state = json.loads((self.folder / ".flint" / "run" / "state.json").read_text())
        return next(int(child["pid"]) for child in state["children"] if child["name"] == name)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    terminal = Terminal(folder, "up", "--demo", "--port-base", "0")
    machine = Machine(folder, terminal)
    children: list[psutil.Process] = []
    try:
        terminal.until("Mail to", READY_S)
        machine.demo = list(terminal.lines)
        children = psutil.Process(terminal.process.pid).children(recursive=True)
        assert len(children) >= 12  # three servers, seven services, two of the demo
        yield machine
    finally:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGINT)
        assert terminal.end(60) == 0
    assert [child for child in children if lives(child)] == []


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_demo_runs_before_your_eyes(machine: Machine) -> None:
    text = "\n".join(machine.demo)
    assert "fetchOrder succeeded" in text
    assert "reserveGoods failed (attempt 1)" in text
    assert "reserveGoods succeeded (attempt 2)" in text
    assert "confirm succeeded" in text
    assert "A-1001" in text
    assert "Your order A-1001" in machine.demo[-1]


def test_a_run_from_a_second_terminal(machine: Machine) -> None:
    places = json.loads((machine.folder / ".flint" / "demo" / "places.json").read_text())
    given = {"orderId": "A-1001", "api": f"http://127.0.0.1:{places['api_port']}"}
    output = json.loads(machine.flint("run", "order-intake", "--input", json.dumps(given)))
    assert output["totalCents"] == 12_650
    sold_out = json.dumps({**given, "orderId": "A-1002"})
    machine.flint("run", "order-intake", "--input", sold_out, code=1)
    assert "order-intake" in machine.flint("runs", "list")
    failed = json.loads(machine.flint("runs", "list", "--state", "failed", "-o", "json"))[0]
    assert "Oak chair" in json.loads(machine.flint("runs", "get", failed["id"], "-o", "json"))["error"]["detail"]
    assert "/do/1/fetchGoods" in machine.flint("runs", "history", failed["id"])


def test_the_other_lists(machine: Machine) -> None:
    workers = json.loads(machine.flint("workers", "list", "-o", "json"))
    assert workers and all(worker["worker_id"].startswith("default-") for worker in workers), "they come and go"
    (pool,) = json.loads(machine.flint("pools", "list", "-o", "json"))
    assert (pool["pool"], pool["settings"]["mode"], pool["settings"]["minimum_workers"]) == ("default", "automatic", 1)
    assert machine.flint("pools", "decisions", "-o", "json")
    assert "order-intake" in machine.flint("workflows", "list")
    assert machine.flint("workflows", "get", "order-intake").startswith("document:")
    machine.flint("doctor")


def test_keys_open_and_close(machine: Machine) -> None:
    created = json.loads(machine.flint("keys", "create", "a viewer", "--role", "viewer", "-o", "json"))
    assert created["key"]["id"] in machine.flint("keys", "list")
    assert created["secret"] not in machine.flint("keys", "list", "-o", "json")
    machine.flint("keys", "revoke", created["key"]["id"])
    assert created["key"]["id"] not in machine.flint("keys", "list")


def test_a_watched_run_outlives_its_worker_and_a_scheduler(machine: Machine) -> None:
    steps = "".join(STEP.replace("N", str(number)) for number in range(SLOW_STEPS))
    (machine.folder / "slow.yaml").write_text(SLOW.replace("STEPS", steps))
    machine.flint("apply", "-f", "slow.yaml")
    watch = Terminal(machine.folder, "run", "slow", "--watch", "--output", "json")
    watch.until("step1 succeeded", 60)
    run = json.loads(machine.flint("runs", "list", "--workflow", "slow", "-o", "json"))[0]
    workers = json.loads(machine.flint("workers", "list", "-o", "json"))
    holder = next(worker for worker in workers if worker["incarnation"] == run["worker"])
    assert run["state"] == "RUNNING"
    os.kill(holder["pid"], signal.SIGKILL)
    os.kill(machine.pid("scheduler-1"), signal.SIGKILL)
    watch.until("continues as leg 2", 60)
    watch.until("run succeeded", 60)
    assert watch.end(60) == 0
    ended = json.loads(machine.flint("runs", "get", run["id"], "-o", "json"))
    assert (ended["state"], ended["output"], ended["leg"]) == ("SUCCEEDED", {"n": SLOW_STEPS - 1}, 2)


def test_a_watched_run_outlives_the_gateway(machine: Machine) -> None:
    watch = Terminal(machine.folder, "run", "slow", "--watch")
    watch.until("step1 succeeded", 60)
    os.kill(machine.pid("gateway"), signal.SIGKILL)
    watch.until("connection lost; reconnecting", 60)
    watch.until("connected again; nothing was missed", 60)
    watch.until("run succeeded", 60)
    assert watch.end(60) == 0
    assert [line for line in watch.lines if f"step{SLOW_STEPS - 1} succeeded" in line] != []
