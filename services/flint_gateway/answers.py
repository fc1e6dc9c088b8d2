"""What RunService answers with: runs as they were accepted, pages that fit a message, and where they go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2
from flint_gateway.validation import OWN_REQUEST_ID, page_token_invalid
from flint_rpc.names import RunName, format_version

__all__ = ["entry_cursor", "fill_in", "fitting", "last_fitting", "run_cursor"]


def fill_in(
    response: runs_pb2.StartRunResponse | runs_pb2.RunWorkflowResponse,
    start: scheduling_pb2.Start,
    result: scheduling_pb2.AcceptResult,
    name: RunName,
) -> None:
    """Fills in the run as it was accepted where it is to be: a message that is built apart costs a copy."""
    response.created = result.created
    run = response.run
    run.name = name.name
    run.workflow = format_version(name.namespace, start.workflow_id, result.version)
    run.state = result.state or runs_pb2.Run.STATE_QUEUED
    run.level = start.level if start.HasField("level") else result.level
    run.create_time.CopyFrom(result.create_time)
    request_id = start.request_id
    if not request_id.startswith(OWN_REQUEST_ID):
        run.request_id = request_id
    # A repeated start answers the first one's run, whose trace this call does not know.
    if result.created:
        run.trace_id = start.trace_id.hex()


def run_cursor(cursor: str) -> bytes:
    """The id in the token of a list of runs. Raises `Refused` for a token that was cut or changed on its way."""
    if cursor and re.fullmatch(r"[0-9a-f]{32}", cursor) is None:
        raise page_token_invalid()
    return bytes.fromhex(cursor)


def entry_cursor(cursor: str) -> int:
    """The index in the token of a history, likewise."""
    if cursor and re.fullmatch(r"[0-9]{1,18}", cursor) is None:
        raise page_token_invalid()
    return int(cursor or 0)


def fitting(entries: Iterable[runs_pb2.HistoryEntry], limit: int) -> list[runs_pb2.HistoryEntry]:
    """The first entries that fit a message; at least one."""
    found: list[runs_pb2.HistoryEntry] = []
    for entry in entries:
        limit -= entry.ByteSize() + 8
        if limit < 0 and found:
            break
        found.append(entry)
    return found


def last_fitting(steps: Sequence[runs_pb2.StepRecord], limit: int) -> Sequence[runs_pb2.StepRecord]:
    """The last steps that fit a message, in order."""
    count = 0
    for step in reversed(steps):
        limit -= step.ByteSize() + 8
        if limit < 0:
            break
        count += 1
    return steps[len(steps) - count :]
