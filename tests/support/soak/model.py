"""What each run must come to: the core itself, run in this process on the same definition and input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flint_core.problems import ProblemType
from flint_sdk.testing import Event, Failure, simulate
from support.soak.workflows import BY_NAME, Kind
from support.soak.world import FLAKY, answer

__all__ = ["SIGNALS", "Expected", "expect", "go_event"]

SIGNALS = ("one", "two")
"""Ids of the two signals that a run with signals gets; each may be sent any number of times."""

_STEPS = (
    *("first", "flaky", "third", "before", "between", "after", "ray", "joined", "beam", "met", "afterwards", "ready"),
    *("told", "opened", "closed", "booked", "compensate", "big", "weigh", "hold", "held", "paced"),
)


@dataclass(frozen=True)
class Expected:
    """An end, and the idempotency keys (without the run) of everything that a run which nobody steers executes."""

    state: str
    output: Any
    error: str
    calls: frozenset[str]


def go_event(key: str, identity: str) -> dict[str, Any]:
    """The event that a listening run waits for."""
    return {"id": identity, "source": "https://soak.test", "type": "dev.soak.go", "subject": key, "data": {"n": 7}}


def expect(kind: Kind, given: Mapping[str, Any]) -> Expected:
    """What the core makes of it."""

    def stub(step: str) -> Any:
        def reply(arguments: Mapping[str, Any]) -> Any:
            return answer(str(arguments["endpoint"]).rpartition("/")[2], arguments["body"])

        refused = [Failure(503, type=str(ProblemType.COMMUNICATION))] * FLAKY.get(step, 0)
        return [*refused, reply]

    stubs: dict[str, Any] = {step: stub(step) for step in _STEPS}
    if kind.name == "parent":
        stubs["child"] = expect(BY_NAME["chain"], given).output
    events = [Event("dev.soak.go", {"n": 7}, subject=str(given["key"]), after=5.0)] if kind.events else []
    if kind.signals:
        events = [Event("dev.flint.signal.go", signal_payload(name), after=5.0) for name in SIGNALS]
    result = simulate(kind.source, dict(given), stubs=stubs, events=events)
    error = "" if result.error is None else str(result.error["type"])
    calls = frozenset(made.idempotency_key.partition("/")[2] for made in result.calls)
    return Expected(result.state.upper(), result.output, error, calls)


def signal_payload(name: str) -> dict[str, int]:
    """What a signal says; both together give a sum that one taken twice would not."""
    return {"n": 10 ** SIGNALS.index(name)}
