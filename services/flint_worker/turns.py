"""The turns of a leg: the machine is fed and driven, what it asks for is carried out, what came of it is recorded.

States, in turns: DRIVING (pure work in slices) → APPENDING (what was fed since the last entry) → EXECUTING or WAITING →
DRIVING …, to the end of the run, or to where the leg gives the run back (it blocks, or yields).

The one rule: a call starts only when everything fed to the machine before is acknowledged, and the lease is valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import orjson

from flint_bus.payloads import PayloadsUnavailable
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.effects import Call, Evaluate, Move
from flint_core.events import (
    CallFailed,
    CallSucceeded,
    CancelRequested,
    Evaluated,
    EvaluateFailed,
    Moved,
    Received,
    ResetBegun,
)
from flint_core.ids import run_id_text
from flint_core.payloads import Payload
from flint_core.problems import Problem, ProblemType
from flint_core.queueing import DEFAULT_POOL, Placement
from flint_jq import EvaluationFailed, EvaluatorsBusy
from flint_ops.clock import now_ms
from flint_ops.logging import get_logger
from flint_worker.calls import Origin
from flint_worker.journal import LegStopped
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.recording import ENTRY_AWAIT_BYTES, ENTRY_AWAITS, LegServices, Recording

__all__ = ["CannotReplay", "Turns"]

_ENTRY_BYTES: Final = 150_000
"""Outcomes beyond this size go into the next entry: an entry must fit into one message."""
_ENTRY_RECORDS: Final = 500
_BUSY_PAUSE_S: Final = 0.05
_REPLAY_TRIES: Final = 4
_REPLAY_PAUSE_S: Final = 0.2

_log = get_logger("flint_worker.leg")


class Turns(Recording):
    """The part of a leg that executes steps."""

    __slots__ = (
        "_answered",
        "_asked",
        "_cancel_pending",
        "_cancel_requested",
        "_draining",
        "_dropped",
        "_giving_up",
        "_loaded",
        "_more",
        "_moving",
        "_origin",
        "_payloads",
        "_replaying",
        "run_id",
        "task",
    )

    def __init__(self, job: dispatch_pb2.Job, lease: Lease, services: LegServices, lanes: Lanes) -> None:
        super().__init__(job, lease, services, lanes)
        run = job.run_id
        self.run_id = run_id_text(run)
        self.task: asyncio.Task[str] | None = None
        self._origin = Origin(self.run_id, run, job.trace_id.hex(), job.namespace, job.workflow_id)
        self._loaded = False
        self._moving = self._more = True  # pure work is to be done; and more than fits a slice
        self._payloads: list[Payload] = []  # made by it, not stored yet
        self._replaying = False
        self._answered: set[int] = set()
        self._draining = False
        self._asked = False  # it is the owner who wants it back
        self._giving_up = False
        self._dropped = False
        self._cancel_requested = False
        self._cancel_pending = False  # in its grace: nothing new begins, what runs may end

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
            self._moving = True  # whether that was the run's end is looked at where it has moved
        while True:
            if self._cancel_pending and not effects.progress:
                self._cancel_now()
            if inbox and self._unrecorded_bytes < _ENTRY_BYTES:
                self._feed()
            if self._moving:
                if not self._move():
                    await self._drive()
                if machine.end is not None:
                    if effects.running:
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
        records = machine.take_records()
        if not self._replaying:
            self._records += records
        if machine.plain:
            self._compensates = False
        else:
            self._compensates = machine.compensates
            self._taken += machine.take_signals()
            self._payloads = machine.take_payloads()
        call = machine.take_call()
        if call is not None:
            effects.calls[call.effect_id] = call
        else:
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
                    raise CannotReplay(_expression_problem(failure)) from None
                event = EvaluateFailed(question.effect_id, _expression_problem(failure), now_ms())
                self._unrecorded.append(event)
                self._fed = True
                return event
            else:
                return Evaluated(question.effect_id, value)

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

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _begin_calls(self) -> None:
        """Whether the lease allows it is looked at by each call."""
        self.begun = True
        effects = self._effects
        if not effects.single:
            effects.begin(self._perform)
            return
        progress = effects.begin_alone()
        try:
            effects.inbox.append(
                await self._services.caller.perform(
                    progress.call, self._lease, self._origin, progress.report, self._machine.large, progress.started_ms
                )
            )
        except asyncio.CancelledError:
            if self._dropped or not self._cancel_requested or self.task is None:
                raise
        finally:
            effects.end_alone()
        if not self._cancel_requested:
            return
        # A cancel of the run interrupted the call, not the leg: the machine is told of it next.
        while not self._dropped and self.task is not None and self.task.cancelling():
            self.task.uncancel()

    def _perform(self, call: Call) -> Coroutine[Any, Any, CallSucceeded | CallFailed]:
        progress = self._effects.progress[call.effect_id]
        return self._services.caller.perform(
            call, self._lease, self._origin, progress.report, self._machine.large, progress.started_ms
        )

    def _arrive(self) -> None:
        """Calls that are to be executed where this leg is need not move."""
        job, effects = self.job, self._effects
        own = Placement(pool=job.own_pool or DEFAULT_POOL, region=job.own_region)
        here = (job.pool or own.pool, job.region or own.region, job.leg_level)
        for move in list(effects.moves.values()):
            if (move.pool or own.pool, move.region or own.region, move.level) == here:
                del effects.moves[move.effect_id]
                effects.inbox.append(Moved(move.effect_id, now_ms()))

    # -- giving the run back ------------------------------------------------------------------------------------------

    async def _block(self, wake_at_ms: int, move: Move | None = None) -> str:
        effects = self._effects
        while len(effects.opened) > ENTRY_AWAITS or effects.opened_bytes > ENTRY_AWAIT_BYTES:
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


class CannotReplay(Exception):
    """An expression that had a value when the journal was written has none now."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


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
