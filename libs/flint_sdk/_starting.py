"""Starts: requests with an id of their own, and batches within the contract's limits.

A batch is cut by count and by bytes, and its parts are sent a few at a time. Starts that were refused because a
component was away or a queue was full are sent again, with the same request_id, until the deadline.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk._errors import (
    FieldViolation,
    FlintError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    error_from_status,
)
from flint_sdk._messages import encode_json
from flint_sdk._models import (
    StartRequest,
)
from flint_sdk._transport import Backoff, Transport

BATCH_STARTS: Final = 1000
BATCH_BYTES: Final = 3 * 2**20
_CALLS_AT_ONCE: Final = 4


def start_requests(starts: Iterable[StartRequest], parent: str) -> list[runs_pb2.StartRunRequest]:
    """The contract's messages. Raises InvalidArgument for an input that is not JSON."""
    given = list(starts)
    return [start_request(start, parent, made) for start, made in zip(given, _request_ids(len(given)), strict=True)]


def start_request(start: StartRequest, parent: str, made_id: str = "") -> runs_pb2.StartRunRequest:
    """The contract's message. Raises InvalidArgument for an input that is not JSON."""
    try:
        payload = b"" if start.input is None else encode_json(start.input)
    except TypeError as error:
        violation = FieldViolation("input", str(error))
        raise InvalidArgument(f"the input is not JSON: {error}", violations=[violation]) from error
    request = runs_pb2.StartRunRequest(
        parent=parent,
        workflow_id=start.workflow,
        version=start.version or "",
        input=payload,
        request_id=start.request_id or made_id or _request_ids(1)[0],
    )
    if isinstance(start.level, str):
        request.level_name = start.level
    elif start.level is not None:
        request.level = start.level
    if start.pool:
        request.pool = start.pool
    if start.region:
        request.region = start.region
    if start.fairness_key:
        request.fairness_key = start.fairness_key
    if start.deadline is not None:
        request.deadline.FromDatetime(start.deadline)
    if start.not_before is not None:
        request.not_before.FromDatetime(start.not_before)
    return request


def _request_ids(count: int) -> list[str]:
    """Such that nobody else makes up. The time comes first, so that the record finds new ones in the same place."""
    drawn = os.urandom(10 * count).hex()  # at once: asking the system costs more than the bytes do
    prefix = f"sdk-{int(time.time() * 1000):012x}"
    return [prefix + drawn[at : at + 20] for at in range(0, 20 * count, 20)]


async def start_batch(
    transport: Transport, parent: str, requests: Sequence[runs_pb2.StartRunRequest], timeout_s: float | None
) -> list[runs_pb2.StartRunResponse | FlintError]:
    """One result per request, in order. Raises when a whole call could not be made."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (transport.timeout_s if timeout_s is None else timeout_s)
    results: dict[int, runs_pb2.StartRunResponse | FlintError] = {}
    pending = list(range(len(requests)))
    permits = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def send(part: list[int]) -> None:
        async with permits:
            request = runs_pb2.StartRunsRequest(parent=parent, requests=[requests[index] for index in part])
            remaining = max(0.001, deadline - loop.time())
            answer = await transport.call(lambda gateway: gateway.runs.StartRuns, request, timeout_s=remaining)
        for index, result in zip(part, answer.results, strict=True):
            failed = result.WhichOneof("result") == "error"
            results[index] = error_from_status(result.error) if failed else result.response

    backoff = Backoff()
    while pending:
        sends = [asyncio.create_task(send(part)) for part in _parts(requests, pending)]
        try:
            await asyncio.gather(*sends)
        finally:
            for task in sends:
                task.cancel()
        pause = backoff.next_s()
        pending = [index for index in pending if send_again(results[index])]
        for index in pending:
            error = results[index]
            if isinstance(error, FlintError) and error.retry_after_s is not None:
                pause = max(pause, error.retry_after_s)
        if loop.time() + pause >= deadline:
            break
        if pending:
            await asyncio.sleep(pause)
    return [results[index] for index in range(len(requests))]


def send_again(result: runs_pb2.StartRunResponse | FlintError) -> bool:
    """Whether a start was refused for a reason that passes."""
    if isinstance(result, ResourceExhausted):
        return result.retry_after_s is not None
    return isinstance(result, Unavailable)


def _parts(requests: Sequence[runs_pb2.StartRunRequest], indexes: list[int]) -> Iterator[list[int]]:
    part: list[int] = []
    size = 0
    for index in indexes:
        bytes_ = requests[index].ByteSize() + 8
        if part and (len(part) == BATCH_STARTS or size + bytes_ > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(index)
        size += bytes_
    if part:
        yield part
