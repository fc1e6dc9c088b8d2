"""What the machine asks of the world: effects.

The machine has no I/O. It emits effects; whoever drives it (a worker, a test kit) carries them out and feeds the
outcome back as an event with the same `effect_id`. Effects are never stored: they are derived again from the state
(`Machine.pending()`) after a restore.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

__all__ = ["Await", "AwaitKind", "Call", "CancelEffect", "Deferred", "Effect", "Evaluate", "Move", "Timer", "TimerKind"]

NO_ARGUMENTS: Final[dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Deferred:
    """An expression inside a call's arguments that names `$secrets`.

    Only the executor's side may evaluate it, with the secrets it needs: the result never enters the machine's state.
    `source` is a jq expression when `template` is false, else a string with `${ … }` parts to interpolate.
    """

    source: str
    template: bool
    input: Any
    variables: dict[str, Any]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a jq expression that is outside the fast path. Answer with `Evaluated` or `EvaluateFailed`.

    Pure: repeated on replay, and a success is not recorded in the journal. Input and variables may hold references to
    large values (`payloads`), which the driver puts in; a result that is too large to be kept is answered with
    references in it (`payloads.spill`). With `schema` there is no expression: the answer is null when the input matches
    this JSON Schema, else what is wrong. With `operation` there is no expression either:

    - `divide`: the input is a reference. Answer `flint_core.branches.divide` of the array that is stored there, with
      the spread in `variables`; `{"count": -1}` when it is no array.
    - `concat`: the input is a list of arrays and references to such. Answer one array of all their members.
    """

    effect_id: int
    source: str
    input: Any
    variables: dict[str, Any]
    now_ms: int
    schema: Any = None
    operation: str = ""


class Call(NamedTuple):
    """Execute a function with a side effect. Answer with `CallSucceeded` or `CallFailed`.

    `idempotency_key` is made of run, reset generation, step pointer and iteration, never of attempt or leg (promise 3),
    unless the definition gives one: that is text of at most 255 printable ASCII characters. `cache_key` is 64
    hexadecimal digits, made of namespace, workflow, function and the definition's own key.
    `arguments` is JSON, except that any value in it may be a `Deferred`. `deadline_ms` is for information: the machine
    has a timer for each of these timeouts and retracts the call when one fires.
    """

    effect_id: int
    step: str  # JSON pointer, such as /do/0/fetchOrder
    name: str  # last segment of the pointer
    iteration: str  # "" or indexes of enclosing iterations and branches, such as "3.0"
    attempt: int
    function: str  # what executes it: "http", "sql", "script", "emit", "function", …
    arguments: dict[str, Any] = NO_ARGUMENTS
    idempotency_key: str = ""
    deadline_ms: int | None = None  # the earliest timeout of the tasks and attempts around it (Unix epoch, ms)
    may_defer: bool = True  # whether a Deferred may be among the arguments
    cache_key: str = ""  # a result kept under this key may be taken instead; empty: never
    cache_ttl_ms: int = 0  # how long this call's result may be kept


class TimerKind(StrEnum):
    """Why a timer was set."""

    WAIT = "wait"
    RETRY = "retry"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Timer:
    """Tell the machine when a moment has come. Answer with `TimerFired` at or after `until_ms` (Unix epoch, ms).

    When only timers are pending the run may leave its worker: the leg blocks until the earliest one.
    """

    effect_id: int
    until_ms: int
    kind: TimerKind


SIGNAL_PREFIX: Final = "signal/"
"""Begins the `Received.key` of a signal: what `Machine.take_signals` tells of."""

REFUSED_PREFIX: Final = "refused/"
"""Begins the `Received.key` of a message that says, for an await of any kind, that nothing will come."""


class AwaitKind(StrEnum):
    """What a run can wait for beside time."""

    EVENTS = "events"
    APPROVAL = "approval"
    RUN = "run"
    BRANCHES = "branches"


class Await(NamedTuple):
    """Wait for what somebody else brings. Each thing that comes is fed as `Received` with this effect's id.

    An await stays open until the machine takes it back (`CancelEffect`), which it always does: also when what was
    waited for has come. While a run has only awaits and timers it leaves its worker. `request` is JSON:

    - EVENTS: `{"filters": [{"with": {attribute: value}, "correlate": {name: {"from": expression, "expect": value}}}]}`:
      CloudEvents that may match one of the filters. `with` holds values or regular expressions for the attributes, as
      far as they are known without the event; `expect` is left out where the first event decides. Delivery may be
      generous: the machine checks every event itself. Each `Received.content` is a CloudEvent in the JSON format.
    - APPROVAL: `{"title", "description", "assignees", "form", "deadline_ms", "escalation": {"at_ms", "assignees"}}`.
      `Received.content`: `{"decision": "approved" | "rejected", "by", "comment", "fields", "at"}`.
    - RUN: `{"namespace", "workflow", "version", "input", "detached", "key"}`: start this run once per `key` (the
      step's idempotency key, and the attempt from the second on); an empty `version` is the latest.
      `Received.content`:
      `{"state": "succeeded", "run", "output"}`,
      `{"state": "failed" | "cancelled" | "refused", "run", "error": problem}`,
      or, when detached, `{"state": "started", "run"}`. Taking the await back before anything came cancels a run that is
      not detached.

    - BRANCHES: `flint_core.branches.BranchesRequest.to_json()`: execute the branches of this fork in runs of their own.
      `Received.content` is what `flint_core.branches.join` gives. Taking the await back cancels those that run.

    Any of them may be answered under a key with `REFUSED_PREFIX`: `{"state": "refused", "error": problem}`; the step
    fails with that problem.
    """

    effect_id: int
    kind: AwaitKind
    step: str
    name: str
    iteration: str
    attempt: int
    request: dict[str, Any]


class Move(NamedTuple):
    """Go to where the next step is to be executed. Answer with `Moved` when the leg is there.

    Members that are empty are the run's own, which steps that name nothing go back to. A driver that has one place only
    answers at once. Several may be open at a time, to different places.
    """

    effect_id: int
    step: str
    pool: str = ""
    region: str = ""
    level: str = ""  # a number, or a name that the namespace gave to a level


@dataclass(frozen=True, slots=True)
class CancelEffect:
    """Stop an effect that is no longer wanted (a sibling failed, a deadline passed, the run was cancelled).

    No answer is needed; one that comes all the same is ignored by the machine. An `Await` is always ended by one.
    """

    effect_id: int


Effect = Call | Evaluate | Timer | Await | CancelEffect | Move
