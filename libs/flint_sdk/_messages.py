"""Between the contracts' messages and what the client hands out: the one place that maps them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.functions.v1 import functions_pb2
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.limits.v1 import limits_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_sdk._models import (
    BranchRange,
    Finding,
    HistoryEntry,
    Key,
    NamedLimit,
    Problem,
    RegisteredFunction,
    Role,
    Run,
    RunState,
    Severity,
    Step,
    StepState,
    Worker,
    WorkerState,
    Workflow,
)

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_RUN_STATES: Final = {number: RunState(name.removeprefix("STATE_")) for name, number in runs_pb2.Run.State.items()}


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
    return _EPOCH + timedelta(0, stamp.seconds, stamp.nanos // 1000)


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


def _branches(message: runs_pb2.BranchRange) -> BranchRange:
    return BranchRange(message.run, message.first, message.count, message.fork)


def run_from(message: runs_pb2.Run) -> Run:
    """From the contract's message."""
    return Run(
        name=message.name,
        workflow=message.workflow,
        state=_RUN_STATES.get(message.state, RunState.UNSPECIFIED),
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
        schedule_time=moment(message, "schedule_time"),
        reset=message.reset,
        branches=_branches(message.branches) if message.HasField("branches") else None,
        pool=message.pool or "default",
        region=message.region,
        deadline=moment(message, "deadline"),
        waiting_for=message.waiting_for,
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
        progress_percent=message.progress_percent if message.HasField("progress_percent") else None,
        progress_message=message.progress_message,
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
        superseded_by=message.superseded_by,
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
        scheduled=message.scheduled,
        next_start_time=moment(message, "next_start_time"),
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
        functions=tuple(message.functions),
        quarantine_reason=message.quarantine_reason,
        quarantine_end_time=moment(message, "quarantine_end_time"),
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


def limit_from(message: limits_pb2.Limit) -> NamedLimit:
    """From the contract's message."""
    rate = message.rate if message.HasField("rate") else None
    return NamedLimit(
        name=message.name.rpartition("/")[2],
        concurrency=message.concurrency if message.HasField("concurrency") else None,
        rate_count=rate.count if rate is not None else None,
        rate_period_s=rate.period.ToMilliseconds() / 1000 if rate is not None else None,
        rate_burst=rate.burst if rate is not None else None,
        holders=message.holders,
        waiting=message.waiting,
        update_time=moment(message, "update_time"),
    )


def function_from(message: functions_pb2.Function) -> RegisteredFunction:
    """From the contract's message."""
    return RegisteredFunction(
        name=message.name,
        version=message.version,
        description=message.description,
        input_schema=decode_json(message.input_schema),
        output_schema=decode_json(message.output_schema),
        create_time=moment(message, "create_time"),
        seen_time=moment(message, "seen_time"),
        connected=message.connected,
    )
