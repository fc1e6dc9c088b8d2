"""The state of a watched run as a person sees it: steps in a tree, attempts, durations. Pure: events in, lines and
rows out.

A hint (StepBegan) shows an attempt as running; the record overwrites it. Hints of an older leg that was lost are
dropped when a newer leg begins, since that leg begins the step again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from flint_cli.output import seconds
from flint_sdk import (
    Run,
    RunChanged,
    RunSnapshot,
    RunState,
    Step,
    StepBegan,
    StepState,
    WatchEvent,
    WatchInterrupted,
    WatchResumed,
)

__all__ = ["RunProgress", "StepProgress"]

_MAX_NOTES = 5
_UNFINISHED = (StepState.RUNNING, StepState.WAITING)

_COMPENSATION = "/metadata/flint/compensate"


@dataclass(slots=True)
class StepProgress:
    """One step in one iteration, with all of its attempts, by number."""

    step: str
    iteration: str
    attempts: dict[int, Step] = field(default_factory=dict)
    children: list[StepProgress] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What stands in the tree: the step's name, and its iteration when it has one."""
        undone = self.step.removesuffix(_COMPENSATION)
        name = undone.rpartition("/")[2]
        if undone != self.step:
            name = f"undo {name}"
        return f"{name} [{self.iteration}]" if self.iteration else name

    @property
    def last(self) -> Step:
        """The newest attempt."""
        return self.attempts[max(self.attempts)]

    @property
    def began(self) -> datetime | None:
        """When the first attempt began."""
        return self.attempts[min(self.attempts)].start_time


class RunProgress:
    """Follows one run."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.notes: list[str] = []
        self.interrupted = False
        self._leg_lost = False
        self._steps: dict[tuple[str, str], StepProgress] = {}

    def apply(self, event: WatchEvent) -> list[str]:
        """Takes one event; answers the plain lines that tell what is new in it."""
        match event:
            case RunSnapshot(run, steps, _):
                before = self._said()
                self._steps.clear()
                lines, recorded = self._see_run(run), self._see_steps(steps, before)
                return [*recorded, *lines] if run.state.terminal else [*lines, *recorded]
            case RunChanged(run, steps, _):
                before = self._said()
                # Steps first: the run's end is the last thing that is told.
                lines = self._see_steps(steps, before)
                return [*lines, *self._see_run(run)]
            case StepBegan(step, _):
                return self._see_steps((step,), self._said())
            case WatchInterrupted():
                self.interrupted = True
                return self._note("connection lost; reconnecting")
            case WatchResumed():
                self.interrupted = False
                return self._note("connected again; nothing was missed")

    def roots(self) -> list[StepProgress]:
        """The steps as a tree, in the order of the definition where pointers tell it."""
        for node in self._steps.values():
            node.children = []
        roots: list[StepProgress] = []
        for node in sorted(self._steps.values(), key=lambda node: _order(node.step, node.iteration)):
            parent = self._parent(node)
            (roots if parent is None else parent.children).append(node)
        return roots

    def _parent(self, node: StepProgress) -> StepProgress | None:
        pointer, iterations = node.step, node.iteration.split(".") if node.iteration else []
        while "/" in pointer:
            pointer = pointer.rpartition("/")[0]
            for depth in range(len(iterations), -1, -1):
                found = self._steps.get((pointer, ".".join(iterations[:depth])))
                if found is not None:
                    return found
        return None

    def _said(self) -> dict[tuple[str, str, int], StepState]:
        return {
            (node.step, node.iteration, number): step.state
            for node in self._steps.values()
            for number, step in node.attempts.items()
        }

    def _see_run(self, run: Run) -> list[str]:
        before, self.run = self.run, run
        lines: list[str] = []
        if before is not None and run.leg >= before.leg > 0:
            if before.state is RunState.RUNNING and run.state is RunState.QUEUED:
                self._leg_lost = True  # lost with its worker, or given back by it: the next leg goes on from the record
                self._drop_provisional()
            if run.leg > before.leg:
                self._drop_provisional()
                if self._leg_lost or before.state is RunState.RUNNING:
                    where = f" on {run.worker}" if run.worker else ""
                    lines += self._note(f"continues as leg {run.leg}{where}")
                self._leg_lost = False
        if before is None or before.state is not run.state:
            lines.append(self._run_line(run))
        if run.cancel_requested and (before is None or not before.cancel_requested) and not run.state.terminal:
            lines.append("run cancel requested")
        return lines

    @staticmethod
    def _run_line(run: Run) -> str:
        text = f"run {run.state.value.lower()}"
        if run.state is RunState.WAITING and run.wake_time is not None:
            return f"{text} until {run.wake_time.astimezone():%H:%M:%S}"
        if run.state.terminal and run.create_time is not None and run.end_time is not None:
            return f"{text} after {seconds((run.end_time - run.create_time).total_seconds())}"
        return text

    def _see_steps(self, steps: tuple[Step, ...], said: dict[tuple[str, str, int], StepState]) -> list[str]:
        lines: list[str] = []
        for step in steps:
            node = self._steps.setdefault((step.step, step.iteration), StepProgress(step.step, step.iteration))
            known = node.attempts.get(step.attempt)
            if step.provisional and known is not None and not known.provisional:
                continue  # the record came first
            node.attempts[step.attempt] = step
            if said.get((step.step, step.iteration, step.attempt)) is not step.state:
                lines.append(self._step_line(node, step))
            elif known is not None and _progress(known) != _progress(step) and _progress(step):
                lines.append(f"{node.name} {_progress(step)}")
        return lines

    @staticmethod
    def _step_line(node: StepProgress, step: Step) -> str:
        parts = [node.name, step.state.value.lower()]
        if step.attempt > 1 or (step.state is StepState.FAILED and step.kind == "call"):
            parts.append(f"(attempt {step.attempt})")
        if step.duration_s is not None and step.state not in _UNFINISHED:
            parts.append(seconds(step.duration_s))
        text = " ".join(parts)
        return f"{text}: {brief(step)}" if step.error is not None else text

    def _drop_provisional(self) -> None:
        for key, node in list(self._steps.items()):
            node.attempts = {number: step for number, step in node.attempts.items() if not step.provisional}
            if not node.attempts:
                del self._steps[key]

    def _note(self, text: str) -> list[str]:
        self.notes = [*self.notes[-(_MAX_NOTES - 1) :], text]
        return [text]


def _progress(step: Step) -> str:
    """What a running function last said of itself, in steps of 10 %: a line for each is enough."""
    if step.state is not StepState.RUNNING:
        return ""
    percent = "" if step.progress_percent is None else f"{step.progress_percent // 10 * 10:.0f} %"
    return " ".join(part for part in (percent, step.progress_message) if part)


def brief(step: Step) -> str:
    """Why an attempt failed, on one line."""
    if step.error is None:
        return ""
    problem = step.error
    text = ": ".join(part for part in (problem.title or problem.type, problem.detail) if part)
    first = text.splitlines()[0] if text else ""
    return first if len(first) <= 120 else f"{first[:119]}…"


def _order(step: str, iteration: str) -> tuple[list[tuple[int, int | str]], list[int]]:
    """Definition order: numbers in a pointer compare as numbers; outer iterations before inner ones."""
    parts: list[tuple[int, int | str]] = [(0, int(p)) if p.isdigit() else (1, p) for p in step.split("/")]
    return parts, [int(index) if index.isdigit() else 0 for index in iteration.split(".") if index]
