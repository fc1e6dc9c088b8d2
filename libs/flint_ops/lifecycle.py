"""A service's life, the same for all of them.

States: CONFIGURING (a wrong configuration ends here: one paragraph on standard error, exit code 2) → STARTING (logs,
operator's port, then `main`) → READY (all readiness checks hold) → STOPPING (SIGTERM, SIGINT or `Lifecycle.stop`:
`stopping` is set, /readyz fails, `main` finishes what it holds and returns) → ENDED: exit code 0; 1 when `main` raised
or `Lifecycle.fail` was called. A second SIGINT while STOPPING cancels `main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence

import uvloop

from flint_ops import logging as flint_logging
from flint_ops.config import ConfigError, ConfigProblem, Settings, load, parse_args
from flint_ops.ops_server import OpsServer, Readiness

__all__ = ["Lifecycle", "Main", "run_service"]

_log = flint_logging.get_logger("flint_ops.lifecycle")


class Lifecycle:
    """What a service's main is handed: when to stop, where to say that it is ready, how to give up."""

    def __init__(self, service: str, instance: str) -> None:
        self.service = service
        self.instance = instance
        self.stopping = asyncio.Event()
        self.readiness = Readiness()
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """Asks the service to end in order. May be called more than once."""
        if not self.stopping.is_set():
            self.readiness.set("lifecycle", "stopping")
            self.stopping.set()

    def fail(self, error: BaseException) -> None:
        """A part that the service cannot do without has died: stop in order, then exit with code 1."""
        if self.failure is None:
            self.failure = error
        self.stop()

    def watch(self, task: asyncio.Task[object]) -> None:
        """Calls `fail` when a background task ends with an error; a cancelled or finished one is fine."""

        def ended(done: asyncio.Task[object]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self.fail(error)

        task.add_done_callback(ended)


Main = Callable[[Settings, Lifecycle], Awaitable[None]]


def run_service(name: str, main: Main, argv: Sequence[str] | None = None, *, require: Iterable[str] = ()) -> int:
    """Runs one service (`gateway`, `scheduler`, `registry` or `worker`) to its end; returns the exit code.

    `main` builds the service, serves until `lifecycle.stopping` is set, then finishes and returns. `require` names
    settings that must not be empty. Nothing is printed to standard output.
    """
    arguments = parse_args(argv, program=f"python -m flint_{name}")
    try:
        settings = load(arguments, require=require)
        section = getattr(settings, name)
        lifecycle_instance = str(getattr(section, "id", "")) or f"{socket.gethostname()}-{os.getpid()}"
        flint_logging.configure(settings.log, name, lifecycle_instance)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(name, lifecycle_instance, str(section.ops_listen), main, settings))
    except ConfigError as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        sys.stderr.write(f"flint_{name} cannot start: its configuration is wrong.\n{lines}\n")
        return 2


async def _run(name: str, instance: str, ops_listen: str, main: Main, settings: Settings) -> int:
    lifecycle = Lifecycle(name, instance)
    lifecycle.readiness.require("main")
    try:
        ops = OpsServer(ops_listen, lifecycle.readiness)
    except (OSError, ValueError) as error:
        problem = ConfigProblem(f"{name}.ops_listen", "its value", f"cannot listen on «{ops_listen}»: {error}")
        raise ConfigError([problem]) from None
    ops.start()
    _calm_the_collector()
    task: asyncio.Task[None] = asyncio.ensure_future(_await(main(settings, lifecycle)))
    ticker = asyncio.create_task(_tick(lifecycle.readiness), name="ops-ticker")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, lifecycle, task)
    lifecycle.readiness.set("main")
    _log.info("started", ops=ops.address, pid=os.getpid())
    try:
        await task
    except asyncio.CancelledError:
        if not lifecycle.stopping.is_set():
            raise
        _log.warning("ended before it had finished")
        return 1
    except ConfigError:
        raise
    except Exception as error:
        lifecycle.fail(error)
    finally:
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker
        # In a thread: the ops server's own thread may be answering a slow client.
        await asyncio.to_thread(ops.close)
    if lifecycle.failure is not None:
        _log.error("failed", exc_info=lifecycle.failure)
        return 1
    _log.info("ended")
    return 0


def _calm_the_collector() -> None:
    """Let the cyclic collector look rarely, and never at what was loaded at start.

    With the default thresholds a third of a busy worker's time went into collections that found next to nothing: legs
    and calls are freed by reference counts. What little is cyclic is still collected, some ten thousand objects later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


async def _tick(readiness: Readiness) -> None:
    while True:
        readiness.tick()
        await asyncio.sleep(2.0)


def _on_signal(number: signal.Signals, lifecycle: Lifecycle, task: asyncio.Task[None]) -> None:
    if lifecycle.stopping.is_set() and number == signal.SIGINT:
        task.cancel()
        return
    _log.info("stopping", signal=number.name)
    lifecycle.stop()
