"""What stands in for the world: results of steps, decisions of people, events from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flint_core.durations import parse_duration
from flint_core.problems import Problem, ProblemType

__all__ = ["Approval", "Event", "Failure", "Stub", "duration_ms"]

Stub = Any
"""What a step gives: a JSON value; a `Failure`; an `Approval`; a function of the call's arguments that gives one of
these; or a list of these, one per call in order (the last one again for all that follow)."""

_STANDARD: Final = {
    400: ProblemType.VALIDATION,
    401: ProblemType.AUTHENTICATION,
    403: ProblemType.AUTHORIZATION,
    408: ProblemType.TIMEOUT,
}


@dataclass(frozen=True)
class Failure:
    """A step fails with this problem. `retry_after`: the other side's own wish for a pause, as a duration."""

    status: int = 500
    title: str = "Stubbed failure"
    detail: str = ""
    type: str = ""
    retry_after: Any = None

    def problem(self, pointer: str) -> Problem:
        """The problem, at this step."""
        kind = self.type or _STANDARD.get(self.status, ProblemType.COMMUNICATION)
        return Problem(kind, self.status, self.title, self.detail, pointer)


@dataclass(frozen=True)
class Approval:
    """A person's decision, `after` a duration."""

    decision: str = "approved"
    by: str = "tester"
    comment: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    after: Any = 0


@dataclass(frozen=True)
class Event:
    """A CloudEvent that is published `after` a duration from the run's start."""

    type: str
    data: Any = None
    source: str = "https://flint.test/source"
    id: str = ""
    subject: str = ""
    after: Any = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def envelope(self, number: int) -> dict[str, Any]:
        """The event in the JSON format of CloudEvents."""
        content: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id or f"event-{number}",
            "source": self.source,
            "type": self.type,
            **self.attributes,
        }
        if self.subject:
            content["subject"] = self.subject
        if self.data is not None:
            content.setdefault("datacontenttype", "application/json")
            content["data"] = self.data
        return content


class Stubs:
    """The stubs of one run, by step name, and what of their lists is used up."""

    def __init__(self, stubs: Mapping[str, Stub]) -> None:
        self._stubs = stubs
        self._used: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._stubs

    @property
    def unused(self) -> set[str]:
        """Names that no step had."""
        return set(self._stubs) - set(self._used)

    def take(self, name: str, arguments: Any) -> Any:
        """What the step's next call gives."""
        used = self._used.get(name, 0)
        self._used[name] = used + 1
        stub = self._stubs[name]
        if isinstance(stub, Sequence) and not isinstance(stub, str) and _is_script(stub):
            stub = stub[min(used, len(stub) - 1)]
        return stub(arguments) if isinstance(stub, Callable) else stub  # type: ignore[arg-type]


def _is_script(stub: Sequence[Any]) -> bool:
    """A list is a script of answers when one of them is no plain value; else it is the value."""
    return any(isinstance(item, Failure | Approval) or callable(item) for item in stub)


def duration_ms(value: Any) -> int:
    """A duration as definitions write it, or seconds as a number, in ms. Raises DurationError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value * 1000)
    length = parse_duration(value).length_ms(0)
    return int(length)
