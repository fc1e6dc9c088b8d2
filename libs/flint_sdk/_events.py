"""CloudEvents in and out: batches within the contract's limits, and a subscription across broken connections.

A subscription is *reading* (events as they come, the cursor follows) or *reconnecting* (the next gateway, from the
cursor). Until a gateway was reached for the first time, and whenever none can be reached for `reconnect_s`, it raises.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from flint_contracts.gen.flint.events.v1 import events_pb2
from flint_sdk._errors import (
    FieldViolation,
    FlintError,
    InvalidArgument,
    Unavailable,
    error_from_rpc,
    error_from_status,
)
from flint_sdk._messages import decode_json, encode_json
from flint_sdk._transport import Backoff, Gateway, Transport, is_disconnect

_BATCH_EVENTS: Final = 1000
_BATCH_BYTES: Final = 3 * 2**20
_SILENCE_S: Final = 40.0  # the gateway says something each 15 s


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event that is stored. `created` is false when the same event (source and id) had been published before."""

    id: str
    source: str
    created: bool


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event of a subscription.

    `event`: the CloudEvent in the JSON format. `cursor`: a subscription from it gets everything that was not handed out
    yet, and perhaps some events once more. `dropped`: lifecycle events that were lost before this one, because they
    were not read fast enough.
    """

    event: dict[str, Any]
    cursor: str
    dropped: int = 0

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.event.get("id", ""))

    @property
    def type(self) -> str:
        """Its type."""
        return str(self.event.get("type", ""))

    @property
    def data(self) -> Any:
        """Its data; None when it has none, or bytes in `data_base64`."""
        return self.event.get("data")


def _completed(event: Mapping[str, Any], index: int) -> bytes:
    full: dict[str, Any] = {"specversion": "1.0", "id": str(uuid.uuid4()), **event}
    full.setdefault("time", datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    if "data" in full:
        full.setdefault("datacontenttype", "application/json")
    try:
        return encode_json(full)
    except TypeError as error:
        violation = FieldViolation(f"events[{index}]", str(error))
        raise InvalidArgument(f"events[{index}] is not JSON: {error}", violations=[violation]) from error


async def publish(
    transport: Transport, parent: str, events: Iterable[Mapping[str, Any]], timeout_s: float | None
) -> list[PublishedEvent | FlintError]:
    """One result per event, in order. Events have their ids before they are sent, so that a repeat is harmless."""
    encoded = [_completed(event, index) for index, event in enumerate(events)]
    results: list[PublishedEvent | FlintError] = []
    for part in _parts(encoded):
        request = events_pb2.PublishEventsRequest(parent=parent, events=part)
        answer = await transport.call(lambda gateway: gateway.events.PublishEvents, request, timeout_s=timeout_s)
        for result in answer.results:
            if result.WhichOneof("result") == "error":
                results.append(error_from_status(result.error))
            else:
                published = result.published
                results.append(PublishedEvent(published.id, published.source, published.created))
    return results


def _parts(encoded: Sequence[bytes]) -> list[list[bytes]]:
    parts: list[list[bytes]] = []
    size = 0
    for data in encoded:
        if not parts or len(parts[-1]) == _BATCH_EVENTS or size + len(data) > _BATCH_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(data)
        size += len(data) + 8
    return parts


async def subscribe(
    transport: Transport, request: events_pb2.SubscribeEventsRequest, reconnect_s: float
) -> AsyncIterator[ReceivedEvent]:
    """Events as they come, for ever. Close the iterator to stop. Raises FlintError."""
    loop = asyncio.get_running_loop()
    backoff = Backoff()
    down_since: float | None = None
    while True:
        gateway = transport.gateway()
        try:
            async for response in _read(transport, gateway, request):
                down_since = None
                backoff.reset()
                before, request.cursor = request.cursor, response.cursor
                last = len(response.events) - 1
                for index, data in enumerate(response.events):
                    cursor = response.cursor if index == last else before
                    yield ReceivedEvent(decode_json(data), cursor, response.dropped if index == 0 else 0)
            error: FlintError = Unavailable(f"{gateway.address} ended the subscription, or went silent")
        except _Broken as broken:
            error = broken.error
        down_since = loop.time() if down_since is None else down_since
        if loop.time() - down_since > reconnect_s:
            where = ", ".join(transport.endpoint.addresses)
            raise Unavailable(f"no gateway could be reached at {where} for {reconnect_s:g} s ({error.message})")
        transport.leave(gateway)
        await asyncio.sleep(backoff.next_s())


class _Broken(Exception):
    """The connection, not the request, failed."""

    def __init__(self, error: FlintError) -> None:
        super().__init__(error.message)
        self.error = error


async def _read(
    transport: Transport, gateway: Gateway, request: events_pb2.SubscribeEventsRequest
) -> AsyncIterator[events_pb2.SubscribeEventsResponse]:
    call: grpc.aio.UnaryStreamCall[events_pb2.SubscribeEventsRequest, events_pb2.SubscribeEventsResponse]
    call = gateway.events.SubscribeEvents(request, metadata=transport.metadata)
    try:
        while True:
            async with asyncio.timeout(_SILENCE_S):
                message = await call.read()
            if not isinstance(message, events_pb2.SubscribeEventsResponse):  # end of stream
                code = await call.code()
                if code is grpc.StatusCode.OK:
                    return
                raise grpc.aio.AioRpcError(
                    code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
                )
            yield message
    except TimeoutError:
        return
    except grpc.aio.AioRpcError as error:
        typed = error_from_rpc(error)
        if is_disconnect(error):
            raise _Broken(typed) from None
        raise typed from None
    finally:
        call.cancel()
