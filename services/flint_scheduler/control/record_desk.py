"""Parts of runs' records for workers that rebuild a state after a reset: answered over NATS from PostgreSQL."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from flint_bus import Bus, Message
from flint_bus.subjects import RECORD
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_scheduler.record import Record, RecordUnavailable
from flint_store.resets import read_record

__all__ = ["RecordDesk"]

log = get_logger(__name__)


class RecordDesk:
    """Answers `flint.record`, one request at a time; nothing is kept here."""

    def __init__(self, record: Record, bus: Bus) -> None:
        self._record = record
        self._bus = bus

    async def open(self) -> None:
        """Begin to answer."""
        await self._bus.subscribe(RECORD, self._asked, queue="schedulers")

    async def _asked(self, message: Message) -> None:
        request = dispatch_pb2.RecordRequest()
        try:
            request.ParseFromString(message.data)
            page = await self._record.read(lambda c: read_record(c, request.run_id, request.after_index))
        except (DecodeError, ValueError):
            log.warning("record_asked_wrongly")
            return
        except RecordUnavailable as error:
            message.respond(dispatch_pb2.RecordResponse(error=str(error)).SerializeToString())
            return
        answer = dispatch_pb2.RecordResponse(
            input=page.input, events=page.events, last_index=page.last_index, more=page.more
        )
        message.respond(answer.SerializeToString())
