"""The starts of schedules: the same request id, so the same run, whoever makes them and however often."""

from __future__ import annotations

import os
from hashlib import blake2b

from flint_scheduler.accept import NewStart
from flint_scheduler.starts import DEFAULT_LEVEL
from flint_store.schedule_names import request_by_time
from flint_store.schedules import ScheduleRow

__all__ = ["start_at", "start_of"]


def start_at(row: ScheduleRow, moment_ms: int) -> NewStart:
    """The start for a time of a schedule."""
    kind = "at" if row.handle.startswith("@") else row.schedule.kind
    return start_of(row, request_by_time(kind, row.schedule_id, moment_ms), row.input)


def start_of(row: ScheduleRow, request_id: str, content: bytes) -> NewStart:
    """A start of a schedule with this input."""
    return NewStart(
        namespace=row.namespace,
        workflow_id=row.workflow_id,
        version=row.version,
        definition_id=row.definition_id,
        definition_hash=row.definition_hash,
        level=row.level if row.level is not None else DEFAULT_LEVEL,
        request_id=request_id,
        request_hash=blake2b(request_id.encode(), digest_size=16).digest(),
        trace_id=os.urandom(16),
        input=content,
    )
