"""The supervisor: keeps a set of child processes running until it is told to stop them.

States of a child: `starting` (spawned, its probe does not answer yet) -> `ready` -> `down` (it died; waits out its
backoff) -> `starting` ...; `held` (ended on request, not started again). One task per child walks through them.

Backoff starts at 0.1 s, doubles to 5 s, and is forgotten after 10 s of life. A child that dies before it was ever ready
is tried a few times within its deadline (a killed predecessor may still be leaving); then its start has failed and
`start` raises with the end of its log. A child that was ready once is started again for ever.

If the supervisor dies, its children get their stop signal from the kernel where that exists; whoever takes the data
directory next ends what is left (`orphans.py`), by the state file written at every start of a child, and by the mark in
the children's environment, should the supervisor have died between a start and the writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from flint_stack.child import ChildSpec
from flint_stack.errors import ChildFailed, ProbeFailed, StackError
from flint_stack.forking import Process
from flint_stack.launching import Launcher
from flint_stack.logfiles import log_tail, open_log
from flint_stack.processes import ProcessIdentity, identify
from flint_stack.state import ChildRecord, StackState, write_state

__all__ = ["ChildEvent", "Supervisor"]

_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 5.0
_SETTLED_S = 10.0
_PROBE_INTERVAL_S = 0.05
_FIRST_TRIES = 4


@dataclass(frozen=True, slots=True)
class ChildEvent:
    """Something that happened to a child.

    `started`; `ready`; `unready`: for long; `stumbled`: died before it was ever ready; `died`; `killed`: it did not end
    in time when asked; `ended`: on request.
    """

    name: str
    kind: str
    detail: str = ""


@dataclass(slots=True, eq=False)
class _Child:
    spec: ChildSpec
    log: Path
    wanted: bool = True
    state: str = "down"
    restarts: int = 0
    log_start: int = 0
    process: Process | None = None
    identity: ProcessIdentity | None = None
    keeper: asyncio.Task[None] | None = None
    preparation: asyncio.Future[None] | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Runs children below one data directory; to be used from one event loop in the main thread.

    `die_with_supervisor=False` leaves the children alone when this process dies; `environ` is what they inherit;
    `on_event` must not raise. The caller holds the directory's lock. `broken` is set when a child cannot be kept any
    more; `broken_by` says why. `launcher` starts its processes.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        on_event: Callable[[ChildEvent], None] = lambda event: None,
        die_with_supervisor: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        identity = identify(os.getpid())
        if identity is None:
            raise StackError("The supervisor cannot see itself in the process table (is /proc mounted?).")
        self._data_dir = data_dir
        self._logs = data_dir / "logs"
        self._state_path = data_dir / "run" / "state.json"
        self._state = StackState(identity)
        self._on_event = on_event
        self.launcher = Launcher(
            data_dir, os.environ if environ is None else environ, die_with_supervisor=die_with_supervisor
        )
        self._children: dict[str, _Child] = {}
        self.broken = asyncio.Event()
        self.broken_by: StackError | None = None

    async def preload(self) -> None:
        """Begins to load what services share, so that those started from now on are forks of one process."""
        await self.launcher.preload(self._logs / "forker.log")

    async def start(self, specs: Iterable[ChildSpec]) -> None:
        """Starts all in parallel; returns when all are ready. Raises ChildFailed for the first that cannot be.

        Children stay as they are after a failure: the caller decides, normally by `stop`.
        """
        fresh = []
        for spec in specs:
            if spec.name in self._children and self._children[spec.name].wanted:
                raise StackError(f"A child named {spec.name} runs already.")
            self._children[spec.name] = child = _Child(spec, self._logs / f"{spec.name}.log")
            child.keeper = asyncio.create_task(self._keep(child), name=f"keep {spec.name}")
            child.keeper.add_done_callback(partial(self._keeper_ended, child))
            fresh.append(child)
        waiters = [asyncio.create_task(self._await_first_ready(child)) for child in fresh]
        try:
            for done in asyncio.as_completed(waiters):
                await done
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """Ends all children, wave by wave from the last; returns when none is left. `hurry` set: kills at once."""
        waves = sorted({child.spec.wave for child in self._children.values()}, reverse=True)
        for wave in waves:
            members = [child for child in self._children.values() if child.spec.wave == wave]
            await asyncio.gather(*(self._end(child, hurry=hurry) for child in members))
        await self.launcher.close()

    async def stop_child(self, name: str) -> None:
        """Ends one child with its stop signal (killed after its deadline) and holds it: it is not started again."""
        await self._end(self._child(name))

    async def kill_child(self, name: str, *, hold: bool = False) -> ProcessIdentity:
        """SIGKILLs one child; returns who it was, once it is gone. Held: it is not started again."""
        child = self._child(name)
        identity = self._alive(child)
        if hold:
            child.wanted = False
        gone = child.gone
        os.kill(identity.pid, signal.SIGKILL)
        await gone.wait()
        if hold and child.keeper is not None:
            await child.keeper
        return identity

    def signal_child(self, name: str, number: int) -> None:
        """Sends a signal to one child. Raises StackError when it is not running."""
        os.kill(self._alive(self._child(name)).pid, number)

    async def start_child(self, name: str) -> None:
        """Starts a held child again; returns when it is ready."""
        child = self._child(name)
        if not child.wanted:
            del self._children[name]
            await self.start([child.spec])

    async def wait_ready(self, name: str, timeout_s: float = 30.0) -> None:
        """Returns when the child is ready (again). Raises ChildFailed after `timeout_s`."""
        child = self._child(name)
        try:
            async with asyncio.timeout(timeout_s):
                await child.ready.wait()
        except TimeoutError:
            raise ChildFailed(self._failure_text(child, f"was not ready within {timeout_s:g} s")) from None

    def pid(self, name: str) -> int:
        """Process id of a running child. Raises StackError when it does not run."""
        return self._alive(self._child(name)).pid

    def pids(self) -> dict[str, int]:
        """Process ids of all children that run at this moment, by name."""
        return {
            name: child.process.pid
            for name, child in self._children.items()
            if child.process is not None and child.process.returncode is None
        }

    def identity(self, name: str) -> ProcessIdentity:
        """Who a running child is. Raises StackError when it does not run."""
        return self._alive(self._child(name))

    def restarts(self, name: str) -> int:
        """How often the child was started again after it died."""
        return self._child(name).restarts

    def state(self, name: str) -> str:
        """`starting`, `ready`, `down` or `held`."""
        return self._child(name).state

    def names(self) -> list[str]:
        """Names of all children, held ones too."""
        return list(self._children)

    def set_phase(self, phase: str, *, problem: str = "", addresses: dict[str, str] | None = None) -> None:
        """Tells those who read the state file how far the stack is."""
        self._state = replace(
            self._state,
            phase=phase,
            problem=problem,
            addresses=self._state.addresses if addresses is None else addresses,
        )
        self._write_state()

    def _keeper_ended(self, child: _Child, keeper: asyncio.Task[None]) -> None:
        """A keeper that died leaves a child unkept: whoever runs the stack must know."""
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None and not self.broken.is_set():
            self.broken_by = error if isinstance(error, StackError) else StackError(f"{child.spec.name}: {error!r}")
            self.broken.set()

    def _child(self, name: str) -> _Child:
        if name not in self._children:
            raise StackError(f"There is no child named {name}; there are {', '.join(self._children) or 'none'}.")
        return self._children[name]

    def _alive(self, child: _Child) -> ProcessIdentity:
        if child.identity is None or child.process is None or child.process.returncode is not None:
            raise StackError(f"{child.spec.name} does not run now.")
        return child.identity

    async def _await_first_ready(self, child: _Child) -> None:
        if child.keeper is None:
            raise StackError(f"{child.spec.name} was not started.")
        ready = asyncio.create_task(child.ready.wait())
        try:
            await asyncio.wait(
                {ready, child.keeper}, timeout=child.spec.ready_deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if child.ready.is_set():
                return
            if child.keeper.done() and not child.keeper.cancelled():
                child.keeper.result()  # raises what ended it
            reason = await self._last_probe(child)
            raise ChildFailed(
                self._failure_text(child, f"was not ready within {child.spec.ready_deadline_s:g} s{reason}")
            )
        finally:
            ready.cancel()

    async def _last_probe(self, child: _Child) -> str:
        if child.spec.ready is None:
            return ""
        try:
            await child.spec.ready()
        except ProbeFailed as error:
            return f" ({error})"
        return ""

    async def _keep(self, child: _Child) -> None:
        backoff_s, first_tries, was_ready = _BACKOFF_FIRST_S, 0, False
        loop = asyncio.get_running_loop()
        while child.wanted:
            started, code = loop.time(), None
            try:
                code = await self._live(child)
                ending = "" if code is None else _exit_text(code)
            except StackError as error:
                if not was_ready:
                    child.wanted, child.state = False, "held"
                    raise
                ending = str(error)
            was_ready = was_ready or child.ready.is_set()
            child.ready.clear()
            child.state = "down"
            child.gone.set()
            if not child.wanted:
                break
            self._on_event(ChildEvent(child.spec.name, "died" if was_ready else "stumbled", ending))
            if not was_ready:
                first_tries += 1
                if code in child.spec.fatal_exit_codes or first_tries >= _FIRST_TRIES:
                    child.wanted, child.state = False, "held"
                    raise ChildFailed(self._failure_text(child, f"ended at its start ({ending})"))
            if loop.time() - started > _SETTLED_S:
                backoff_s = _BACKOFF_FIRST_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await child.wake.wait()
            backoff_s = min(backoff_s * 2, _BACKOFF_LAST_S)
            child.restarts += 1
        child.state = "held"

    async def _live(self, child: _Child) -> int | None:
        """One life of a child, from its preparation to its end; the exit code, None when it was not begun."""
        if not await self._prepare(child):
            return None
        process = await self._spawn(child)
        if not child.wanted:  # its end was asked for while it was being made
            process.send_signal(child.spec.stop_signal)
        ended = asyncio.create_task(process.wait())
        probing = asyncio.create_task(self._probe_until_ready(child))
        try:
            await asyncio.wait({ended, probing}, return_when=asyncio.FIRST_COMPLETED)
            if probing.done() and probing.exception() is not None:
                self._clear_group(process.pid)
                await ended
                await probing  # raises
            return await ended
        finally:
            for task in (probing, ended):
                task.cancel()
            await asyncio.gather(probing, ended, return_exceptions=True)
            self._clear_group(process.pid)

    async def _prepare(self, child: _Child) -> bool:
        """Runs `before_start`; False when the child's end was asked for meanwhile, which interrupts it."""
        if child.spec.before_start is None:
            return True
        child.preparation = asyncio.ensure_future(child.spec.before_start())
        try:
            await asyncio.wait({child.preparation})
            if not child.preparation.cancelled():
                await child.preparation
            return child.wanted
        finally:
            child.preparation.cancel()
            await asyncio.gather(child.preparation, return_exceptions=True)
            child.preparation = None

    async def _probe_until_ready(self, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        overdue = loop.time() + child.spec.ready_deadline_s
        while child.spec.ready is not None:
            try:
                await child.spec.ready()
                break
            except ProbeFailed as error:
                if loop.time() > overdue:
                    self._on_event(ChildEvent(child.spec.name, "unready", str(error)))
                    overdue = loop.time() + child.spec.ready_deadline_s
            await asyncio.sleep(_PROBE_INTERVAL_S)
        if child.spec.after_ready is not None:
            await child.spec.after_ready()
        child.state = "ready"
        child.ready.set()
        self._on_event(ChildEvent(child.spec.name, "ready"))

    async def _spawn(self, child: _Child) -> Process:
        spec = child.spec
        child.log_start = child.log.stat().st_size if child.log.exists() else 0
        log = open_log(child.log)
        try:
            process = await self.launcher.launch(spec, log)
        except OSError as error:
            raise ChildFailed(f"{spec.name} cannot be started: {spec.argv[0]}: {error.strerror}.") from error
        finally:
            os.close(log)
        child.process, child.identity = process, identify(process.pid)
        child.state, child.gone = "starting", asyncio.Event()
        self._write_state()
        self._on_event(ChildEvent(spec.name, "started", str(process.pid)))
        return process

    async def _end(self, child: _Child, *, hurry: asyncio.Event | None = None) -> None:
        child.wanted = False
        child.wake.set()
        if child.keeper is None:
            return
        if not child.keeper.done():
            if child.preparation is not None:
                child.preparation.cancel()
            for number in (child.spec.stop_signal, signal.SIGCONT):  # a stopped process must be able to act on it
                if child.process is not None and child.process.returncode is None:
                    child.process.send_signal(number)
            hurried = asyncio.create_task((hurry or asyncio.Event()).wait())
            try:
                await asyncio.wait(
                    {child.keeper, hurried}, timeout=child.spec.stop_deadline_s, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                hurried.cancel()
            if child.process is not None and child.process.returncode is None and not child.keeper.done():
                self._on_event(ChildEvent(child.spec.name, "killed", "did not end in time"))
                self._clear_group(child.process.pid)
        await asyncio.gather(child.keeper, return_exceptions=True)
        child.state = "held"
        self._write_state()
        self._on_event(ChildEvent(child.spec.name, "ended"))

    def _clear_group(self, pid: int) -> None:
        """Kills what is left of a child's process group: nobody's children may outlive it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _failure_text(self, child: _Child, what: str) -> str:
        tail = log_tail(child.log, since=child.log_start)
        said = f" The end of {child.log}:\n{tail}" if tail else f" Its log {child.log} is empty."
        return f"{child.spec.name} {what}.{said}"

    def _write_state(self) -> None:
        records = tuple(
            ChildRecord(child.spec.name, child.spec.wave, int(child.spec.stop_signal), child.identity)
            for child in self._children.values()
            if child.identity is not None and child.process is not None and child.process.returncode is None
        )
        self._state = replace(self._state, children=records)
        write_state(self._state_path, self._state)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
