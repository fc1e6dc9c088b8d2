"""What the world tells the machine: events.

Events are the journal's content. Replaying the recorded events on the state before gives the state after, whatever
process does it: so an event carries everything that is not a function of the state (results, errors, the time).
Times are milliseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import orjson

from flint_core.problems import Problem

__all__ = [
    "CallFailed",
    "CallSucceeded",
    "CancelRequested",
    "EvaluateFailed",
    "Evaluated",
    "Event",
    "Moved",
    "Received",
    "ResetBegun",
    "TimerFired",
    "decode_event",
    "decode_events",
    "encode_event",
    "encode_events",
]


class CallSucceeded(NamedTuple):
    """A call ended well with a JSON output. `size`: bytes of that, or -1 for not known; it is not recorded."""

    effect_id: int
    output: Any
    started_ms: int
    at_ms: int
    size: int = -1


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
class Received:
    """Something came for an `Await`. `key` names it within the run: the same key again is the same thing."""

    effect_id: int
    key: str
    content: Any
    at_ms: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The leg is where a `Move` asked for."""

    effect_id: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked the run to end early. `at_once`: without undoing anything, also when it is about that already."""

    at_ms: int
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class ResetBegun:
    """The run was taken back to where it stands now, and goes on as reset generation `generation` (from 1)."""

    generation: int
    at_ms: int


Event = (
    CallSucceeded
    | CallFailed
    | Evaluated
    | EvaluateFailed
    | TimerFired
    | Received
    | Moved
    | CancelRequested
    | ResetBegun
)


def encode_event(event: Event) -> list[Any]:
    """One event as a JSON array; the first member names its kind."""
    match event:
        case CallSucceeded():
            return ["s", event.effect_id, event.started_ms, event.at_ms, event.output]
        case CallFailed():
            wish = event.retry_after_ms
            return ["f", event.effect_id, event.started_ms, event.at_ms, event.problem.to_json(), wish]
        case TimerFired():
            return ["t", event.effect_id, event.at_ms]
        case Received():
            return ["r", event.effect_id, event.at_ms, event.key, event.content]
        case Moved():
            return ["m", event.effect_id, event.at_ms]
        case EvaluateFailed():
            return ["x", event.effect_id, event.at_ms, event.problem.to_json()]
        case CancelRequested():
            return ["c", event.at_ms, 1] if event.at_once else ["c", event.at_ms]
        case ResetBegun():
            return ["z", event.generation, event.at_ms]
        case Evaluated():
            return ["e", event.effect_id, event.value]


def decode_event(fields: list[Any]) -> Event:
    """The reverse of `encode_event`. Raises ValueError for a kind it does not know."""
    match fields:
        case ["s", int(effect_id), int(started_ms), int(at_ms), output]:
            return CallSucceeded(effect_id, output, started_ms, at_ms)
        case ["f", int(effect_id), int(started_ms), int(at_ms), dict(problem), wish]:
            return CallFailed(effect_id, Problem.from_json(cast("dict[str, Any]", problem)), started_ms, at_ms, wish)
        case ["t", int(effect_id), int(at_ms)]:
            return TimerFired(effect_id, at_ms)
        case ["r", int(effect_id), int(at_ms), str(key), content]:
            return Received(effect_id, key, content, at_ms)
        case ["m", int(effect_id), int(at_ms)]:
            return Moved(effect_id, at_ms)
        case ["x", int(effect_id), int(at_ms), dict(problem)]:
            return EvaluateFailed(effect_id, Problem.from_json(cast("dict[str, Any]", problem)), at_ms)
        case ["c", int(at_ms), *at_once]:
            return CancelRequested(at_ms, bool(at_once))
        case ["z", int(generation), int(at_ms)]:
            return ResetBegun(generation, at_ms)
        case ["e", int(effect_id), value]:
            return Evaluated(effect_id, value)
    raise ValueError(f"not an event: {str(fields)[:80]}")


def encode_events(events: Iterable[Event]) -> bytes:
    """The journal's encoding of what was fed to a machine, in order. `Evaluated` is left out: it is evaluated again."""
    encoded = []
    for event in events:
        if type(event) is CallSucceeded:  # nearly all are
            effect_id, output, started_ms, at_ms, _ = event
            encoded.append(["s", effect_id, started_ms, at_ms, output])
        elif type(event) is not Evaluated:
            encoded.append(encode_event(event))
    return orjson.dumps(encoded)


def decode_events(data: bytes) -> list[Event]:
    """The reverse of `encode_events`. Raises ValueError when the bytes are not such a list."""
    if not data:
        return []
    entries = orjson.loads(data)
    if not isinstance(entries, list):
        raise ValueError("not a list of events")
    return [decode_event(entry) for entry in entries]
