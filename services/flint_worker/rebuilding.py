"""Reading a run's record: what a leg rebuilds the state from after a reset.

Pages over NATS from any scheduler, asked for again until one answers; the leg's lease bounds how long.
"""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import Bus, BusError
from flint_bus.subjects import RECORD
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_worker.journal import LegStopped
from flint_worker.lease import Lease

__all__ = ["read_record"]

_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.2

_log = get_logger("flint_worker.rebuilding")


async def read_record(bus: Bus, run_id: bytes, lease: Lease) -> tuple[bytes, list[bytes]]:
    """The run's input and the events of the entries that count, in order. Raises LegStopped when the lease is over."""
    given = b""
    events: list[bytes] = []
    after = 0
    while True:
        page = await _page(bus, dispatch_pb2.RecordRequest(run_id=run_id, after_index=after))
        if page is None:
            if not lease.valid():
                raise LegStopped("lease")
            await asyncio.sleep(_PAUSE_S)
            continue
        if not after:
            given = page.input
        events += page.events
        if not page.more:
            return given, events
        after = page.last_index


async def _page(bus: Bus, request: dispatch_pb2.RecordRequest) -> dispatch_pb2.RecordResponse | None:
    try:
        answer = await bus.request(RECORD, request.SerializeToString(), _TIMEOUT_S)
        page = dispatch_pb2.RecordResponse.FromString(answer)
    except (BusError, DecodeError) as error:
        _log.info("record_not_answered", error=str(error))
        return None
    if page.error:
        _log.info("record_not_read", error=page.error)
        return None
    return page
