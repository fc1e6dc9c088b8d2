"""What a simulated run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flint_core.problems import Problem
from flint_core.traces import StepState, StepTrace

__all__ = ["Attempt", "CallMade", "Result"]


@dataclass(frozen=True)
class CallMade:
    """One call of a step: what it was given."""

    step: str
    name: str
    iteration: str
    attempt: int
    function: str
    arguments: Mapping[str, Any]
    idempotency_key: str


@dataclass(frozen=True)
class Attempt:
    """One attempt of one step as it is shown. Times are seconds since the run's start."""

    step: str
    name: str
    iteration: str
    attempt: int
    state: str
    kind: str
    function: str
    started_s: float
    ended_s: float | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True)
class Result:
    """A run that has ended, or waits for what never comes (`state` is "waiting" then).

    `output` when it succeeded, `error` (a problem's members) when it failed. `calls` in order; `attempts_made` as they
    are recorded; `events`: what it emitted; `elapsed_s`: virtual seconds from start to end.
    """

    state: str
    output: Any
    error: Mapping[str, Any] | None
    calls: Sequence[CallMade]
    attempts_made: Sequence[Attempt]
    events: Sequence[Mapping[str, Any]]
    elapsed_s: float
    waits_for: Sequence[str] = field(default_factory=tuple)

    @property
    def path(self) -> list[str]:
        """Names of the steps that ended well, in the order in which they ended. Steps that hold others come last."""
        return [made.name for made in self.attempts_made if made.state == StepState.SUCCEEDED]

    @property
    def leaves(self) -> list[str]:
        """The same without the steps that only hold others (do, for, fork, try)."""
        inner = {"do", "for", "fork", "try"}
        return [
            made.name for made in self.attempts_made if made.state == StepState.SUCCEEDED and made.kind not in inner
        ]

    @property
    def undone(self) -> list[str]:
        """Names of the steps whose compensation ended well, in the order in which they did."""
        suffix = "/metadata/flint/compensate"
        return [
            name_of(made.step.removesuffix(suffix))
            for made in self.attempts_made
            if made.step.endswith(suffix) and made.state == StepState.SUCCEEDED
        ]

    def attempts(self, name: str) -> int:
        """How often the step was tried."""
        numbers = [made for made in self.attempts_made if made.name == name and made.state in _ENDED]
        return len(numbers)

    def state_of(self, name: str) -> str:
        """How the step's last attempt ended: succeeded, failed, skipped, cancelled, waiting. Raises KeyError."""
        for made in reversed(self.attempts_made):
            if made.name == name:
                return made.state
        raise KeyError(f"no step is named {name!r} in this run")

    def calls_of(self, name: str) -> list[CallMade]:
        """The calls that the step made."""
        return [call for call in self.calls if call.name == name]


_ENDED = (StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED)


def attempt_of(trace: StepTrace, start_ms: int) -> Attempt:
    """A trace as it is shown."""
    return Attempt(
        trace.step,
        name_of(trace.step),
        trace.iteration,
        trace.attempt,
        str(trace.state),
        trace.kind,
        trace.function,
        (trace.started_ms - start_ms) / 1000,
        None if trace.ended_ms is None else (trace.ended_ms - start_ms) / 1000,
        problem_of(trace.problem),
    )


def name_of(pointer: str) -> str:
    """The last part of a step's pointer: its name."""
    return pointer.rpartition("/")[2].replace("~1", "/").replace("~0", "~")


def problem_of(problem: Problem | None) -> Mapping[str, Any] | None:
    """A problem's members."""
    return None if problem is None else problem.to_json()
