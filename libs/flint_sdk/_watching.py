"""Watches one run across broken connections.

States: *reading* (events as they come; the cursor follows), *interrupted* (told once to the reader of the watch;
waits for a gateway, next address each time), then reading again from the cursor (told once). It ends after the event
that shows the run's end, or when the gateway has nothing to tell after the cursor: the run had ended there. A stream
that ends too early, or is silent for half a minute, is reopened from the cursor without a word: a peer which vanished
is noticed. When no gateway is reachable for `reconnect_s`, the watch raises Unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_sdk._errors import FlintError, Unavailable, error_from_rpc
from flint_sdk._messages import run_from, step_from
from flint_sdk._models import (
    RunChanged,
    RunSnapshot,
    StepBegan,
    WatchEvent,
    WatchInterrupted,
    WatchResumed,
)
from flint_sdk._transport import Backoff, Gateway, Transport, is_disconnect

_SILENCE_S: Final = 30.0
_CONNECT_S: Final = 2.0


async def watch_run(
    transport: Transport, name: str, cursor: int | None, recorded_only: bool, reconnect_s: float
) -> AsyncIterator[WatchEvent]:
    """The events of one run until it has ended. Close the iterator to stop. Raises FlintError."""
    loop = asyncio.get_running_loop()
    backoff = Backoff()
    down_since: float | None = None
    told = False  # by the stream that is open
    while True:
        gateway = transport.gateway()
        try:
            if down_since is not None:
                await _connected(gateway)
                yield WatchResumed(cursor)
            request = runs_pb2.WatchRunRequest(name=name, recorded_only=recorded_only)
            if cursor is not None:
                request.cursor = cursor
            told = False
            async for event in _read(transport, gateway, request):
                told = True
                down_since = None
                backoff.reset()
                if isinstance(event, RunChanged) and cursor is not None and event.cursor <= cursor:
                    continue  # sent again after a reconnect
                cursor = event.cursor if cursor is None else max(cursor, event.cursor)
                yield event
                if isinstance(event, RunSnapshot | RunChanged) and event.run.state.terminal:
                    return
            await asyncio.sleep(backoff.next_s())  # silent: ask again, gently
        except _Ended:
            if not told and cursor is not None:
                return
            await asyncio.sleep(backoff.next_s())  # without the run's end
        except _Broken as broken:
            if down_since is None:
                down_since = loop.time()
                yield WatchInterrupted(broken.error.message, cursor)
            elif loop.time() - down_since > reconnect_s:
                where = ", ".join(transport.endpoint.addresses)
                raise Unavailable(
                    f"no gateway could be reached at {where} for {reconnect_s:g} s ({broken.error.message})"
                ) from None
            transport.leave(gateway)
            await asyncio.sleep(backoff.next_s())


class _Ended(Exception):
    """The gateway ended the stream in order."""


class _Broken(Exception):
    """The connection, not the request, failed."""

    def __init__(self, error: FlintError) -> None:
        super().__init__(error.message)
        self.error = error


async def _connected(gateway: Gateway) -> None:
    try:
        async with asyncio.timeout(_CONNECT_S):
            await gateway.channel.channel_ready()
    except TimeoutError:
        raise _Broken(Unavailable(f"{gateway.address} does not answer")) from None


async def _read(
    transport: Transport, gateway: Gateway, request: runs_pb2.WatchRunRequest
) -> AsyncIterator[RunSnapshot | RunChanged | StepBegan]:
    call: grpc.aio.UnaryStreamCall[runs_pb2.WatchRunRequest, runs_pb2.WatchRunResponse] = gateway.runs.WatchRun(
        request, metadata=transport.metadata
    )
    try:
        while True:
            async with asyncio.timeout(_SILENCE_S):
                message = await call.read()
            if not isinstance(message, runs_pb2.WatchRunResponse):  # end of stream
                code = await call.code()
                if code is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(
                        code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
                    )
                raise _Ended
            event = _event(message)
            if event is not None:
                yield event
    except TimeoutError:
        return
    except grpc.aio.AioRpcError as error:
        typed = error_from_rpc(error)
        if is_disconnect(error):
            raise _Broken(typed) from None
        raise typed from None
    finally:
        call.cancel()


def _event(message: runs_pb2.WatchRunResponse) -> RunSnapshot | RunChanged | StepBegan | None:
    match message.WhichOneof("event"):
        case "snapshot":
            snapshot = message.snapshot
            return RunSnapshot(run_from(snapshot.run), tuple(step_from(s) for s in snapshot.steps), message.cursor)
        case "change":
            change = message.change
            return RunChanged(run_from(change.run), tuple(step_from(s) for s in change.steps), message.cursor)
        case "hint":
            return StepBegan(step_from(message.hint), message.cursor)
        case _:
            return None  # an event of a newer Flint
