"""The leg runner: one leg, one task, from the job to the leg's end.

States: LOADING (definition, state) → REPLAYING (recorded events are fed again; nothing is executed) → then in turns
DRIVING (pure work in slices) → APPENDING (what was fed since the last entry) → EXECUTING or WAITING → DRIVING …
→ ENDED: an entry with the leg's end, or STOPPED without a word (lease over, superseded, given up, dropped).

The one rule: a call starts only when everything fed to the machine before is acknowledged, and the lease is valid.
When the task dies by a defect, the run fails with a runtime problem; when it is cancelled (`drop`), calls in progress
are cancelled and nothing more is appended.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson
from flint_bus import Bus, MessageTooLarge
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.effects import Call, CancelEffect, Evaluate, Timer, TimerKind
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    Event,
    TimerFired,
    decode_events,
    encode_events,
)
from flint_core.machine import End, Failed, Machine, MachineLimits, RunFacts, StateTooLarge, StepTrace, Succeeded
from flint_core.problems import Problem, ProblemType
from flint_core.program import Program
from flint_jq import EvaluationFailed, EvaluatorPool, EvaluatorsBusy
from flint_ops.clock import now_ms
from flint_ops.config import LimitSettings
from flint_ops.logging import get_logger

from flint_worker.calls import Caller
from flint_worker.definitions import Definitions, DefinitionUnknown
from flint_worker.journal import JournalWriter, LegStopped
from flint_worker.lease import Lease
from flint_worker.records import end_of_run, step_records

__all__ = ["Leg", "LegServices", "Progress"]

_ENTRY_BYTES: Final = 300_000
"""Outcomes beyond this size go into the next entry: an entry must fit into one message."""
_ENTRY_RECORDS: Final = 1_000
_SNAPSHOT_ENTRIES: Final = 64
_SNAPSHOT_BYTES: Final = 200_000
"""A snapshot every so often bounds what the next leg must be sent and must replay."""
_STOP_CALLS_S: Final = 5.0
_BUSY_PAUSE_S: Final = 0.05
_REPLAY_TRIES: Final = 3

_log = get_logger("flint_worker.leg")


@dataclass(frozen=True, slots=True)
class LegServices:
    """What legs share."""

    bus: Bus
    definitions: Definitions
    evaluators: EvaluatorPool
    caller: Caller
    limits: LimitSettings
    machine_limits: MachineLimits
    inline_wait_ms: int


class Progress:
    """A call in progress, for hints."""

    __slots__ = ("call", "hinted", "started_ms")

    def __init__(self, call: Call, started_ms: int) -> None:
        self.call = call
        self.started_ms = started_ms
        self.hinted = False


class Leg:
    """One leg. `run` is its task's body; the other methods may be called from the same event loop at any time."""

    def __init__(self, job: dispatch_pb2.Job, lease: Lease, services: LegServices) -> None:
        self.job = job
        self.run_id = str(uuid.UUID(bytes=job.run_id))
        self.trace_id: str = job.trace_id.hex()
        self.begun = False
        """Whether anything left this process: a call was started or an entry sent."""
        self.progress: dict[int, Progress] = {}
        """Calls in progress, by effect id."""
        self._lease = lease
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._journal = JournalWriter(services.bus, lease, job)
        self.task: asyncio.Task[str] | None = None
        self._machine: Machine
        self._replaying = False
        self._inbox: deque[Event] = deque()
        self._unrecorded: list[Event] = []
        self._unrecorded_bytes = 0
        self._records: list[StepTrace] = []
        self._calls: dict[int, Call] = {}
        self._running: dict[int, asyncio.Task[CallSucceeded | CallFailed]] = {}
        self._timers: dict[int, Timer] = {}
        self._question: Evaluate | None = None
        self._answered: set[int] = set()
        self._entries_since_snapshot = len(job.events)
        self._bytes_since_snapshot = sum(map(len, job.events))
        self._waker: asyncio.Future[None] | None = None
        self._inline = False
        self._fed = False
        self._draining = False
        self._giving_up = False
        self._dropped = False
        self._cancel_requested = False
        self._stop_reason = ""

    # -- from outside -------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[str]:
        """Begins. The task's result is how it ended, for metrics."""
        self.task = asyncio.create_task(self.run(), name="leg")
        return self.task

    @property
    def in_progress(self) -> bool:
        """Whether a call is being executed."""
        return bool(self.progress)

    def request_cancel(self) -> None:
        """The run is to end early."""
        if self._cancel_requested:
            return
        self._cancel_requested = True
        self._inbox.append(CancelRequested(now_ms()))
        if self._inline and self.task is not None:
            self.task.cancel()
        self._wake()

    def drain(self) -> None:
        """Give the run back at the next boundary."""
        self._draining = True
        self._wake()

    def give_up(self) -> None:
        """Its journal is gone: stop as soon as nothing is in progress."""
        self._giving_up = True
        if not self.in_progress:
            self._journal.give_up.set()
        self._wake()

    def drop(self) -> None:
        """Stop at once: nothing more is begun or appended."""
        self._dropped = True
        if self.task is not None:
            self.task.cancel()

    # -- the task -----------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Runs the leg to its end. Never raises, except CancelledError."""
        try:
            return await self._run()
        except LegStopped as stopped:
            return stopped.reason
        except Exception:
            _log.exception("leg_failed", run=self.run_id, leg=self.job.leg)
            return await self._fail_by_defect()
        finally:
            await self._stop_calls()

    async def _run(self) -> str:
        if self._draining:
            return await self._yield()
        program = self._services.definitions.cached(self.job.definition_hash)
        if program is None:
            try:
                program = await self._fetch()
            except DefinitionUnknown as error:
                problem = Problem(ProblemType.CONFIGURATION, 500, "Definition not available", str(error))
                return await self._end_with(Failed(problem))
            if program is None:
                return await self._yield()
        self._load(program)
        return await self._turns()

    async def _fetch(self) -> Program | None:
        """The program; None when the leg is to be given back instead."""
        fetching = asyncio.ensure_future(self._services.definitions.get(self.job.definition_hash))
        try:
            while not fetching.done() and not self._draining:
                waker = self._waker = self._loop.create_future()
                await asyncio.wait({fetching, waker}, return_when=asyncio.FIRST_COMPLETED)
                self._waker = None
            return fetching.result() if fetching.done() else None
        finally:
            fetching.cancel()

    def _load(self, program: Program) -> None:
        job = self.job
        facts = RunFacts(
            run_id=self.run_id,
            namespace=job.namespace,
            workflow_id=job.workflow_id,
            version=job.version,
            created_ms=job.create_time_ms,
            level=job.level,
            seed=job.seed,
        )
        limits = self._services.machine_limits
        if job.snapshot:
            self._machine = Machine.restore(program, facts, job.snapshot, limits)
        else:
            document = orjson.loads(job.input) if job.input else {}
            self._machine = Machine.start(program, facts, document, job.create_time_ms, limits)
        for recorded in job.events:
            self._replaying = True
            for event in decode_events(recorded):
                self._machine.apply(event)
                if isinstance(event, EvaluateFailed):
                    self._answered.add(event.effect_id)
        if job.cancel_requested:
            self.request_cancel()

    async def _turns(self) -> str:
        machine = self._machine
        if self._replaying:
            await self._drive()
            self._replaying = False  # what was recorded is told already: its traces were dropped
        while True:
            if self._inbox and self._unrecorded_bytes < _ENTRY_BYTES:
                self._feed()
            await self._drive()
            if machine.end is not None:
                await self._stop_calls()
                return await self._end_with(machine.end)
            if self._timers:
                self._fire_due()
            if self._inbox and self._unrecorded_bytes < _ENTRY_BYTES:
                continue
            if self._stop_reason:
                raise LegStopped(self._stop_reason)
            if not self._running:
                if self._giving_up:
                    raise LegStopped("given-up")
                if self._draining:
                    return await self._yield()
                if not self._calls:
                    if not self._timers:
                        raise RuntimeError("the machine waits for nothing")
                    wake_at_ms = min(timer.until_ms for timer in self._timers.values())
                    if wake_at_ms - now_ms() > self._services.inline_wait_ms:
                        return await self._block(wake_at_ms)
            if self._unrecorded:
                await self._append()
            elif self._calls and not self._draining and not self._giving_up:
                await self._begin_calls()
            elif not self._inbox:
                await self._wait()

    # -- the machine --------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        inbox = self._inbox
        self._fed = True
        while inbox and self._unrecorded_bytes < _ENTRY_BYTES:
            event = inbox.popleft()
            self._machine.apply(event)
            self._unrecorded.append(event)
            if isinstance(event, CallSucceeded):
                self._unrecorded_bytes += _size(event.output)
            elif isinstance(event, TimerFired):
                self._timers.pop(event.effect_id, None)
            if isinstance(event, CancelRequested):
                return  # the rest is of no interest any more

    async def _drive(self) -> None:
        """Pure work until the machine waits for the world, in slices between which others get their turn."""
        machine = self._machine
        budget = self._services.limits.steps_per_turn
        while True:
            more = machine.advance(budget)
            self._collect()
            if self._question is not None:
                question, self._question = self._question, None
                machine.apply(await self._evaluate(question))
                continue
            if not more:
                return
            if len(self._records) >= _ENTRY_RECORDS:
                await self._append(with_snapshot=True)
            else:
                await asyncio.sleep(0)

    def _collect(self) -> None:
        records = self._machine.take_records()
        if records and not self._replaying:
            self._records += records
        for effect in self._machine.take_effects():
            if isinstance(effect, Call):
                self._calls[effect.effect_id] = effect
            elif isinstance(effect, Timer):
                self._timers[effect.effect_id] = effect
            elif isinstance(effect, CancelEffect):
                effect_id = effect.effect_id
                self._timers.pop(effect_id, None)
                self._calls.pop(effect_id, None)
                running = self._running.get(effect_id)
                if running is not None:
                    running.cancel()
            elif effect.effect_id not in self._answered:
                self._question = effect

    async def _evaluate(self, question: Evaluate) -> Evaluated | EvaluateFailed:
        tries = 0
        while True:
            try:
                value = await self._services.evaluators.evaluate(
                    question.source, question.input, question.variables, question.now_ms
                )
            except EvaluatorsBusy:
                if not self._lease.valid():
                    raise LegStopped("lease") from None
                await asyncio.sleep(_BUSY_PAUSE_S)
            except EvaluationFailed as failure:
                tries += 1
                if self._replaying:
                    # It had succeeded the first time: a limit of this moment, not a fact about the run.
                    if tries < _REPLAY_TRIES:
                        continue
                    raise LegStopped("replay") from None
                event = EvaluateFailed(question.effect_id, _expression_problem(failure), now_ms())
                self._unrecorded.append(event)
                self._fed = True
                return event
            else:
                return Evaluated(question.effect_id, value)

    # -- effects ------------------------------------------------------------------------------------------------------

    async def _begin_calls(self) -> None:
        if not self._lease.valid():
            raise LegStopped("lease")
        self.begun = True
        if len(self._calls) == 1 and not self._running and not self._timers:
            _, call = self._calls.popitem()
            await self._call_here(call)
            return
        for effect_id, call in self._calls.items():
            self.progress[effect_id] = Progress(call, now_ms())
            task = asyncio.create_task(self._perform(call), name="call")
            self._running[effect_id] = task
            task.add_done_callback(partial(self._call_done, effect_id))
        self._calls.clear()

    async def _call_here(self, call: Call) -> None:
        """The usual case, one call and nothing else to wait for: without a task of its own."""
        self.progress[call.effect_id] = Progress(call, now_ms())
        self._inline = True
        try:
            self._inbox.append(await self._perform(call))
        except asyncio.CancelledError:
            if self._dropped or not self._cancel_requested:
                raise
        finally:
            self._inline = False
            self.progress.pop(call.effect_id, None)
        if self._cancel_requested and not self._dropped and self.task is not None:
            while self.task.cancelling():
                self.task.uncancel()

    async def _perform(self, call: Call) -> CallSucceeded | CallFailed:
        return await self._services.caller.perform(
            call, self._lease, self.run_id, self.trace_id, self._deadline_s() if self._timers else None
        )

    def _deadline_s(self) -> float | None:
        deadlines = [timer.until_ms for timer in self._timers.values() if timer.kind is TimerKind.DEADLINE]
        return max(0.0, (min(deadlines) - now_ms()) / 1000) if deadlines else None

    def _call_done(self, effect_id: int, done: asyncio.Task[CallSucceeded | CallFailed]) -> None:
        self.progress.pop(effect_id, None)
        self._running.pop(effect_id, None)
        if done.cancelled():
            pass  # it was not wanted any more
        elif (error := done.exception()) is None:
            self._inbox.append(done.result())
        else:
            self._stop_reason = error.reason if isinstance(error, LegStopped) else "defect"
        if self._giving_up and not self.progress:
            self._journal.give_up.set()
        self._wake()

    async def _stop_calls(self) -> None:
        if not self._running:
            return
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=_STOP_CALLS_S)
        if left:
            _log.warning("calls_do_not_stop", run=self.run_id, calls=len(left))

    def _fire_due(self) -> None:
        now = now_ms()
        for timer in sorted(self._timers.values(), key=lambda timer: (timer.until_ms, timer.effect_id)):
            if timer.until_ms > now:
                return
            del self._timers[timer.effect_id]
            self._inbox.append(TimerFired(timer.effect_id, now))

    async def _wait(self) -> None:
        """Until something happens: an outcome, a timer, or somebody outside."""
        waker = self._waker = self._loop.create_future()
        handle = None
        if self._timers:
            delay_s = (min(timer.until_ms for timer in self._timers.values()) - now_ms()) / 1000
            handle = self._loop.call_later(max(0.0, delay_s), self._wake)
        try:
            await waker
        finally:
            self._waker = None
            if handle is not None:
                handle.cancel()

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None and not waker.done():
            waker.set_result(None)

    # -- the journal --------------------------------------------------------------------------------------------------

    async def _append(self, *, with_snapshot: bool = False, end: journal_pb2.LegEnd | None = None) -> None:
        """One entry: everything fed and traced since the last one."""
        events = encode_events(self._unrecorded) if self._unrecorded else b""
        size = len(events) + self._bytes_since_snapshot
        if end is None and (self._entries_since_snapshot >= _SNAPSHOT_ENTRIES or size > _SNAPSHOT_BYTES):
            with_snapshot = True
        try:
            snapshot = self._machine.snapshot() if with_snapshot else b""
        except StateTooLarge as error:
            problem = Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "State too large", str(error))
            await self._stop_calls()
            await self._end_with(Failed(problem))
            raise LegStopped("failed") from None
        self.begun = True
        await self._journal.append(step_records(self._records), events, snapshot, end)
        self._unrecorded = []
        self._unrecorded_bytes = 0
        self._records = []
        if snapshot:
            self._entries_since_snapshot = self._bytes_since_snapshot = 0
        else:
            self._entries_since_snapshot += 1
            self._bytes_since_snapshot = size

    async def _end_with(self, end: End) -> str:
        """The run's end; the outcome of its last step is in the same entry."""
        try:
            await self._append(end=end_of_run(end))
        except MessageTooLarge as error:
            self._unrecorded, self._records = [], []
            problem = Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", str(error))
            end = Failed(problem)
            await self._append(end=end_of_run(end))
        if isinstance(end, Succeeded):
            return "succeeded"
        return "failed" if isinstance(end, Failed) else "cancelled"

    async def _block(self, wake_at_ms: int) -> str:
        await self._append(
            with_snapshot=True, end=journal_pb2.LegEnd(blocked=journal_pb2.Blocked(wake_at_ms=wake_at_ms))
        )
        return "blocked"

    async def _yield(self) -> str:
        """Gives the run back. Where nothing was fed in this leg, the state before it is as good."""
        end = journal_pb2.LegEnd(yielded=journal_pb2.Yielded())
        if not self._fed:
            self._records = []
        await self._append(with_snapshot=self._fed, end=end)
        return "yielded"

    async def _fail_by_defect(self) -> str:
        """A defect of the worker must end the run, not the worker, and not be met again on the next one (poison)."""
        self._unrecorded, self._records = [], []
        await self._stop_calls()
        problem = Problem(
            ProblemType.RUNTIME, 500, "Defect in the worker", "the worker could not go on with the run; see its log"
        )
        try:
            await self._append(end=end_of_run(Failed(problem)))
        except LegStopped as stopped:
            return stopped.reason
        except Exception:
            _log.exception("leg_end_not_appended", run=self.run_id, leg=self.job.leg)
            return "refused"
        return "failed"


def _size(output: object) -> int:
    """About how large an output is as JSON; exact for what can be large."""
    if output is None or isinstance(output, bool | int | float):
        return 16
    return len(orjson.dumps(output))


def _expression_problem(failure: EvaluationFailed) -> Problem:
    if failure.kind == "output":
        return Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", failure.detail)
    titles = {"timeout": "Expression took too long", "memory": "Expression needed too much memory"}
    return Problem(ProblemType.EXPRESSION, 400, titles.get(failure.kind, "Expression failed"), failure.detail)
