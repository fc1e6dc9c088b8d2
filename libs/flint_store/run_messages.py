"""Rows of runs as public messages: the one place that maps them.

`RUN_COLUMNS` is what a statement selects (aliases `r` for run, `d` for workflow_version), and `run_message` reads it by
position: lists hold hundreds of rows, so a row is read once and without lookups by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.queueing import DEFAULT_POOL, Placement, QueueHints
from flint_store.branches import branch_range
from flint_store.schedule_names import SCHEDULE_REQUEST_PREFIX, scheduled_at
from flint_store.timestamps import set_timestamp

__all__ = ["LIST_ERROR_BYTES", "RUN_COLUMNS", "run_message"]

LIST_ERROR_BYTES = 4096
"""Errors above this size are not in lists: a page of 500 has to fit into one message."""

GATEWAY_REQUEST_PREFIX = "~"
"""Request ids with it are the gateway's own (see Start.request_id); clients never see them."""

RUN_COLUMNS = """
r.run_id, r.namespace_id, d.workflow_id, d.version, r.state, r.level, {payloads}, r.created_at, r.started_at,
r.ended_at, r.wake_at, r.leg, r.position, r.change, r.request_id, r.trace_id, r.claimant, r.cancel_requested,
r.reset, r.hints, r.placement
"""
"""`{payloads}`: three columns, input, output and error, each possibly NULL."""


def run_message(row: Sequence[Any]) -> runs_pb2.Run:
    """The run; payloads that the statement left out stay empty."""
    (
        run_id,
        namespace_id,
        workflow_id,
        version,
        state,
        level,
        input_,
        output,
        error,
        created_at,
        started_at,
        ended_at,
        wake_at,
        leg,
        position,
        change,
        request_id,
        trace_id,
        claimant,
        cancel_requested,
        reset,
        hints,
        placement,
    ) = row
    message = runs_pb2.Run(
        name=f"namespaces/{namespace_id}/runs/{run_id}",
        workflow=f"namespaces/{namespace_id}/workflows/{workflow_id}/versions/{version}",
        state=state,
        level=level,
        leg=leg,
        position=position,
        change=change,
        cancel_requested=cancel_requested,
        reset=reset or 0,
        pool=DEFAULT_POOL,
    )
    if hints is not None:
        asked = QueueHints.from_json(bytes(hints))
        message.pool, message.region = asked.pool, asked.region
        if asked.deadline_ms:
            message.deadline.FromMilliseconds(asked.deadline_ms)
    if placement is not None:
        placed = Placement.from_json(bytes(placement))
        message.pool, message.region = placed.pool, placed.region
    if input_:
        message.input = input_
    if output:
        message.output = output
    if error:
        message.error.MergeFromString(error)
    if request_id and not request_id.startswith(GATEWAY_REQUEST_PREFIX):
        message.request_id = request_id
    elif request_id and request_id.startswith(SCHEDULE_REQUEST_PREFIX):
        set_timestamp(message.schedule_time, scheduled_at(request_id) or created_at)
    elif request_id and (branches := branch_range(namespace_id, request_id)) is not None:
        message.branches.CopyFrom(branches)
    if trace_id:
        message.trace_id = trace_id.hex()
    if claimant:
        message.worker = claimant
    set_timestamp(message.create_time, created_at)
    set_timestamp(message.start_time, started_at)
    set_timestamp(message.end_time, ended_at)
    set_timestamp(message.wake_time, wake_at)
    return message
