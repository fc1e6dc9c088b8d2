"""`flint up`: starts a stack, tells where it is, keeps it until it is told to stop, drains it.

States: starting -> ready (demo, if any) -> stopping -> ended. The first SIGINT, SIGTERM or SIGHUP drains; the second
kills. When this process dies otherwise its children end by themselves where the kernel helps, else at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flint_ops.config import Settings
from flint_stack.errors import StackError
from flint_stack.layout import Layout
from flint_stack.logfiles import log_tail, open_log
from flint_stack.processes import identify
from flint_stack.stack import Stack, StackOptions
from flint_stack.state import StackLock, read_state
from flint_stack.supervisor import ChildEvent

__all__ = ["detach", "print_addresses", "up"]

_DETACH_DEADLINE_S = 180.0
_POLL_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Demo = Callable[[Settings, Console], Awaitable[None]]


@dataclass(slots=True)
class _Requests:
    """What the person asked for by signals."""

    stop: asyncio.Event
    hurry: asyncio.Event

    def on_signal(self) -> None:
        """The first stops, the second hurries."""
        (self.hurry if self.stop.is_set() else self.stop).set()


async def up(options: StackOptions, console: Console, *, demo: Demo | None = None) -> int:
    """Runs a stack until a signal; returns the exit code. Raises StackError when it cannot start or cannot go on.

    `demo` runs once all is ready; if it fails that is told, the stack stays up, and the exit code becomes 1.
    """
    loop = asyncio.get_running_loop()
    requests = _Requests(asyncio.Event(), asyncio.Event())
    for number in _SIGNALS:
        loop.add_signal_handler(number, requests.on_signal)
    stack = Stack(options, on_event=_reporter(console))
    try:
        async with _stopping(stack, requests, console):
            began = loop.time()
            with _status(console, "Starting PostgreSQL, NATS and etcd, then Flint's services"):
                if not await _start(stack, requests):
                    return 130
            if stack.orphans_ended:
                _say(console, f"Ended {stack.orphans_ended} processes that an earlier Flint had left behind.")
            print_addresses(console, stack.addresses(), stack.supervisor.pids(), stack.layout)
            _say(console, f"Ready in {loop.time() - began:.1f} s. Ctrl-C stops everything.")
            return await _serve(stack, requests, console, demo)
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            if requests.stop.is_set():  # done but for the exit code: who hurries now must not change that
                signal.signal(number, signal.SIG_IGN)


async def detach(command: Sequence[str], data_dir: Path, console: Console) -> None:
    """Runs `command` (a `flint up` in the foreground) in the background; returns when its stack is ready.

    Raises StackError with the end of its log when it ends before that, AlreadyRunning when the directory is in use.
    """
    layout = Layout.at(data_dir)
    layout.make()
    lock = StackLock(layout.lock_file)
    lock.acquire()
    lock.release()
    log = layout.log_file("supervisor")
    since = log.stat().st_size if log.exists() else 0
    with os.fdopen(open_log(log), "ab") as output:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - it must outlive this event loop; our own program
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    identity = identify(process.pid)
    try:
        async with asyncio.timeout(_DETACH_DEADLINE_S):
            with _status(console, "Starting in the background"):
                while (state := read_state(layout.state_file)) is None or not (
                    state.supervisor == identity and state.phase == "ready"
                ):
                    if process.poll() is not None:
                        raise StackError(f"Flint did not start.\n{log_tail(log, since=since)}")
                    await asyncio.sleep(_POLL_S)
    except TimeoutError:
        process.send_signal(signal.SIGTERM)
        raise StackError(
            f"Flint was not ready within {_DETACH_DEADLINE_S:g} s and was told to stop.\n{log_tail(log, since=since)}"
        ) from None
    process.returncode = 0  # it goes on without us, on purpose
    pids = {child.name: child.identity.pid for child in state.children}
    print_addresses(console, state.addresses, pids, layout)
    _say(console, f"Flint runs in the background, process {state.supervisor.pid}. `flint down` stops it.")


def print_addresses(console: Console, addresses: dict[str, str], pids: dict[str, int], layout: Layout) -> None:
    """A short table: who listens where."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("PROCESS", "ADDRESS", "OPERATOR'S PORT", "PID"):
        table.add_column(column, no_wrap=True)
    for name in sorted(pids, key=lambda name: (not name.startswith("gateway"), list(pids).index(name))):
        table.add_row(name, addresses.get(name, ""), addresses.get(f"{name}/ops", ""), str(pids[name]))
    _say(console, table)
    _say(console, f"Data, logs and the local key lie in {escape(str(layout.root))}.", highlight=False, soft_wrap=True)


@asynccontextmanager
async def _stopping(stack: Stack, requests: _Requests, console: Console) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if stack.running:
            _say(console, "Stopping: workers finish their steps, then the services, then the servers.")
            await stack.stop(hurry=requests.hurry)
            _say(console, "Stopped.")


async def _start(stack: Stack, requests: _Requests) -> bool:
    """True when the stack is ready; False when a signal came first, and then nothing runs."""
    starting = asyncio.create_task(stack.start())
    asked = asyncio.create_task(requests.stop.wait())
    try:
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False
    finally:
        asked.cancel()


async def _serve(stack: Stack, requests: _Requests, console: Console, demo: Demo | None) -> int:
    asked = asyncio.create_task(requests.stop.wait())
    broken = asyncio.create_task(stack.supervisor.broken.wait())
    showing = asyncio.create_task(_show(demo, stack.settings, console)) if demo is not None else None
    try:
        await asyncio.wait({asked, broken}, return_when=asyncio.FIRST_COMPLETED)
        if stack.supervisor.broken_by is not None:
            raise stack.supervisor.broken_by
        return showing.result() if showing is not None and showing.done() else 0
    finally:
        tasks = [task for task in (asked, broken, showing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show(demo: Demo, settings: Settings, console: Console) -> int:
    try:
        await demo(settings, console)
    except Exception as error:  # whatever it is, the stack is fine and stays
        _say(console, f"The demo failed: {escape(str(error) or type(error).__name__)}", style="red")
        return 1
    return 0


def _say(console: Console, *words: object, **how: Any) -> None:
    """Prints, unless the terminal has gone: a stack must be stopped in order even when nobody reads how."""
    with contextlib.suppress(OSError, SystemExit):  # at a broken pipe rich would end the program
        console.print(*words, **how)


def _reporter(console: Console) -> Callable[[ChildEvent], None]:
    def report(event: ChildEvent) -> None:
        if event.kind == "died":
            _say(console, f"{event.name} ended ({escape(event.detail)}); it is started again.", style="yellow")
        elif event.kind in ("unready", "killed"):
            _say(console, f"{event.name}: {escape(event.detail)}.", style="yellow")

    return report


@contextlib.contextmanager
def _status(console: Console, text: str) -> Iterator[None]:
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        _say(console, f"{text}.")
        yield
