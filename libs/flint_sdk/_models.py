"""What the client hands out: frozen values, made from the contracts' messages in one place.

Moments are timezone-aware `datetime` in UTC; payloads are plain JSON values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2


class RunState(StrEnum):
    """Where a run is in its life."""

    UNSPECIFIED = "UNSPECIFIED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether the run has ended."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


class StepState(StrEnum):
    """Where one attempt of a step is."""

    UNSPECIFIED = "UNSPECIFIED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"
    WAITING = "WAITING"


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    UNSPECIFIED = "UNSPECIFIED"
    READY = "READY"
    DRAINING = "DRAINING"
    ENDED = "ENDED"
    LOST = "LOST"


class Role(StrEnum):
    """What a key may do; each role includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    EDITOR = "editor"
    ADMIN = "admin"


class Severity(StrEnum):
    """How serious a finding is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a run or a step failed, after RFC 7807. `instance` is the JSON pointer of the step that raised it."""

    type: str
    status: int
    title: str
    detail: str
    instance: str


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a workflow's version. `input` and `output` are None where a list or a change leaves them out."""

    name: str
    workflow: str
    state: RunState
    level: int
    input: Any
    output: Any
    error: Problem | None
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    wake_time: datetime | None
    leg: int
    position: int
    change: int
    request_id: str
    trace_id: str
    worker: str
    cancel_requested: bool

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        parts = self.workflow.split("/")
        return parts[3] if len(parts) > 3 else self.workflow

    @property
    def version(self) -> str:
        """The workflow's version."""
        return self.workflow.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt of one step."""

    step: str
    iteration: str
    attempt: int
    state: StepState
    kind: str
    function: str
    start_time: datetime | None
    end_time: datetime | None
    error: Problem | None
    result: Any
    provisional: bool

    @property
    def duration_s(self) -> float | None:
        """Seconds from begin to end; None while it has not ended."""
        if self.start_time is None or self.end_time is None:
            return None
        return max(0.0, (self.end_time - self.start_time).total_seconds())


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One recorded entry of a run's journal. `leg_end` is empty when the leg went on."""

    index: int
    leg: int
    worker: str
    record_time: datetime | None
    steps: tuple[Step, ...]
    leg_end: str


@dataclass(frozen=True, slots=True)
class Workflow:
    """One immutable version of a workflow. `source` is empty in lists."""

    name: str
    workflow_id: str
    version: str
    title: str
    summary: str
    source: str
    definition_hash: str
    create_time: datetime | None
    latest: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in a definition; line and column from 1, 0 when unknown."""

    severity: Severity
    rule: str
    message: str
    pointer: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did. `created` is false when the same content was there before."""

    workflow: Workflow
    created: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker incarnation."""

    name: str
    worker_id: str
    pool: str
    region: str
    state: WorkerState
    slots: int
    legs: int
    register_time: datetime | None
    heartbeat_time: datetime | None
    end_time: datetime | None
    build_id: str
    host: str
    pid: int
    labels: dict[str, str]
    cpu_cores: float
    memory_bytes: int

    @property
    def incarnation(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of like workers in a region."""

    pool: str
    region: str
    workers: int
    slots: int
    legs: int


@dataclass(frozen=True, slots=True)
class Key:
    """One API key, without its secret."""

    name: str
    display_name: str
    role: Role
    create_time: datetime | None
    expire_time: datetime | None
    revoke_time: datetime | None

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key and its secret, which nobody can read again later."""

    key: Key
    secret: str


@dataclass(frozen=True, slots=True)
class StartRequest:
    """One start of a batch. `input` is any JSON value; None means an empty object."""

    workflow: str
    input: Any = None
    request_id: str | None = None
    version: str | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Watch event: the run and its recorded steps; replaces all that came before."""

    run: Run
    steps: tuple[Step, ...]
    cursor: int


@dataclass(frozen=True, slots=True)
class RunChanged:
    """Watch event: what one commit changed."""

    run: Run
    steps: tuple[Step, ...]
    cursor: int


@dataclass(frozen=True, slots=True)
class StepBegan:
    """Watch event: a step began; provisional until a change records it."""

    step: Step
    cursor: int


@dataclass(frozen=True, slots=True)
class WatchInterrupted:
    """Watch event: the connection broke; the watch goes on by itself from the cursor."""

    why: str
    cursor: int | None


@dataclass(frozen=True, slots=True)
class WatchResumed:
    """Watch event: the connection is back; nothing was missed."""

    cursor: int | None


WatchEvent = RunSnapshot | RunChanged | StepBegan | WatchInterrupted | WatchResumed


def encode_json(value: Any) -> bytes:
    """JSON bytes of a payload. Raises TypeError for what JSON cannot hold."""
    return orjson.dumps(value)


def decode_json(data: bytes) -> Any:
    """The value of a payload; None when there is none."""
    return orjson.loads(data) if data else None


def moment(message: Any, name: str) -> datetime | None:
    """The UTC moment in a message's Timestamp field, or None when it is not set."""
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    return datetime.fromtimestamp(stamp.seconds, UTC).replace(microsecond=stamp.nanos // 1000)


def timestamp(value: datetime | None) -> Timestamp | None:
    """The message of a moment. Raises ValueError for a moment without time zone."""
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError("a moment needs a time zone: use datetime.now(UTC) or .astimezone()")
    stamp = Timestamp()
    stamp.FromDatetime(value.astimezone(UTC))
    return stamp


def problem_from(message: runs_pb2.Problem) -> Problem:
    """From the contract's message."""
    return Problem(message.type, message.status, message.title, message.detail, message.instance)


def run_from(message: runs_pb2.Run) -> Run:
    """From the contract's message."""
    return Run(
        name=message.name,
        workflow=message.workflow,
        state=RunState(runs_pb2.Run.State.Name(message.state).removeprefix("STATE_")),
        level=message.level,
        input=decode_json(message.input),
        output=decode_json(message.output),
        error=problem_from(message.error) if message.HasField("error") else None,
        create_time=moment(message, "create_time"),
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
        wake_time=moment(message, "wake_time"),
        leg=message.leg,
        position=message.position,
        change=message.change,
        request_id=message.request_id,
        trace_id=message.trace_id,
        worker=message.worker,
        cancel_requested=message.cancel_requested,
    )


def step_from(message: runs_pb2.StepRecord) -> Step:
    """From the contract's message."""
    return Step(
        step=message.step,
        iteration=message.iteration,
        attempt=message.attempt,
        state=StepState(runs_pb2.StepRecord.State.Name(message.state).removeprefix("STATE_")),
        kind=message.kind,
        function=message.function,
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
        error=problem_from(message.error) if message.HasField("error") else None,
        result=decode_json(message.result),
        provisional=message.provisional,
    )


def entry_from(message: runs_pb2.HistoryEntry) -> HistoryEntry:
    """From the contract's message."""
    return HistoryEntry(
        index=message.index,
        leg=message.leg,
        worker=message.worker,
        record_time=moment(message, "record_time"),
        steps=tuple(step_from(step) for step in message.steps),
        leg_end=message.leg_end,
    )


def workflow_from(message: workflows_pb2.Workflow) -> Workflow:
    """From the contract's message."""
    return Workflow(
        name=message.name,
        workflow_id=message.workflow_id,
        version=message.version,
        title=message.title,
        summary=message.summary,
        source=message.source,
        definition_hash=message.definition_hash,
        create_time=moment(message, "create_time"),
        latest=message.latest,
    )


def finding_from(message: workflows_pb2.Finding) -> Finding:
    """From the contract's message."""
    error = message.severity == workflows_pb2.Finding.SEVERITY_ERROR
    return Finding(
        severity=Severity.ERROR if error else Severity.WARNING,
        rule=message.rule,
        message=message.message,
        pointer=message.pointer,
        line=message.line,
        column=message.column,
    )


def worker_from(message: fleet_pb2.Worker) -> Worker:
    """From the contract's message."""
    return Worker(
        name=message.name,
        worker_id=message.worker_id,
        pool=message.pool,
        region=message.region,
        state=WorkerState(fleet_pb2.Worker.State.Name(message.state).removeprefix("STATE_")),
        slots=message.slots,
        legs=message.legs,
        register_time=moment(message, "register_time"),
        heartbeat_time=moment(message, "heartbeat_time"),
        end_time=moment(message, "end_time"),
        build_id=message.build_id,
        host=message.host,
        pid=message.pid,
        labels=dict(message.labels),
        cpu_cores=message.cpu_cores,
        memory_bytes=message.memory_bytes,
    )


def key_from(message: identity_pb2.Key) -> Key:
    """From the contract's message."""
    return Key(
        name=message.name,
        display_name=message.display_name,
        role=Role(identity_pb2.Role.Name(message.role).removeprefix("ROLE_").lower()),
        create_time=moment(message, "create_time"),
        expire_time=moment(message, "expire_time"),
        revoke_time=moment(message, "revoke_time"),
    )


def role_number(role: Role | str) -> identity_pb2.Role.ValueType:
    """The contract's number of a role. Raises ValueError for an unknown one."""
    return identity_pb2.Role.Value(f"ROLE_{Role(role).value.upper()}")
