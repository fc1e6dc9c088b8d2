"""The kernel: strands, frames, effects, and how a result or a fault moves through them.

It knows what all tasks have in common (data flow, timeouts, faults, the end of a run); what each kind does is in
`bodies` and `catching`. A single-threaded object without I/O and without a clock: `now` is the last event's time.

Determinism. Ready strands run in the order in which they became ready, each until it waits. A guarded expression
(`Evaluate`) stops everything until it is answered, so that nothing else can move the state meanwhile: the state is a
function of the recorded events alone, however the driver slices the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flint_core.effects import (
    REFUSED_PREFIX,
    SIGNAL_PREFIX,
    Await,
    AwaitKind,
    Call,
    CancelEffect,
    Move,
    Timer,
    TimerKind,
)
from flint_core.engine.branching import JOINED, ended_by_branch
from flint_core.engine.compensating import COMPENSATING, note_of, with_failure
from flint_core.engine.dataflow import Fault, MachineLimits, RunFacts, Suspended
from flint_core.engine.frames import Frame, Phase, Strand
from flint_core.engine.room import Room
from flint_core.engine.stations import STATIONS
from flint_core.engine.weights import mail_weight
from flint_core.problems import Problem, ProblemType
from flint_core.program import Flow, FlowKind
from flint_core.sizes import weigh
from flint_core.traces import StepState, StepTrace

if TYPE_CHECKING:
    from flint_core.plan import Plan, TaskPlan

__all__ = ["CAUGHT", "RUN_TIMER", "TRYING", "Cancelled", "End", "Failed", "Kernel", "Succeeded"]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The run ended well."""

    output: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended with an error that nothing caught."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run was asked to end."""


End = Succeeded | Failed | Cancelled


CONTINUE: Final = Flow()

# Asked for with every task: looked up once.
_CONTINUE: Final = FlowKind.CONTINUE
_EXIT: Final = FlowKind.EXIT
_END: Final = FlowKind.END
_SUCCEEDED: Final = StepState.SUCCEEDED


class Kernel(Room):
    """State of one run and the moves on it."""

    __slots__ = (
        "branch",
        "end",
        "ending",
        "entry",
        "place",
        "reset",
        "taken",
        "watched",
    )

    def __init__(self, plan: Plan, facts: RunFacts, limits: MachineLimits) -> None:
        super().__init__(plan, facts, limits)
        self.end: End | None = None
        self.ending: End | None = None  # how the run is going to end, once its compensations have run
        self.watched = False  # whether the timer of the whole run is set
        self.reset = facts.reset  # the reset generation
        self.place: tuple[str, ...] | None = None  # pool, region and level of the steps now; None: the run's own
        self.taken: list[str] = []  # keys of signals that a `listen` took, for the driver
        self.branch: dict[str, Any] | None = None  # of a branch run: what it was begun with
        self.entry: Frame | None = None  # of a branch run: the fork whose branches it executes

    # --- strands and frames

    def open_strand(self, parent: int, branch: int) -> Strand:
        """A new line of execution, not yet ready."""
        strand = Strand(self.next_strand, parent, branch)
        self.next_strand += 1
        self.strands[strand.id] = strand
        return strand

    def wake(self, strand: Strand) -> None:
        """Put the strand at the end of the ready queue, unless it is there."""
        if not strand.queued:
            strand.queued = True
            self.ready.append(strand)

    def sleep(self, strand: Strand) -> None:
        """Take the strand, which is the one being run, from the ready queue: it waits now."""
        strand.queued = False
        self.ready.popleft()

    def push(
        self,
        strand: Strand,
        plan: TaskPlan,
        raw: Any,
        size: int,
        attempt: int,
        iteration: str,
        variables: dict[str, Any],
    ) -> None:
        """Begin a task on top of the strand. `size` is what is known of its input's (room.py)."""
        self.steps_begun += 1
        if self.steps_begun > self.limits.steps_per_run:
            self.finish(
                Failed(
                    Problem(
                        ProblemType.LIMIT_EXCEEDED,
                        429,
                        "Too many steps",
                        f"The run began more than {self.limits.steps_per_run} steps.",
                        plan.pointer,
                    )
                )
            )
            return
        frame = Frame(plan, raw, self.now, attempt, iteration, variables)
        frame.raw_size = frame.input_size = frame.size = size
        strand.stack.append(frame)

    def turn(self, strand: Strand) -> None:
        """One move of the strand's top frame."""
        frame = strand.stack[-1]
        try:
            STATIONS[frame.phase](self, strand, frame)
        except Suspended:
            return
        except Fault as fault:
            self.fault(strand, fault.problem)

    # --- effects

    def effect_id(self) -> int:
        """The next effect's id."""
        effect_id = self.next_effect
        self.next_effect += 1
        return effect_id

    def emit_timer(self, strand: Strand, frame: Frame, until_ms: int, kind: TimerKind) -> int:
        """Set a timer that belongs to the frame. Its id."""
        effect_id = self.effect_id()
        self.owners[effect_id] = (strand, frame)
        self.outbox[effect_id] = Timer(effect_id, until_ms, kind)
        return effect_id

    def emit_call(self, strand: Strand, frame: Frame) -> None:
        """Ask for the call that the frame describes."""
        effect_id = frame.effect = self.next_effect
        self.next_effect = effect_id + 1
        self.owners[effect_id] = (strand, frame)
        place = frame.plan.place
        if place is not self.place and place != self.place:
            frame.moving = True
            self.outbox[effect_id] = self.move_of(frame)
        else:
            self.outbox[effect_id] = self.call_of(strand, frame)

    def move_of(self, frame: Frame) -> Move:
        """Where the frame's call is to be executed; the same after a restore."""
        return Move(frame.effect, frame.plan.pointer, *(frame.plan.place or ()))

    def arrive(self, strand: Strand, frame: Frame) -> None:
        """The leg is where the frame's call is to be executed: ask for the call."""
        frame.moving = False
        self.place = frame.plan.place
        self.emit_call(strand, frame)

    def call_of(self, strand: Strand, frame: Frame) -> Call:
        """The call that the frame waits for; the same after a restore."""
        plan, keys = frame.plan, frame.keys
        call = (
            frame.effect,
            plan.pointer,
            plan.name,
            frame.iteration,
            frame.attempt,
            plan.function,
            frame.args,
            self.step_key(frame),
            self.deadline_of(strand),
            plan.arguments is None or plan.arguments.deferred,
            keys[1] if keys else "",
            keys[2] if keys else 0,
        )
        return tuple.__new__(Call, call)

    def step_key(self, frame: Frame) -> str:
        """The step's idempotency key: of run, reset generation, step and iteration, never of the attempt.

        Or the definition's own (`metadata.flint.idempotencyKey`).
        """
        if frame.keys and frame.keys[0]:
            key: str = frame.keys[0]
            return key
        # `key_prefix`, written out: this is asked for with every call.
        return f"{self.facts.run_id}/{self.reset}{frame.plan.pointer}/{frame.iteration}"

    def key_prefix(self) -> str:
        """What the idempotency keys of all steps begin with."""
        return f"{self.facts.run_id}/{self.reset}"

    def take_signal(self, key: str) -> None:
        """A `listen` took what came under this key: if it is a signal, nobody else gets it."""
        if key.startswith(SIGNAL_PREFIX):
            self.taken.append(key)

    def emit_await(self, strand: Strand, frame: Frame, request: dict[str, Any]) -> None:
        """Wait for what the frame's task waits for; what comes is put into `frame.mail` and wakes the strand."""
        frame.args, frame.args_size = request, -1
        frame.effect = self.effect_id()
        self.owners[frame.effect] = (strand, frame)
        self.outbox[frame.effect] = self.await_of(frame)
        self.note_waiting(frame)

    def await_of(self, frame: Frame) -> Await:
        """The await that the frame has open; the same after a restore."""
        plan = frame.plan
        kind = AwaitKind(plan.awaits or AwaitKind.BRANCHES)
        return Await(frame.effect, kind, plan.pointer, plan.name, frame.iteration, frame.attempt, frame.args)

    def end_await(self, frame: Frame) -> None:
        """What the frame waited for has come, or is not wanted any more."""
        self.retract(frame.effect)
        frame.effect = 0
        if frame.timer:
            self.retract(frame.timer)
            frame.timer = 0
        frame.args = None
        frame.mail = None

    def receive(self, strand: Strand, frame: Frame, key: str, content: Any) -> None:
        """Something came for the frame's await: the strand looks at it when it is not inside a task of its own."""
        listen = frame.plan.listen
        if listen is not None and not key.startswith(REFUSED_PREFIX) and not listen.may_fit(content):
            return
        if frame.mail is None:
            frame.mail = []
        frame.mail.append([key, content])
        if strand.stack[-1] is frame:
            self.wake(strand)
        if frame.plan.listen is not None and len(frame.mail) > 1:
            self.hold(frame, frame.held + mail_weight(key, content))
            problem = self.overflow(frame, "events that wait to be looked at")
            if problem is not None:
                while strand.stack[-1] is not frame:
                    self.close(strand, StepState.CANCELLED, None)
                self.fault(strand, problem)

    def deadline_of(self, strand: Strand) -> int | None:
        """When the first timeout around the strand's top task passes: its own, or one of a task or attempt around it.

        A branch is enclosed by the tasks around its fork. All of these are fixed before the task begins.
        """
        earliest: int | None = None if self.branch is None else self.branch["deadline"]
        while True:
            for frame in strand.stack:
                if frame.deadline and (earliest is None or frame.deadline_until < earliest):
                    earliest = frame.deadline_until
                if frame.effect and frame.station == TRYING and frame.plan.catch is not None:
                    earliest = frame.effect_until if earliest is None else min(earliest, frame.effect_until)
            if strand.parent < 0:
                return earliest
            strand = self.strands[strand.parent]

    def retract(self, effect_id: int) -> None:
        """An effect is no longer wanted: forget it, and tell the driver if it was taken."""
        self.owners.pop(effect_id, None)
        if self.outbox.pop(effect_id, None) is None:
            self.cancelled.append(CancelEffect(effect_id))

    def settle(self, effect_id: int) -> None:
        """An effect was answered."""
        del self.owners[effect_id]
        self.outbox.pop(effect_id, None)

    # --- leaving tasks

    def leave(self, strand: Strand, frame: Frame) -> None:
        """The top task ended well with `frame.value`; hand it to the scope around it."""
        plan = frame.plan
        flow = frame.flow or plan.flow
        if plan.compensation is not None:
            self._note(frame)
        self.close(strand, _SUCCEEDED, None)
        if self.end is None:
            self._hand_over(strand, frame, flow)

    def skip(self, strand: Strand, frame: Frame) -> None:
        """The top task's condition is false: its input passes on."""
        self.close(strand, StepState.SKIPPED, None)
        self._hand_over(strand, frame, CONTINUE)

    def _note(self, frame: Frame) -> None:
        """The task is done, and is to be undone if the run fails."""
        note = note_of(frame.plan.index, frame.iteration, frame.input, frame.value)
        key = (frame.plan.index, frame.iteration)
        former = self.notes.pop(key, None)
        self.kept += note[4] - (former[4] if former else 0)
        self.notes[key] = note

    def _hand_over(self, strand: Strand, frame: Frame, flow: Flow) -> None:
        parent = strand.stack[-1] if strand.stack else None
        if parent is not None and parent.cursor == parent.plan.core:
            parent.flow, flow = flow, CONTINUE  # what comes after an extended task waits for its extension
        kind = flow.kind
        if parent is not None and kind == _CONTINUE:
            parent.value, parent.size = frame.value, frame.size
            parent.cursor += 1
        elif kind == _END:
            self.end_run(strand, frame.value)
        elif parent is not None:
            parent.value, parent.size = frame.value, frame.size
            if kind == _EXIT:
                parent.cursor = SCOPE_LEFT
            else:
                if flow.position <= parent.cursor:
                    parent.round += 1
                parent.cursor = flow.position
        elif strand.parent >= 0:
            self._branch_done(strand, frame)
        else:
            self.finish(Succeeded(frame.value))

    def close(self, strand: Strand, state: StepState, problem: Problem | None) -> None:
        """Take the top frame off the strand, with its timers and branches, and record how it ended."""
        stack = strand.stack
        frame = stack.pop()
        if frame.deadline:
            self.retract(frame.deadline)
            frame.deadline = 0
        if frame.effect:
            self.retract(frame.effect)
            frame.effect = 0
        if frame.timer:
            self.retract(frame.timer)
            frame.timer = 0
        if frame.branches:
            self.kill(frame.branches)
            frame.branches = None
        if frame.held:
            self.hold(frame, 0)
        if stack and stack[-1].used < frame.used:
            stack[-1].used = frame.used
        plan = frame.plan
        kind = plan.kind
        if plan.index == 0 or kind == "iteration" or frame is self.entry:
            return
        if state is _SUCCEEDED and plan.keep:
            self.keep_output(strand, plan.index, frame.value, frame.size)
        if plan.core >= 0 and frame.station:
            return  # the extended task has told of itself
        # What a NamedTuple's own constructor does, without the layer of Python around it: this and the next one are
        # made for every step.
        trace = (
            plan.pointer,
            frame.iteration,
            frame.attempt,
            state,
            kind,
            plan.function,
            frame.started,
            self.now,
            problem,
        )
        self.records.append(tuple.__new__(StepTrace, trace))

    def note_waiting(self, frame: Frame) -> None:
        """Record that the step waits for a timer."""
        plan = frame.plan
        self.records.append(
            StepTrace(
                plan.pointer,
                frame.iteration,
                frame.attempt,
                StepState.WAITING,
                plan.kind,
                plan.function,
                frame.started,
                None,
                None,
            )
        )

    def kill(self, strands: list[int]) -> None:
        """End strands, and those below them, that are no longer wanted."""
        doomed = list(strands)
        while doomed:
            strand = self.strands.pop(doomed.pop())
            strand.dead = True
            while strand.stack:
                top = strand.stack[-1]
                if top.branches:
                    doomed.extend(top.branches)
                    top.branches = None
                self.close(strand, StepState.CANCELLED, None)
            self.drop_outputs(strand)

    def _branch_done(self, strand: Strand, frame: Frame) -> None:
        parent = self.strands[strand.parent]
        fork = parent.stack[-1]
        del self.strands[strand.id]
        strand.dead = True
        self.drop_outputs(strand)
        fork.used = max(fork.used, frame.used)
        if fork.plan.compete:
            branches = [branch for branch in fork.branches or () if branch != strand.id]
            fork.branches = None
            self.kill(branches)
            fork.value, fork.size = frame.value, frame.size
        elif fork.gathered is not None:  # an iteration of a loop
            fork.gathered[strand.branch] = frame.value
            self.hold(fork, fork.held + (frame.size if frame.size >= 0 else weigh(frame.value)))
            if fork.branches is not None:
                fork.branches.remove(strand.id)
            self.wake(parent)
            return
        else:
            branches = [branch for branch in fork.branches or () if branch != strand.id]
            results = list(fork.items)
            results[strand.branch] = frame.value
            fork.items = results
            self.hold(fork, fork.held + (frame.size if frame.size >= 0 else weigh(frame.value)))
            fork.branches = branches
            if branches:
                return
            fork.branches = None
            fork.value, fork.size = results, -1
        fork.items = None
        self.hold(fork, 0)
        if fork is self.entry:
            fork.station = JOINED
        else:
            fork.phase = fork.plan.after_body
        self.wake(parent)

    # --- faults

    def fault(self, strand: Strand, problem: Problem, retry_after_ms: int | None = None) -> None:
        """The top task of the strand failed: unwind to the next `try` that may catch it, else fail the run."""
        while True:
            frame = strand.stack[-1]
            if frame.plan.index == 0:
                self.finish(Failed(problem))
                return
            self.close(strand, StepState.FAILED, problem)
            if not strand.stack:
                parent = self.strands[strand.parent]
                fork = parent.stack[-1]
                fork.used = max(fork.used, frame.used)
                del self.strands[strand.id]
                strand.dead = True
                self.drop_outputs(strand)
                branches = [branch for branch in fork.branches or () if branch != strand.id]
                fork.branches = branches or None
                if fork.plan.compete and branches:
                    return
                strand = parent
                continue
            above = strand.stack[-1]
            if above.plan.index == 0 and above.station == COMPENSATING:
                if isinstance(self.ending, Failed):
                    self.ending = Failed(with_failure(self.ending.problem, problem))
                self.wake(strand)
                return
            if above.plan.catch is not None and above.station == TRYING:
                if above.effect:
                    self.retract(above.effect)
                    above.effect = 0
                above.problem = problem
                above.retry_after = retry_after_ms
                above.station = CAUGHT
                self.wake(strand)
                return

    def expire(self, strand: Strand, frame: Frame) -> None:
        """The task's timeout has passed: everything above it ends, and it fails."""
        frame.deadline = 0
        while strand.stack[-1] is not frame:
            self.close(strand, StepState.CANCELLED, None)
        what = "The workflow" if frame.plan.index == 0 else f"'{frame.plan.name}'"
        detail = f"{what} did not end within its timeout."
        self.fault(strand, Problem(ProblemType.TIMEOUT, 408, "Timed out", detail, frame.plan.pointer))

    # --- the end

    def watch(self) -> None:
        """Set the timer of the whole run, if the operator limits its time.

        It has an id of its own and is no part of the state: a run that began under another limit goes on all the same.
        """
        if self.limits.run_ms and self.end is None and self.ending is None and self.branch is None:
            self.watched = True
            self.outbox[RUN_TIMER] = self.run_timer()

    def run_timer(self) -> Timer:
        """The timer of the whole run."""
        return Timer(RUN_TIMER, self.started + self.limits.run_ms, TimerKind.DEADLINE)

    def overdue(self) -> None:
        """The run has had its time: it fails, and nothing in it can catch that."""
        self.watched = False
        self.outbox.pop(RUN_TIMER, None)
        if self.ending is None:
            detail = "The run did not end within the time that the operator allows a run (limits.run_s)."
            self.finish(Failed(Problem(ProblemType.TIMEOUT, 408, "Timed out", detail, "/")))

    def end_run(self, strand: Strand, value: Any) -> None:
        """`then: end`: everything else stops; the value becomes the workflow's output."""
        root = self.strands[0]
        if self.ending is not None:  # in a compensation it ends that alone
            while len(root.stack) > 1:
                self.close(root, StepState.SUCCEEDED, None)
            self.wake(root)
            return
        while len(strand.stack) > (1 if strand is root else 0):
            self.close(strand, StepState.SUCCEEDED, None)
        if self.branch is not None:
            self.finish(Succeeded(ended_by_branch(value)))
            return
        while len(root.stack) > 1:
            root.stack[-1].value, root.stack[-1].size = value, -1
            state = StepState.SUCCEEDED
            self.close(root, state, None)
        frame = root.stack[0]
        frame.value, frame.size = value, -1
        frame.phase = frame.plan.after_body
        self.wake(root)

    def finish(self, end: End, at_once: bool = False) -> None:
        """The run is over: nothing waits any more. What is to be undone is undone first, unless `at_once`.

        While it is being undone, the run's end is fixed: only `at_once` hastens it.
        """
        if self.watched:
            self.watched = False
            self.retract(RUN_TIMER)
        compensates = bool(self.notes) and not at_once and self.ending is None and not isinstance(end, Succeeded)
        state = StepState.FAILED if isinstance(end, Failed) else StepState.CANCELLED
        problem = end.problem if isinstance(end, Failed) else None
        root = self.strands.get(0)
        if root is not None:
            while len(root.stack) > compensates:
                self.close(root, state, problem)
        self.ready.clear()
        if root is not None and compensates:
            self._begin_compensation(root, end)
        else:
            if isinstance(self.ending, Failed) and isinstance(end, Failed) and end is not self.ending:
                self.ending = Failed(with_failure(self.ending.problem, end.problem))
            self.end = end if self.ending is None else self.ending
            self.strands = {}
            self.notes = {}
        self.answers = {}
        if self.evaluating:
            self.retract(self.evaluating)
            self.evaluating = 0
            self.question = None

    def _begin_compensation(self, root: Strand, end: End) -> None:
        frame = root.stack[0]
        if frame.deadline:
            self.retract(frame.deadline)
            frame.deadline = 0
        self.ending = end
        self.steps_begun = 0  # undoing has a limit of its own
        self.strands = {0: root}
        frame.results = None
        frame.phase, frame.station = Phase.BODY, COMPENSATING
        root.queued = False
        self.wake(root)


RUN_TIMER: Final = 0
"""The effect that no task asks for."""
TRYING: Final = 1
CAUGHT: Final = 10
SCOPE_LEFT: Final = 1 << 30
