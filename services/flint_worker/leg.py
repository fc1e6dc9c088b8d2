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
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from structlog.contextvars import bind_contextvars

from flint_bus import AppendFailed, Bus, MessageTooLarge
from flint_bus.payloads import PayloadMissing, PayloadsUnavailable
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.effects import Call, Evaluate, Move
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    Event,
    Moved,
    Received,
    ResetBegun,
    decode_events,
    encode_events,
)
from flint_core.ids import run_id_text
from flint_core.machine import End, Failed, Machine, MachineLimits, RunFacts, StateTooLarge, StepTrace, Succeeded
from flint_core.payloads import Payload
from flint_core.problems import Problem, ProblemType
from flint_core.program import Program
from flint_core.queueing import DEFAULT_POOL, Placement
from flint_core.sizes import too_deep
from flint_jq import EvaluationFailed, EvaluatorsBusy
from flint_ops.clock import now_ms
from flint_ops.config import LimitSettings
from flint_ops.logging import get_logger
from flint_worker.branches import BranchInputs
from flint_worker.calls import Caller, Origin
from flint_worker.definitions import Definitions, DefinitionUnknown
from flint_worker.effects import Effects, Progress
from flint_worker.journal import JournalWriter, LegStopped
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.rebuilding import read_record
from flint_worker.records import add_awaits, set_end, step_records
from flint_worker.values import Values

__all__ = ["Leg", "LegServices"]

_ENTRY_BYTES: Final = 150_000
"""Outcomes beyond this size go into the next entry: an entry must fit into one message."""
_ENTRY_RECORDS: Final = 500
_ENTRY_AWAITS: Final = 500
_ENTRY_AWAIT_BYTES: Final = 512 * 1024
"""Requests of awaits in one entry; further ones go into entries of their own."""
_SNAPSHOT_ENTRIES: Final = 64
_SNAPSHOT_BYTES: Final = 200_000
"""A snapshot every so often bounds what the next leg must be sent and must replay."""
_BUSY_PAUSE_S: Final = 0.05
_REPLAY_TRIES: Final = 4
_REPLAY_PAUSE_S: Final = 0.2

_log = get_logger("flint_worker.leg")


@dataclass(frozen=True, slots=True)
class LegServices:
    """What legs share."""

    bus: Bus
    definitions: Definitions
    values: Values
    branches: BranchInputs
    caller: Caller
    limits: LimitSettings
    machine_limits: MachineLimits
    inline_wait_ms: int


class Leg:
    """One leg. `run` is its task's body; the other methods may be called from the same event loop at any time."""

    __slots__ = (
        "_answered",
        "_asked",
        "_bytes_since_snapshot",
        "_cancel_pending",
        "_cancel_requested",
        "_compensates",
        "_consumed",
        "_draining",
        "_dropped",
        "_effects",
        "_entries_since_snapshot",
        "_fed",
        "_giving_up",
        "_journal",
        "_lease",
        "_letters",
        "_loaded",
        "_machine",
        "_more",
        "_moving",
        "_origin",
        "_payloads",
        "_rebuilt",
        "_records",
        "_replaying",
        "_services",
        "_taken",
        "_told",
        "_trace_id",
        "_unrecorded",
        "_unrecorded_bytes",
        "begun",
        "job",
        "run_id",
        "task",
    )

    def __init__(self, job: dispatch_pb2.Job, lease: Lease, services: LegServices, lanes: Lanes) -> None:
        self.job = job
        self.run_id = run_id_text(job.run_id)
        self.begun = False
        """Whether anything left this process: a call was started or an entry sent."""
        self.task: asyncio.Task[str] | None = None
        self._trace_id: str = job.trace_id.hex()
        self._lease = lease
        self._services = services
        self._journal = JournalWriter(services.bus, lease, job, lanes)
        self._effects = Effects(job.awaits)
        self._machine: Machine
        self._loaded = False
        self._moving = self._more = True  # pure work is to be done; and more than fits a slice
        self._payloads: list[Payload] = []  # made by it, not stored yet
        self._replaying = False
        self._answered: set[int] = set()
        self._unrecorded: list[Event] = []
        self._unrecorded_bytes = 0
        self._records: list[StepTrace] = []
        self._origin = Origin(self.run_id, job.run_id, self._trace_id, job.namespace, job.workflow_id)
        self._entries_since_snapshot = len(job.events)
        self._bytes_since_snapshot = sum(map(len, job.events))
        self._letters: set[str] = set()
        self._consumed: list[str] = []
        self._compensates = self._told = job.compensates  # something is to be undone; and that was recorded
        self._fed = False
        self._draining = False
        self._asked = False  # it is the owner who wants it back
        self._giving_up = False
        self._dropped = False
        self._cancel_requested = False
        self._cancel_pending = False  # in its grace: nothing new begins, what runs may end
        self._rebuilt = False  # the next entry holds the state that was rebuilt after a reset
        self._taken: list[str] = []
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

    def _cancel_now(self) -> None:
        if not self._cancel_pending:
            return
        self._cancel_pending = False
        self._effects.inbox.append(CancelRequested(now_ms()))
        if self._effects.alone and self.task is not None and not self._undoing:
            self.task.cancel()
        self._effects.wake()

    @property
    def _undoing(self) -> bool:
        """Whether what is in progress undoes something: a cancel changes nothing about that."""
        return self._loaded and self._machine.undoing

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
        bind_contextvars(run=self.run_id, trace_id=self._trace_id)  # the task's own context, which its calls inherit
        try:
            return await self._run()
        except LegStopped as stopped:
            return stopped.reason
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as defect:  # a panic in native code is no Exception
            _log.exception("leg_failed", leg=self.job.leg)
            return await self._fail_by_defect(defect)
        finally:
            await self._effects.stop()

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
        return await self._turns()

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
        elif branches is not None:
            self._machine = Machine.start_branch(program, facts, branches, job.create_time_ms, limits)
        else:
            document = orjson.loads(job.input) if job.input else {}
            self._machine = Machine.start(program, facts, document, job.create_time_ms, limits)
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

    async def _turns(self) -> str:
        machine, effects = self._machine, self._effects
        inbox = effects.inbox
        if self._replaying or self.job.awaits or self.job.inbox:
            if not self._move():
                await self._drive()
            self._replaying = False  # what was recorded is told already: its traces were dropped
            if self._rebuilt and machine.end is None:
                await self._begin_generation()
            effects.compare()  # and before anything new is fed, so that it is known which awaits are open
        while True:
            if self._cancel_pending and not effects.progress:
                self._cancel_now()
            if inbox and self._unrecorded_bytes < _ENTRY_BYTES:
                self._feed()
            if self._moving and not self._move():
                await self._drive()
            if machine.end is not None:
                await effects.stop()
                return await self._end_with(machine.end)
            if effects.timers:
                effects.fire_due()
            if effects.moves:
                self._arrive()
            if inbox and self._unrecorded_bytes < _ENTRY_BYTES:
                continue
            if effects.stopped is not None:
                raise effects.stopped
            if not effects.running:
                if self._giving_up:
                    raise LegStopped("given-up")
                if self._draining:
                    return await self._yield()
                if effects.moves and not effects.calls and not inbox:
                    return await self._block(0, next(iter(effects.moves.values())))
                if not effects.calls:
                    if not effects.timers and not effects.awaits:
                        raise RuntimeError("the machine waits for nothing")
                    wake_at_ms = effects.next_timer_ms if effects.timers else 0
                    far = not wake_at_ms or wake_at_ms - now_ms() > self._services.inline_wait_ms
                    if not inbox and far:
                        return await self._block(wake_at_ms)
            # That there is something to undo is told before more is done: a cancel ends a run without it at once.
            untold = self._compensates and not self._told
            if self._unrecorded or effects.opened or effects.closed or self._consumed or self._taken or untold:
                await self._append()
            elif effects.calls and not self._draining and not self._giving_up and not self._cancel_pending:
                await self._begin_calls()
            elif not inbox:
                await effects.wait()

    # -- the machine --------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        inbox = self._effects.inbox
        self._fed = True
        self._moving = True
        while inbox and self._unrecorded_bytes < _ENTRY_BYTES:
            event = inbox.popleft()
            if isinstance(event, CallSucceeded):
                self._unrecorded_bytes += event.size if event.size >= 0 else _size(event.output)
            elif isinstance(event, Received):
                self._consumed.append(event.key)
                if event.effect_id not in self._effects.awaits:
                    continue  # too late: nobody waits for it any more
                self._unrecorded_bytes += _size(event.content)
            self._machine.apply(event)
            self._unrecorded.append(event)

    async def _begin_generation(self) -> None:
        """The state is what it was at the point of the reset: from here on it is another generation's."""
        event = ResetBegun(self.job.rebuild.reset, self.job.rebuild.time_ms)
        self._machine.apply(event)
        self._unrecorded.append(event)
        self._fed = True
        if not self._move():
            await self._drive()

    def _move(self) -> bool:
        """A slice of pure work. Whether the machine waits for the world then; if not, `_drive` goes on."""
        machine, effects = self._machine, self._effects
        more = self._more = machine.advance(self._services.limits.steps_per_turn)
        self._compensates = machine.compensates
        records = machine.take_records()
        if not self._replaying:
            self._records += records
        if signals := machine.take_signals():
            self._taken += signals
        self._payloads = machine.take_payloads()
        effects.note(machine.take_effects(), self._answered)
        self._moving = more or bool(self._payloads) or effects.question is not None
        return not self._moving

    async def _drive(self) -> None:
        """What a slice of pure work left to do, and further slices, until the machine waits for the world.

        Others get their turn between them.
        """
        machine, effects = self._machine, self._effects
        while self._moving:
            if self._payloads:  # in a replay too: what was made after the last entry may have been lost with the worker
                payloads, self._payloads = self._payloads, []
                await self._keep_payloads(payloads)  # a call or a question that follows may name them
            if effects.question is not None:
                question, effects.question = effects.question, None
                machine.apply(await self._evaluate(question))
            elif not self._more:
                self._moving = False
                return
            elif len(self._records) >= _ENTRY_RECORDS:
                await self._append(with_snapshot=True)
            else:
                await asyncio.sleep(0)
            self._move()

    async def _evaluate(self, question: Evaluate) -> Evaluated | EvaluateFailed:
        tries = 0
        while True:
            try:
                value = await self._services.values.evaluate(self._origin.namespace, self._origin.run, question)
            except EvaluatorsBusy:
                if not self._lease.valid():
                    raise LegStopped("lease") from None
                await asyncio.sleep(_BUSY_PAUSE_S)
            except EvaluationFailed as failure:
                tries += 1
                if self._replaying:
                    # It had succeeded the first time: a limit of this moment, not a fact about the run. But it must
                    # not be for ever: without its value nobody can go on with the run.
                    if tries < _REPLAY_TRIES:
                        await asyncio.sleep(_REPLAY_PAUSE_S * tries)
                        continue
                    raise _CannotReplay(_expression_problem(failure)) from None
                event = EvaluateFailed(question.effect_id, _expression_problem(failure), now_ms())
                self._unrecorded.append(event)
                self._fed = True
                return event
            else:
                return Evaluated(question.effect_id, value)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _begin_calls(self) -> None:
        """Whether the lease allows it is looked at by each call."""
        self.begun = True
        effects = self._effects
        if not effects.single:
            effects.begin(self._perform)
            return
        call = effects.begin_alone()
        try:
            effects.inbox.append(await self._perform(call))
        except asyncio.CancelledError:
            if self._dropped or not self._cancel_requested or self.task is None:
                raise
        finally:
            effects.end_alone(call)
        if not self._cancel_requested:
            return
        # A cancel of the run interrupted the call, not the leg: the machine is told of it next.
        while not self._dropped and self.task is not None and self.task.cancelling():
            self.task.uncancel()

    def _perform(self, call: Call) -> Coroutine[Any, Any, CallSucceeded | CallFailed]:
        progress = self._effects.progress[call.effect_id]
        large = self._machine.large
        return self._services.caller.perform(
            call, self._lease, self._origin, progress.report, large=large, started_ms=progress.started_ms
        )

    # -- the journal --------------------------------------------------------------------------------------------------

    async def _append(
        self, *, with_snapshot: bool = False, run_end: End | None = None, leg_end: journal_pb2.LegEnd | None = None
    ) -> None:
        """One entry: everything fed and traced since the last one. Raises LegStopped, also after a failed end."""
        ends = run_end is not None or leg_end is not None
        events = encode_events(self._unrecorded) if self._unrecorded else b""
        size = len(events) + self._bytes_since_snapshot
        if not ends and (self._entries_since_snapshot >= _SNAPSHOT_ENTRIES or size > _SNAPSHOT_BYTES):
            with_snapshot = True
        if self._rebuilt and self._fed and run_end is None:
            with_snapshot = True  # nobody rebuilds it again
        try:
            snapshot = self._machine.snapshot() if with_snapshot else b""
        except StateTooLarge as error:
            await self._fail_by_size("State too large", str(error))
            raise LegStopped("failed") from None
        self.begun = True
        compensates = self._compensates and run_end is None
        entry = journal_pb2.JournalEntry.FromString(step_records(self._records))
        if events:
            entry.events = events
        if snapshot:
            entry.snapshot = snapshot
        if compensates:
            entry.compensates = True
        if leg_end is not None:
            entry.end.CopyFrom(leg_end)
        if run_end is not None:
            set_end(entry, run_end)
        else:
            if self._effects.opened:
                opened = self._effects.take_opened(_ENTRY_AWAITS, _ENTRY_AWAIT_BYTES)
                add_awaits(entry, opened, self._machine.now_ms)
            if self._effects.closed:
                entry.awaits_closed.extend(self._effects.closed)
                self._effects.closed = []
        if self._consumed:
            entry.consumed.extend(self._consumed)
            self._consumed = []
        if self._taken:
            entry.taken.extend(self._taken)
            self._taken = []
        try:
            await self._journal.append(entry)
        except MessageTooLarge as error:
            if ends and not snapshot:
                raise
            self._unrecorded, self._records = [], []
            await self._fail_by_size("Payload too large", str(error))
            raise LegStopped("failed") from None
        self._told = self._told or compensates
        self._unrecorded = []
        self._unrecorded_bytes = 0
        self._records = []
        if snapshot:
            self._rebuilt = False
            self._entries_since_snapshot = self._bytes_since_snapshot = 0
        else:
            self._entries_since_snapshot += 1
            self._bytes_since_snapshot = size

    async def _keep_payloads(self, payloads: list[Payload]) -> None:
        """Large values that the machine made are stored before an entry names them."""
        while True:
            try:
                await self._services.values.keep(self._origin.namespace, self._origin.run, payloads)
            except PayloadsUnavailable as error:
                if not self._lease.valid():
                    raise LegStopped("lease") from None
                _log.warning("large_values_wait_for_store", error=str(error))
            else:
                return

    async def _end_with(self, end: End) -> str:
        """The run's end; the outcome of its last step is in the same entry."""
        try:
            await self._append(run_end=end)
        except MessageTooLarge as error:
            self._unrecorded, self._records = [], []
            end = Failed(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", str(error)))
            await self._append(run_end=end)
        if isinstance(end, Succeeded):
            return "succeeded"
        return "failed" if isinstance(end, Failed) else "cancelled"

    def _arrive(self) -> None:
        """Calls that are to be executed where this leg is need not move."""
        job, effects = self.job, self._effects
        own = Placement(pool=job.own_pool or DEFAULT_POOL, region=job.own_region)
        here = (job.pool or own.pool, job.region or own.region, job.leg_level)
        for move in list(effects.moves.values()):
            if (move.pool or own.pool, move.region or own.region, move.level) == here:
                del effects.moves[move.effect_id]
                effects.inbox.append(Moved(move.effect_id, now_ms()))

    async def _block(self, wake_at_ms: int, move: Move | None = None) -> str:
        effects = self._effects
        while len(effects.opened) > _ENTRY_AWAITS or effects.opened_bytes > _ENTRY_AWAIT_BYTES:
            if len(effects.opened) == 1:
                break
            await self._append()  # whoever serves an await must know of it before the run sleeps
        blocked = journal_pb2.Blocked(wake_at_ms=wake_at_ms, undoing=self._machine.undoing)
        if move is not None:
            blocked.placement.SetInParent()
            blocked.placement.pool, blocked.placement.region, blocked.placement.level = move[2:]
        await self._append(with_snapshot=True, leg_end=journal_pb2.LegEnd(blocked=blocked))
        return "blocked"

    async def _yield(self) -> str:
        """Gives the run back. Where nothing was fed in this leg, the state before it is as good."""
        end = journal_pb2.LegEnd(yielded=journal_pb2.Yielded(asked=self._asked))
        if not self._fed:
            self._records = []
        await self._append(with_snapshot=self._fed, leg_end=end)
        return "yielded"

    async def _fail_by_size(self, title: str, detail: str) -> None:
        await self._effects.stop()
        await self._end_with(Failed(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, title, detail)))

    async def _fail_by_defect(self, defect: BaseException) -> str:
        """What the worker cannot go on with must end the run, not the worker, and not be met again on the next one."""
        self._unrecorded, self._records = [], []
        await self._effects.stop()
        try:
            await self._append(run_end=Failed(_defect_problem(defect)))
        except LegStopped as stopped:
            return stopped.reason
        except Exception:
            # Nothing can be said in the journal: the owner finds a leg that gave no sign, and counts it.
            _log.exception("leg_end_not_appended", leg=self.job.leg)
            return "refused"
        return "failed"


class _CannotReplay(Exception):
    """An expression that had a value when the journal was written has none now."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


def _defect_problem(defect: BaseException) -> Problem:
    if isinstance(defect, _CannotReplay):
        detail = f"an expression could not be evaluated again after the run moved: {defect.problem.detail}"
        return Problem(defect.problem.type, defect.problem.status, "Run cannot be resumed", detail)
    if isinstance(defect, AppendFailed):
        return Problem(ProblemType.UNSTORABLE, 500, "Entry refused", f"the journal refused an entry: {defect}"[:500])
    return Problem(
        ProblemType.RUNTIME, 500, "Defect in the worker", "the worker could not go on with the run; see its log"
    )


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
