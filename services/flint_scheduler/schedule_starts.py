"""The starts of schedules: the same request id, so the same run, whoever makes them and however often."""

from __future__ import annotations

import os
from hashlib import blake2b

from flint_core.queue_hints import NOTHING, HintInvalid, resolve_hints
from flint_rpc.errors import Refused
from flint_scheduler.accept import NewStart
from flint_scheduler.starts import DEFAULT_LEVEL, LevelNamed, level_named
from flint_store.schedule_names import request_by_time
from flint_store.schedules import ScheduleRow

__all__ = ["ScheduleStarts", "StartImpossible"]


class StartImpossible(Exception):
    """The schedule's workflow cannot be started as it is; the message says why."""


class ScheduleStarts:
    """Makes them. `levels`: the level to which a namespace gave a name."""

    def __init__(self, levels: LevelNamed) -> None:
        self._levels = levels

    def at(self, row: ScheduleRow, moment_ms: int, now_ms: int) -> NewStart:
        """The start for a time of a schedule. Raises `StartImpossible`."""
        kind = "at" if row.handle.startswith("@") else row.schedule.kind
        return self.of(row, request_by_time(kind, row.schedule_id, moment_ms), row.input, now_ms)

    def of(self, row: ScheduleRow, request_id: str, content: bytes, now_ms: int) -> NewStart:
        """A start of a schedule with this input. Raises `StartImpossible`."""
        if not row.definition_id:
            raise StartImpossible(f"there is no such version of workflow {row.workflow_id}")
        level, hints = row.level, None
        if row.queue is not None:
            try:
                hints = resolve_hints(row.queue, NOTHING, row.workflow_id, content, now_ms)
                if level is None and "level" in row.queue:
                    level = level_named(self._levels, row.namespace, row.queue["level"])
            except (HintInvalid, Refused) as error:
                raise StartImpossible(str(error)) from error
        return NewStart(
            namespace=row.namespace,
            workflow_id=row.workflow_id,
            version=row.version,
            definition_id=row.definition_id,
            definition_hash=row.definition_hash,
            level=level if level is not None else DEFAULT_LEVEL,
            request_id=request_id,
            request_hash=blake2b(request_id.encode(), digest_size=16).digest(),
            trace_id=os.urandom(16),
            input=content,
            hints=hints,
        )
