"""What owners ask of this incarnation: release, cancel, pause and drop legs, deliver messages.

Answered at once, within the reader.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from flint_bus import Message
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_worker.table import LegTable

__all__ = ["Control"]

_log = get_logger("flint_worker.control")


class Control:
    """The handler of `flint.control.<incarnation>`."""

    def __init__(self, incarnation: str, table: LegTable) -> None:
        self._incarnation = incarnation
        self._table = table

    def handle(self, message: Message) -> None:
        """Carries out one request. One that cannot be read gets no answer: its sender asks again."""
        try:
            request = dispatch_pb2.ControlRequest.FromString(message.data)
        except DecodeError:
            _log.warning("control_request_unreadable", size=len(message.data))
            return
        response = dispatch_pb2.ControlResponse(incarnation=self._incarnation)
        kind = request.WhichOneof("request")
        if kind == "release":
            nonces = [leg.leg_nonce for leg in request.release.legs]
            if request.release.waiting_at_most:
                response.released.extend(self._table.release_waiting(nonces, request.release.waiting_at_most))
            else:
                lost = request.release.journal_lost
                response.released.extend(self._table.release(nonce, lost) for nonce in nonces)
        elif kind == "cancel":
            for leg in request.cancel.legs:
                self._table.cancel(leg.leg_nonce, request.cancel.grace_ms)
        elif kind == "pause":
            for leg in request.pause.legs:
                self._table.pause(leg.leg_nonce)
        elif kind == "drop":
            for leg in request.drop.legs:
                self._table.drop(leg.leg_nonce)
        elif kind == "deliver":
            for delivery in request.deliver.deliveries:
                self._table.deliver(delivery.leg.leg_nonce, delivery.messages)
        message.respond(response.SerializeToString())
