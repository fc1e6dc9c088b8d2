"""What the client hands out: frozen values.

Moments are timezone-aware `datetime` in UTC; payloads are plain JSON values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class RunState(StrEnum):
    """Where a run is in its life."""

    UNSPECIFIED = "UNSPECIFIED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"

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
class BranchRange:
    """Which branches of the fork of a run a branch run executes: `count` of them from `first`, counted from 0."""

    run: str
    first: int
    count: int
    fork: str


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
    schedule_time: datetime | None = None
    reset: int = 0
    branches: BranchRange | None = None
    pool: str = "default"
    region: str = ""
    deadline: datetime | None = None
    waiting_for: str = ""

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
    progress_percent: float | None = None
    progress_message: str = ""

    @property
    def duration_s(self) -> float | None:
        """Seconds from begin to end; None while it has not ended."""
        if self.start_time is None or self.end_time is None:
            return None
        return max(0.0, (self.end_time - self.start_time).total_seconds())


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One recorded entry of a run's journal. `leg_end` is empty when the leg went on.

    `superseded_by`: the reset that cut it off, from 1; 0 when it counts.
    """

    index: int
    leg: int
    worker: str
    record_time: datetime | None
    steps: tuple[Step, ...]
    leg_end: str
    superseded_by: int = 0


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
    scheduled: bool = False
    next_start_time: datetime | None = None


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
    functions: tuple[str, ...] = ()
    quarantine_reason: str = ""
    quarantine_end_time: datetime | None = None

    @property
    def incarnation(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool is scaled. `mode`: fixed, shadow or automatic. `worker_slots` None: as the workers' settings say."""

    mode: str = "fixed"
    minimum_workers: int = 0
    maximum_workers: int = 0
    target_wait_s: float = 0.0
    idle_s: float = 0.0
    buffer_slots: int = 0
    standby_slots: int = 0
    worker_slots: int | None = None
    dedicated_to: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of like workers in a region. `wanted_workers`: as the autoscaler decided last, None before."""

    pool: str
    region: str
    workers: int
    slots: int
    legs: int
    draining_workers: int = 0
    starting_workers: int = 0
    waiting_runs: int = 0
    longest_wait_s: float = 0.0
    wanted_workers: int | None = None
    settings: PoolSettings = PoolSettings()

    @property
    def name(self) -> str:
        """The resource name."""
        return f"regions/{self.region}/pools/{self.pool}"


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """A line of the autoscaler's ledger. `verdict`: "" before it was judged; `inputs`, `evaluation`: JSON values."""

    id: int
    pool: str
    time: datetime | None
    action: str
    workers: int
    wanted_workers: int
    shadow: bool
    reason: str
    failure: str
    verdict: str
    inputs: Any
    evaluation: Any


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
    """One start of a batch. `input` is any JSON value; None means an empty object.

    `level`: 0 (most urgent) to 9, or the name that the namespace gave to one. `deadline`: when the run should have
    ended. `not_before`: it is not begun earlier. `fairness_key`: runs with different keys take turns. What is None is
    the definition's.
    """

    workflow: str
    input: Any = None
    request_id: str | None = None
    version: str | None = None
    level: int | str | None = None
    pool: str | None = None
    region: str | None = None
    deadline: datetime | None = None
    fairness_key: str | None = None
    not_before: datetime | None = None


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


@dataclass(frozen=True, slots=True)
class NamedLimit:
    """A limit that definitions refer to by name. `concurrency`: runs at a time, None: any number. `rate_count` runs may
    begin in `rate_period_s` seconds, `rate_burst` of them at once; None: as fast as they can.

    `holders`: runs that hold a permit of it; `waiting`: runs that were refused lately, not all that stand behind them.
    """

    name: str
    concurrency: int | None
    rate_count: int | None
    rate_period_s: float | None
    rate_burst: int | None
    holders: int
    waiting: int
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class RegisteredFunction:
    """One version of a custom function, as it was registered last. A schema is None when it takes anything.

    `connected`: whether a function worker that executes it was connected within the last 20 s.
    """

    name: str
    version: str
    description: str
    input_schema: Any
    output_schema: Any
    create_time: datetime | None
    seen_time: datetime | None
    connected: bool
