"""The machine: executes one run of a program. Pure: no I/O, no clock, no threads.

    machine = Machine.start(program, facts, input, at_ms, limits)
    while machine.end is None:
        while machine.advance(200): ...            # pure work, in slices
        records = machine.take_records()           # what is to be shown
        for effect in machine.take_effects(): ...  # carry out
        machine.apply(event)                       # feed back what came of it

Replay. State is a function of the program, the facts, the input and the events in the order in which they were applied
(`Evaluated` apart). To resume: `restore` the last snapshot, `apply` every recorded event after it in order, then
advance and answer `Evaluate` effects until nothing is left to do. All recorded events may be applied at once: each is
taken up only when everything before it is done. Effects that they answer are not handed out again. Traces come in the
same sequence as the first time, so a driver that knows how many were recorded since the snapshot drops as many.
Take traces before a snapshot: it does not hold them.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import orjson

from flint_core.effects import Await, Call, Effect, Move, Timer, TimerKind
from flint_core.engine.bodies import loop_variables
from flint_core.engine.branching import SPREAD, begin_branch_run
from flint_core.engine.catching import PAUSED, attempt_expired, catch_variables, retry_due
from flint_core.engine.dataflow import Fault, MachineLimits, RunFacts, Suspended, located
from flint_core.engine.frames import NO_VARIABLES, Frame, Phase, Strand, decode_strand, encode_strand
from flint_core.engine.kernel import RUN_TIMER, TRYING, Cancelled, End, Failed, Kernel, Succeeded
from flint_core.engine.listening import is_iterating, listen_variables
from flint_core.engine.parallel import iteration_variables
from flint_core.engine.resetting import begin_generation
from flint_core.engine.room import FLOWING_PAYLOADS
from flint_core.engine.stations import STATIONS
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
    TimerFired,
    decode_event,
    encode_event,
)
from flint_core.payloads import Payload, holds_reference
from flint_core.problems import Problem
from flint_core.program import Program
from flint_core.sizes import weight_of
from flint_core.traces import StepState, StepTrace

__all__ = [
    "Cancelled",
    "End",
    "Failed",
    "Machine",
    "MachineLimits",
    "RunFacts",
    "SnapshotError",
    "StateTooLarge",
    "StepState",
    "StepTrace",
    "Succeeded",
]

_SNAPSHOT: Final = 1
_ANSWERS: Final = (Evaluated, EvaluateFailed)  # a union written where it is asked for is made anew each time
_COMMANDS: Final = (CancelRequested, ResetBegun)
_SPILL_DEPTH: Final = 1
"""`spill` puts references no deeper than the members of a value."""


class StateTooLarge(Exception):
    """The state is beyond its limit; sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the run's state is {size} bytes; the limit is {limit}")
        self.size = size
        self.limit = limit


class SnapshotError(ValueError):
    """The bytes are not a snapshot of this program."""


class Machine:
    """One run. Not thread-safe; cheap to create and to drop."""

    __slots__ = ("_kernel", "_queue", "_queued")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._queue: deque[Event] = deque()
        self._queued: dict[int, int] = {}

    @classmethod
    def start(
        cls, program: Program, facts: RunFacts, input: Any, at_ms: int, limits: MachineLimits | None = None
    ) -> Machine:
        """A run at its beginning. `input` is JSON and is never changed. Nothing happens before `advance`."""
        plan = program.plan
        kernel = Kernel(plan, facts, limits or MachineLimits())
        kernel.now = kernel.started = at_ms
        kernel.large = holds_reference(input)
        strand = kernel.open_strand(-1, 0)
        strand.stack.append(Frame(plan.tasks[0], input, at_ms, 1, "", {}))
        kernel.wake(strand)
        kernel.watch()
        return cls(kernel)

    @classmethod
    def start_branch(
        cls,
        program: Program,
        facts: RunFacts,
        document: dict[str, Any],
        at_ms: int,
        limits: MachineLimits | None = None,
    ) -> Machine:
        """A branch run at its beginning: a range of the branches of one fork, and nothing after it.

        `document` is `branches.branch_input`, with the contents of what its `entry` and `items` refer to. Of `facts`
        those that steps can see are the ones of the run that came to the fork. It ends with an output by the members of
        `flint_core.branches`. Raises SnapshotError when the document does not fit the program.
        """
        kernel = Kernel(program.plan, facts, limits or MachineLimits())
        kernel.now = at_ms
        kernel.large = holds_reference(document)
        try:
            begin_branch_run(kernel, document)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SnapshotError(f"not what branches of this program begin with: {error}") from None
        return cls(kernel)

    @classmethod
    def restore(
        cls, program: Program, facts: RunFacts, snapshot: bytes, limits: MachineLimits | None = None
    ) -> Machine:
        """A run as `snapshot()` left it. Raises SnapshotError. `pending()` tells what it waits for."""
        kernel = Kernel(program.plan, facts, limits or MachineLimits())
        machine = cls(kernel)
        try:
            document = orjson.loads(snapshot)
            if document["format"] != _SNAPSHOT:
                raise SnapshotError("the snapshot has a format that this version of Flint does not read")
            machine._load(document)
        except (KeyError, IndexError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
            raise SnapshotError(f"not a snapshot of this program: {error}") from None
        return machine

    @property
    def end(self) -> End | None:
        """How the run ended; None while it goes on."""
        return self._kernel.end

    @property
    def plain(self) -> bool:
        """Whether it has nothing to undo, and no signals and no payloads to take: the usual case, in one question."""
        kernel = self._kernel
        return not (kernel.taken or kernel.payloads or kernel.notes) and kernel.ending is None

    @property
    def compensates(self) -> bool:
        """Whether the run has something to undo before it ends as failed or cancelled, or is about it."""
        return self._kernel.end is None and bool(self._kernel.notes or self._kernel.ending is not None)

    @property
    def undoing(self) -> bool:
        """Whether the run is about to end and undoes what it has done: it should not leave its worker for that."""
        return self._kernel.end is None and self._kernel.ending is not None

    @property
    def now_ms(self) -> int:
        """The time of the latest event taken up (Unix epoch, ms)."""
        return self._kernel.now

    @property
    def large(self) -> bool:
        """Whether values of the run may be, or hold, references to large ones."""
        return self._kernel.large

    def apply(self, event: Event) -> None:
        """Note an event. Cheap; what it causes happens in `advance`. Answers to unknown effects are ignored."""
        if isinstance(event, _ANSWERS):
            self._kernel.answers[event.effect_id] = event
            if isinstance(event, Evaluated) and holds_reference(event.value, _SPILL_DEPTH):
                self._kernel.large = True
            return
        self._queue.append(event)
        if not isinstance(event, _COMMANDS):
            effect_id, queued = event.effect_id, self._queued
            queued[effect_id] = queued[effect_id] + 1 if effect_id in queued else 1

    def advance(self, budget: int) -> bool:
        """Do at most `budget` moves of pure work. True when more can be done at once, without new events."""
        kernel = self._kernel
        ready = kernel.ready
        while kernel.end is None:
            if ready:
                strand = ready[0]
                if strand.dead:
                    ready.popleft()
                    continue
                if kernel.evaluating and kernel.evaluating not in kernel.answers:
                    return False
                if budget <= 0:
                    return True
                budget -= 1
                frame = strand.stack[-1]
                try:  # `Kernel.turn`, written out: there are three turns to every call
                    STATIONS[frame.phase](kernel, strand, frame)
                except Suspended:
                    continue
                except Fault as fault:
                    kernel.fault(strand, fault.problem)
            elif self._queue:
                if budget <= 0:
                    return True
                budget -= 1
                self._take_up(self._queue.popleft())
            else:
                return False
        return False

    def take_effects(self) -> list[Effect]:
        """Effects since the last time, in order; those that an event already noted answers are kept back."""
        kernel = self._kernel
        effects: list[Effect] = []
        if kernel.cancelled:
            effects += kernel.cancelled
            kernel.cancelled.clear()
        if kernel.outbox:
            if self._queued:
                held = {key: effect for key, effect in kernel.outbox.items() if key in self._queued}
                effects.extend(effect for key, effect in kernel.outbox.items() if key not in held)
                kernel.outbox.clear()
                kernel.outbox.update(held)
            else:
                effects.extend(kernel.outbox.values())
                kernel.outbox.clear()
        return effects

    def take_call(self) -> Call | None:
        """The usual case of `take_effects`: the one that is new, where that is a call. None: nothing was taken."""
        kernel = self._kernel
        outbox = kernel.outbox
        if len(outbox) != 1 or kernel.cancelled or self._queued:
            return None
        effect_id, effect = outbox.popitem()
        if type(effect) is Call:
            return effect
        outbox[effect_id] = effect
        return None

    def pending(self) -> list[Effect]:
        """All effects that are outstanding, in order of their ids, taken or not. They count as taken from now on.

        Meant for after a restore and replay: whatever this returns, `take_effects` does not return again.
        """
        kernel = self._kernel
        effects: list[Effect] = []
        if kernel.watched and RUN_TIMER not in self._queued:
            effects.append(kernel.run_timer())
        effects += [
            self._effect(effect_id, strand, frame)
            for effect_id, (strand, frame) in sorted(kernel.owners.items())
            if effect_id not in self._queued
        ]
        if kernel.question is not None and kernel.evaluating and kernel.evaluating not in kernel.answers:
            effects.append(kernel.question)
        for effect in effects:
            kernel.outbox.pop(effect.effect_id, None)
        return effects

    def take_records(self) -> list[StepTrace]:
        """Traces since the last time, in order."""
        records = self._kernel.records
        if records:
            self._kernel.records = []
        return records

    def take_signals(self) -> list[str]:
        """Keys of the signals (`SIGNAL_PREFIX`) that a `listen` took since the last time. A replay tells them again."""
        taken = self._kernel.taken
        if taken:
            self._kernel.taken = []
        return taken

    def take_payloads(self) -> list[Payload]:
        """Large values made since the last time: store them before anything after is recorded.

        A replay gives those of what was recorded again; they are stored already.
        """
        payloads = self._kernel.payloads
        if payloads:
            self._kernel.payloads = []
        return payloads

    def snapshot(self) -> bytes:
        """The whole state as bytes, at any moment. Raises StateTooLarge; the state is unharmed then."""
        kernel = self._kernel
        document: dict[str, Any] = {
            "format": _SNAPSHOT,
            "now": kernel.now,
            "started": kernel.started,
            "steps": kernel.steps_begun,
            "effect": kernel.next_effect,
            "strand": kernel.next_strand,
            "strands": [encode_strand(strand, kernel.around(strand)) for strand in kernel.strands.values()],
            "ready": [strand.id for strand in kernel.ready if not strand.dead],
        }
        if kernel.reset:
            document["reset"] = kernel.reset
        if kernel.large:
            document["large"] = True
        if kernel.branch is not None:
            document["branch"] = kernel.branch
        if kernel.place is not None:
            document["place"] = list(kernel.place)
        if kernel.exported:
            document["context"] = kernel.context
        if kernel.outputs:
            document["outputs"] = [[task, value] for task, value in kernel.outputs.items()]
        if kernel.evaluating:
            document["evaluating"] = kernel.evaluating
        if kernel.notes:
            document["notes"] = list(kernel.notes.values())
        if kernel.ending is not None:
            document["ending"] = _encode_end(kernel.ending)
        if self._queue or kernel.answers:
            events: list[Event] = [*kernel.answers.values(), *self._queue]
            document["queue"] = [encode_event(event) for event in events]
        if kernel.end is not None:
            document["end"] = _encode_end(kernel.end)
        data = orjson.dumps(document)
        limit = kernel.limits.state_bytes + FLOWING_PAYLOADS * kernel.limits.payload_bytes
        if len(data) > limit:
            raise StateTooLarge(len(data), limit)
        return data

    # --- inside

    def _take_up(self, event: Event) -> None:
        if isinstance(event, CallSucceeded):
            self._succeeded(event)
            return
        kernel = self._kernel
        if isinstance(event, CancelRequested):
            kernel.now = max(kernel.now, event.at_ms)
            if kernel.ending is None or event.at_once:
                kernel.finish(Cancelled(), event.at_once)
            if kernel.end is not None:
                self._queue.clear()
                self._queued.clear()
            return
        if isinstance(event, ResetBegun):
            begin_generation(kernel, event.generation, event.at_ms, self._effect)
            return
        effect_id = event.effect_id
        self._unqueue(effect_id)
        if effect_id == RUN_TIMER and isinstance(event, TimerFired):
            kernel.now = max(kernel.now, event.at_ms)
            kernel.overdue()
            if kernel.end is not None:
                self._queue.clear()
                self._queued.clear()
            return
        owner = kernel.owners.get(effect_id)
        if owner is None or isinstance(event, _ANSWERS):
            return
        strand, frame = owner
        if not self._answers(event, frame):
            return
        if event.at_ms > kernel.now:
            kernel.now = event.at_ms
        if isinstance(event, Received):
            kernel.large = kernel.large or holds_reference(event.content)
            kernel.receive(strand, frame, event.key, event.content)
            return
        kernel.settle(effect_id)
        if isinstance(event, TimerFired):
            self._fire(strand, frame, effect_id)
            return
        frame.effect = 0
        if isinstance(event, Moved):
            kernel.arrive(strand, frame)
            return
        frame.args = None
        frame.started = event.started_ms
        kernel.fault(strand, located(event.problem, frame), event.retry_after_ms)

    def _succeeded(self, event: CallSucceeded) -> None:
        """Of all events this one is the usual: what the others go through is written out for it."""
        effect_id, output, started_ms, at_ms, size = event
        kernel, queued = self._kernel, self._queued
        if queued[effect_id] == 1:
            del queued[effect_id]
        else:
            self._unqueue(effect_id)
        owner = kernel.owners.get(effect_id)
        if owner is None:
            return
        strand, frame = owner
        plan = frame.plan
        if frame.effect != effect_id or not plan.function or plan.awaits or frame.moving:
            return  # no call is what the effect asks for
        del kernel.owners[effect_id]
        kernel.outbox.pop(effect_id, None)
        if at_ms > kernel.now:
            kernel.now = at_ms
        if output and not kernel.large and holds_reference(output, _SPILL_DEPTH):
            kernel.large = True
        frame.effect = 0
        frame.args = None
        frame.started = started_ms
        if not plan.detached:
            frame.value, frame.size = output, weight_of(output, size)
        frame.phase = plan.after_body
        kernel.wake(strand)

    def _unqueue(self, effect_id: int) -> None:
        left = self._queued.pop(effect_id) - 1
        if left:
            self._queued[effect_id] = left

    @staticmethod
    def _answers(event: CallFailed | TimerFired | Received | Moved, frame: Frame) -> bool:
        """Whether the event is of the kind that the effect asks for."""
        plan = frame.plan
        of_body = frame.effect == event.effect_id
        if of_body and (plan.awaits or _is_spread(frame)):
            return isinstance(event, Received)
        if of_body and plan.function:
            return isinstance(event, Moved) if frame.moving else isinstance(event, CallFailed)
        return isinstance(event, TimerFired)

    def _fire(self, strand: Strand, frame: Frame, effect_id: int) -> None:
        kernel = self._kernel
        if effect_id == frame.deadline:
            kernel.expire(strand, frame)
            return
        if effect_id == frame.timer:
            frame.timer = 0
            kernel.wake(strand)
            return
        if frame.plan.catch is not None and frame.station == TRYING:
            attempt_expired(kernel, strand, frame)
            return
        frame.effect = 0
        if frame.plan.catch is not None:
            retry_due(frame)
        else:
            frame.phase = frame.plan.after_body
        kernel.wake(strand)

    def _effect(self, effect_id: int, strand: Strand, frame: Frame) -> Call | Timer | Await | Move:
        if effect_id == frame.deadline:
            return Timer(effect_id, frame.deadline_until, TimerKind.DEADLINE)
        if effect_id == frame.timer:
            return Timer(effect_id, frame.timer_until, TimerKind.DEADLINE)
        if frame.plan.awaits or _is_spread(frame):
            return self._kernel.await_of(frame)
        if frame.plan.function:
            return self._kernel.move_of(frame) if frame.moving else self._kernel.call_of(strand, frame)
        if frame.plan.kind == "wait":
            return Timer(effect_id, frame.effect_until, TimerKind.WAIT)
        kind = TimerKind.RETRY if frame.station == PAUSED else TimerKind.DEADLINE
        return Timer(effect_id, frame.effect_until, kind)

    def _load(self, document: dict[str, Any]) -> None:
        kernel = self._kernel
        kernel.now = document["now"]
        kernel.started = document["started"]
        kernel.steps_begun = document["steps"]
        kernel.next_effect = document["effect"]
        kernel.next_strand = document["strand"]
        if "place" in document:
            kernel.place = tuple(document["place"])
        kernel.reset = document.get("reset", kernel.facts.reset)
        kernel.large = document.get("large", False)
        kernel.exported = "context" in document
        kernel.context = document.get("context")
        kernel.outputs = dict(document.get("outputs", ()))
        kernel.evaluating = document.get("evaluating", 0)
        kernel.notes = {(task, at): (task, at, *rest) for task, at, *rest in document.get("notes", ())}
        if "ending" in document:
            kernel.ending = _decode_end(document["ending"])
        if "branch" in document:
            kernel.branch = document["branch"]
            run_id, created_ms, level, reset, seed = kernel.branch["facts"]
            kernel.facts = kernel.facts._replace(
                run_id=run_id, created_ms=created_ms, level=level, reset=reset, seed=seed
            )
        for entry in document["strands"]:
            parent = entry["parent"]
            around = kernel.strands[parent].stack[-1].input if parent >= 0 else None
            strand = decode_strand(entry, kernel.plan, around)
            kernel.strands[strand.id] = strand
            if kernel.branch is not None and strand.parent < 0 and len(strand.stack) > 1:
                kernel.entry = strand.stack[1]
            _derive_variables(kernel, strand)
            for frame in strand.stack:
                for effect_id in (frame.deadline, frame.timer, frame.effect):
                    if effect_id:
                        kernel.owners[effect_id] = (strand, frame)
        kernel.recount()
        for effect_id in sorted(kernel.owners):
            kernel.outbox[effect_id] = self._effect(effect_id, *kernel.owners[effect_id])
        if "end" not in document:
            kernel.watch()
        for strand_id in document["ready"]:
            kernel.wake(kernel.strands[strand_id])
        for entry in document.get("queue", ()):
            self.apply(decode_event(entry))
        if "end" in document:
            kernel.end = _decode_end(document["end"])
        elif kernel.evaluating and kernel.evaluating not in kernel.answers:
            kernel.turn(kernel.ready[0])  # asks the same question again


def _is_spread(frame: Frame) -> bool:
    return frame.station == SPREAD and frame.plan.kind in ("for", "fork")


def _derive_variables(kernel: Kernel, strand: Strand) -> None:
    """Set the variables of each frame from the frames around it. A branch's strand follows its parent's."""
    variables: dict[str, Any] = {}
    if strand.parent >= 0:
        around = kernel.strands[strand.parent].stack[-1]
        variables = around.child_variables
        if around.plan.parallel:
            variables = iteration_variables(around, strand.branch)
    for frame in strand.stack:
        if frame is kernel.entry and kernel.branch is not None:
            variables = kernel.branch.get("variables", NO_VARIABLES)
        frame.variables = frame.child_variables = variables
        if is_iterating(frame) and frame.phase == Phase.BODY:
            frame.child_variables = listen_variables(frame)
        elif (
            frame.plan.kind == "for"
            and not frame.plan.parallel
            and frame.items is not None
            and frame.phase == Phase.BODY
        ):
            frame.child_variables = loop_variables(frame)
        elif frame.plan.catch is not None and frame.problem is not None:
            frame.child_variables = catch_variables(frame)
        variables = frame.child_variables


def _encode_end(end: End) -> list[Any]:
    if isinstance(end, Succeeded):
        return ["succeeded", end.output]
    return ["failed", end.problem.to_json()] if isinstance(end, Failed) else ["cancelled", None]


def _decode_end(fields: list[Any]) -> End:
    kind, content = fields
    if kind == "succeeded":
        return Succeeded(content)
    return Failed(Problem.from_json(content)) if kind == "failed" else Cancelled()
