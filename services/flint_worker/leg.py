"""The leg runner: one leg, one task, from the job to the leg's end.

States: LOADING (definition, state) → REPLAYING (recorded events are fed again; nothing is executed) → its turns
(`turns.py`) → ENDED: an entry with the leg's end, or STOPPED without a word (lease over, superseded, given up,
dropped).

When the task dies by a defect, the run fails with a runtime problem; when it is cancelled (`drop`), calls in progress
are cancelled and nothing more is appended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson
from structlog.contextvars import bind_contextvars

from flint_bus import AppendFailed
from flint_bus.payloads import PayloadMissing, PayloadsUnavailable
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.events import EvaluateFailed, Received, decode_events
from flint_core.machine import Failed, Machine, RunFacts
from flint_core.problems import Problem, ProblemType
from flint_core.program import Program
from flint_core.sizes import too_deep
from flint_ops.clock import now_ms
from flint_ops.logging import get_logger
from flint_worker.definitions import DefinitionUnknown
from flint_worker.effects import Progress
from flint_worker.journal import LegStopped
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.rebuilding import read_record
from flint_worker.recording import LegServices
from flint_worker.turns import CannotReplay, Turns

__all__ = ["Leg", "LegServices"]

_log = get_logger("flint_worker.leg")


class Leg(Turns):
    """One leg. `run` is its task's body; the other methods may be called from the same event loop at any time."""

    __slots__ = ("_letters",)

    def __init__(self, job: dispatch_pb2.Job, lease: Lease, services: LegServices, lanes: Lanes) -> None:
        super().__init__(job, lease, services, lanes)
        self._letters: set[str] = set()
        if job.inbox:
            self.deliver(job.inbox)

    # -- from outside -------------------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[str]:
        """Begins. The task's result is how it ended, for metrics."""
        self.task = asyncio.create_task(self.run(), name="leg")
        return self.task

    @property
    def progress(self) -> dict[int, Progress]:
        """Calls in progress, by effect id."""
        return self._effects.progress

    @property
    def in_progress(self) -> bool:
        """Whether a call is being executed."""
        return bool(self._effects.progress)

    def request_cancel(self, grace_ms: int = 0) -> None:
        """The run is to end early: when the calls in progress have ended, and at the latest after the grace."""
        if self._cancel_requested:
            return
        self._cancel_requested = self._cancel_pending = True
        if grace_ms > 0 and self.in_progress:
            asyncio.get_running_loop().call_later(grace_ms / 1000, self._cancel_now)
        else:
            self._cancel_now()

    def deliver(self, messages: Iterable[dispatch_pb2.InboxMessage]) -> None:
        """Something came for awaits of the run. What was delivered before is ignored."""
        at_ms = now_ms()
        for message in messages:
            if message.key in self._letters:
                continue
            self._letters.add(message.key)
            try:
                if too_deep(message.content):
                    raise ValueError("nested too deeply for the run's state")
                event = Received(int(message.await_key), message.key, orjson.loads(message.content), at_ms)
            except ValueError:
                _log.error("message_unreadable", run=self.run_id, key=message.key, await_key=message.await_key)
                self._consumed.append(message.key)
            else:
                self._effects.inbox.append(event)
        self._effects.wake()

    def drain(self) -> None:
        """Give the run back at the next boundary."""
        self._draining = True
        self._asked = False
        self._effects.wake()

    def pause(self) -> None:
        """The same, because the owner asked for it: the worker goes on with others."""
        self._asked = self._asked or not self._draining  # asked again and again: of a worker that drains it is not that
        self._draining = True
        self._effects.wake()

    def give_up(self) -> None:
        """Its journal is gone: stop as soon as nothing is in progress."""
        self._giving_up = True
        if self.in_progress:
            self._effects.on_quiet = self._journal.give_up
        else:
            self._journal.give_up()
        self._effects.wake()

    def drop(self) -> None:
        """Stop at once: nothing more is begun or appended."""
        self._dropped = True
        if self.task is not None:
            self.task.cancel()

    # -- the task -----------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Runs the leg to its end. Never raises, except CancelledError."""
        # The task's own context, which its calls inherit.
        bind_contextvars(run=self.run_id, trace_id=self._origin.trace_id)
        try:
            return await self._begin() or await self._turns()
        except LegStopped as stopped:
            return stopped.reason
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as defect:  # a panic in native code is no Exception
            _log.exception("leg_failed", leg=self.job.leg)
            return await self._fail_by_defect(defect)
        finally:
            if self._effects.running:
                await self._effects.stop()

    async def _begin(self) -> str:
        """Loads what the leg begins with. How it ended instead; empty when its turns may begin."""
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
        if self.job.HasField("rebuild"):
            whole = await self._read_record()
            if whole is None:
                return await self._yield()
            self.job.input, events = whole
            self.job.events.extend(events)
        branches: dict[str, Any] | None = None
        if self.job.branch and not self.job.snapshot:
            try:
                branches = await self._branch_input()
            except (PayloadMissing, ValueError) as error:
                problem = Problem(ProblemType.RUNTIME, 500, "Branches cannot begin", str(error))
                return await self._end_with(Failed(problem))
        self._load(program, branches)
        return ""

    async def _branch_input(self) -> dict[str, Any]:
        """What a branch run begins with. Raises LegStopped, PayloadMissing, ValueError."""
        while True:
            try:
                return await self._services.branches.read(self.job.namespace, self.job.input)
            except PayloadsUnavailable as error:
                if not self._lease.valid():
                    raise LegStopped("lease") from None
                _log.warning("branches_wait_for_store", error=str(error))

    async def _read_record(self) -> tuple[bytes, list[bytes]] | None:
        """What the state is rebuilt from after a reset; None when the leg is to be given back instead."""
        reading = asyncio.ensure_future(read_record(self._services.bus, self.job.run_id, self._lease))
        try:
            while not reading.done() and not self._draining:
                await self._effects.wait(also=reading)
            return reading.result() if reading.done() else None
        finally:
            reading.cancel()

    async def _fetch(self) -> Program | None:
        """The program; None when the leg is to be given back instead."""
        fetching = asyncio.ensure_future(self._services.definitions.get(self.job.definition_hash))
        try:
            while not fetching.done() and not self._draining:
                await self._effects.wait(also=fetching)
            return fetching.result() if fetching.done() else None
        finally:
            fetching.cancel()

    def _load(self, program: Program, branches: dict[str, Any] | None = None) -> None:
        job = self.job
        created_ms, origin = job.create_time_ms, self._origin
        facts = RunFacts(
            self.run_id, origin.namespace, origin.workflow, job.version, created_ms, job.level, seed=job.seed
        )
        limits = self._services.machine_limits
        if job.snapshot:
            self._machine = Machine.restore(program, facts, job.snapshot, limits)
        elif branches is not None:
            self._machine = Machine.start_branch(program, facts, branches, created_ms, limits)
        else:
            document = orjson.loads(job.input) if job.input else {}
            self._machine = Machine.start(program, facts, document, created_ms, limits)
        for recorded in job.events:
            self._replaying = True
            for event in decode_events(recorded):
                self._machine.apply(event)
                if isinstance(event, EvaluateFailed):
                    self._answered.add(event.effect_id)
        self._loaded = True
        if job.HasField("rebuild"):
            self._replaying = True  # also where there is nothing to replay: what comes first is the new generation
            self._rebuilt = True
        if job.cancel_requested:
            self.request_cancel()

    async def _fail_by_defect(self, defect: BaseException) -> str:
        """What the worker cannot go on with must end the run, not the worker, and not be met again on the next one."""
        self._unrecorded, self._records = [], []
        await self._effects.stop()
        try:
            await self._append(end=Failed(_defect_problem(defect)))
        except LegStopped as stopped:
            return stopped.reason
        except Exception:
            # Nothing can be said in the journal: the owner finds a leg that gave no sign, and counts it.
            _log.exception("leg_end_not_appended", leg=self.job.leg)
            return "refused"
        return "failed"


def _defect_problem(defect: BaseException) -> Problem:
    if isinstance(defect, CannotReplay):
        detail = f"an expression could not be evaluated again after the run moved: {defect.problem.detail}"
        return Problem(defect.problem.type, defect.problem.status, "Run cannot be resumed", detail)
    if isinstance(defect, AppendFailed):
        return Problem(ProblemType.UNSTORABLE, 500, "Entry refused", f"the journal refused an entry: {defect}"[:500])
    return Problem(
        ProblemType.RUNTIME, 500, "Defect in the worker", "the worker could not go on with the run; see its log"
    )
