"""What is shown of a step: traces.

The machine hands out one trace when a task ends (and one when it begins to wait). They describe, they do not decide:
state is rebuilt from events alone. Their order is a function of the state and the events, so a replay yields the same
sequence again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from flint_core.problems import Problem

__all__ = ["StepState", "StepTrace"]


class StepState(StrEnum):
    """Where an attempt of a step is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    WAITING = "waiting"


class StepTrace(NamedTuple):
    """One attempt of one step.

    `step` is the task's JSON pointer; `iteration` the indexes of enclosing `for` iterations and fork branches, outer
    ones first, joined by dots, where a scope that a `then` sent back appends `~` and its round (`3~1`). `attempt` grows
    with every retry of an enclosing `try`. Times are Unix epoch milliseconds; `ended_ms` is None while it waits.
    """

    step: str
    iteration: str
    attempt: int
    state: StepState
    kind: str
    function: str
    started_ms: int
    ended_ms: int | None
    problem: Problem | None
