"""Delivery: messages in the inboxes of runs whose leg is open go to the worker that has it.

Fire and forget: whether they arrived is seen when an entry names them as consumed. Until then each sweep delivers them
again; and a run that blocks with a message unconsumed is ready again at once (fold.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from flint_bus import Bus
from flint_bus.subjects import control_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.metrics import MESSAGES_DELIVERED
from flint_scheduler.record import Record
from flint_store.mail import Mail, load_mail

__all__ = ["Delivery", "inbox_messages"]

_RUNS: Final = 50  # inboxes read at a time
_REQUEST_BYTES: Final = 2**20  # after which a request is sent; the next inbox adds at most as much again
_REQUEST_RUNS: Final = 1000
_NONE: Final = Mail()


def inbox_messages(mail: Mail) -> Iterable[dispatch_pb2.InboxMessage]:
    """Messages as a worker takes them."""
    return [dispatch_pb2.InboxMessage(key=m.key, await_key=m.await_key, content=m.content) for m in mail.letters]


class Delivery:
    """Hands messages to open legs, for one scheduler."""

    def __init__(self, record: Record, bus: Bus) -> None:
        self._record = record
        self._bus = bus

    async def deliver(self, cards: Sequence[RunCard]) -> None:
        """Send what is in these runs' inboxes, as much as a leg takes at a time. Raises RecordUnavailable."""
        for at in range(0, len(cards), _RUNS):
            part = {card.run_id: (card, card.nonce) for card in cards[at : at + _RUNS]}
            requests: dict[str, dispatch_pb2.ControlRequest] = {}
            found = await self._record.read(partial(load_mail, run_ids=list(part)))
            for run_id, (card, nonce) in part.items():
                mail = found.get(run_id, _NONE)
                if card.phase is not Phase.OPEN or card.nonce != nonce or card.claimant is None or nonce is None:
                    continue  # the next leg takes it from the record
                card.mail = frozenset(letter.key for letter in mail.letters)
                card.more_mail = mail.more
                if not mail.letters:
                    continue  # consumed meanwhile
                request = requests.setdefault(card.claimant, dispatch_pb2.ControlRequest())
                request.deliver.deliveries.add(
                    leg=dispatch_pb2.LegRef(run_id=run_id, leg_nonce=nonce), messages=inbox_messages(mail)
                )
                MESSAGES_DELIVERED.inc(len(mail.letters))
                if request.ByteSize() > _REQUEST_BYTES or len(request.deliver.deliveries) >= _REQUEST_RUNS:
                    self._send(card.claimant, requests.pop(card.claimant))
            for claimant, request in requests.items():
                self._send(claimant, request)

    def _send(self, claimant: str, request: dispatch_pb2.ControlRequest) -> None:
        self._bus.publish_now(control_subject(claimant), request.SerializeToString())
