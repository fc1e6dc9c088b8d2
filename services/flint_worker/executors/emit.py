"""`emit`: publishes one CloudEvent through the schedulers, which store it before they answer.

A repeat is the same event: the id is made of the idempotency key unless the definition gives one, and what was stored
first is what every repeat answers. A request without an answer is sent again until the call's time is over; without a
limit, until the leg ends.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError

from flint_bus import Bus, BusError, MessageTooLarge
from flint_bus.subjects import EVENTS_STORE
from flint_contracts.gen.flint.scheduling.v1 import events_pb2 as pb
from flint_core.cloud_events import ID_CHARACTERS, complete_event
from flint_core.problems import Problem, ProblemType
from flint_ops.clock import now_ms
from flint_ops.config import Settings
from flint_ops.logging import get_logger
from flint_rpc.errors import ErrorReason, Refused, from_status_proto
from flint_worker.executors import ExecutionFailed, ResolvedCall

__all__ = ["EmitExecutor"]

_REQUEST_S: Final = 5.0
_PAUSE_S: Final = 0.1
_MOST_PAUSE_S: Final = 2.0

_log = get_logger("flint_worker.emit")


class EmitExecutor:
    """The function `emit`."""

    unfinished = 0  # what is repeated is the same event

    def __init__(self, settings: Settings, bus: Bus) -> None:
        self._bus = bus
        self._limit = settings.events.event_bytes

    async def execute(self, call: ResolvedCall) -> Any:
        """Publishes `event`; its output is the event as it was stored."""
        event = complete_event(
            call.arguments["event"],
            event_id=_event_id(call),
            source=f"/namespaces/{call.namespace}/workflows/{call.workflow}",
            at_ms=now_ms(),
        )
        data = orjson.dumps(event)
        if len(data) > self._limit:
            raise ExecutionFailed(
                Problem(
                    ProblemType.PAYLOAD_TOO_LARGE,
                    413,
                    "The event is too large",
                    f"it has {len(data)} bytes; the limit is {self._limit} (events.event_bytes)",
                    call.step,
                )
            )
        response = await self._store(call, data)
        result = response.results[0]
        if result.HasField("error"):
            raise ExecutionFailed(_refused(from_status_proto(result.error), call.step))
        if not result.published.created and response.stored and response.stored[0]:
            return orjson.loads(response.stored[0])
        return event

    async def close(self) -> None:
        """Nothing to give back: the bus is the worker's."""

    async def _store(self, call: ResolvedCall, data: bytes) -> pb.StoreEventsResponse:
        request = pb.StoreEventsRequest(namespace=call.namespace, events=[data], with_stored=True).SerializeToString()
        pause_s = _PAUSE_S
        while True:
            try:
                answer = await self._bus.request(EVENTS_STORE, request, _REQUEST_S)
                response = pb.StoreEventsResponse.FromString(answer)
                if not response.HasField("refused"):
                    return response
                refused = from_status_proto(response.refused)
                if refused.retry_after_s is None:
                    raise ExecutionFailed(_refused(refused, call.step))
                why = refused.message
            except MessageTooLarge as error:
                raise ExecutionFailed(
                    Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "The event is too large", str(error), call.step)
                ) from None
            except (BusError, DecodeError) as error:
                why = str(error)
            _log.info("event_not_stored_yet", step=call.step, error=why)
            await asyncio.sleep(pause_s)
            pause_s = min(_MOST_PAUSE_S, pause_s * 2)


def _event_id(call: ResolvedCall) -> str:
    return call.idempotency_key[-ID_CHARACTERS:] or f"{call.run_id}{call.step}"[-ID_CHARACTERS:]


def _refused(refused: Refused, step: str) -> Problem:
    if refused.reason == ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE:
        return Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "The event is too large", refused.message, step)
    detail = "; ".join(f"{v.field.partition('.')[2] or 'event'}: {v.description}" for v in refused.field_violations)
    return Problem(ProblemType.VALIDATION, 400, "The event is not valid", detail or refused.message, step)
