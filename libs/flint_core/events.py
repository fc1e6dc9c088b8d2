"""What the world tells the machine: events.

Events are the journal's content. Replaying the recorded events on the state before gives the state after, whatever
process does it: so an event carries everything that is not a function of the state (results, errors, the time).
Times are milliseconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flint_core.problems import Problem

__all__ = [
    "CallFailed",
    "CallSucceeded",
    "CancelRequested",
    "EvaluateFailed",
    "Evaluated",
    "Event",
    "TimerFired",
    "decode_events",
    "encode_events",
]


@dataclass(frozen=True, slots=True)
class CallSucceeded:
    """A call ended well with a JSON output."""

    effect_id: int
    output: Any
    started_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call failed. `retry_after_ms` is the other side's own wish (Retry-After), if it had one."""

    effect_id: int
    problem: Problem
    started_ms: int
    at_ms: int
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An expression's single result. Not recorded: it is a function of the state."""

    effect_id: int
    value: Any


@dataclass(frozen=True, slots=True)
class EvaluateFailed:
    """An expression failed, or went beyond its limits. Recorded: a limit on time is not a function of the state."""

    effect_id: int
    problem: Problem
    at_ms: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer's moment has come."""

    effect_id: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked the run to end early."""

    at_ms: int


Event = CallSucceeded | CallFailed | Evaluated | EvaluateFailed | TimerFired | CancelRequested
