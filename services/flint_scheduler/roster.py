"""The roster: etcd's keys of workers and the registries' heartbeats, told to the fleet view.

The watch ends never; while etcd is away nothing is concluded about anybody.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

from flint_bus import Message
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import ChangeKind, Coord, CoordError, keys
from flint_ops.logging import get_logger
from flint_scheduler.fleet import FleetView

__all__ = ["follow_workers", "on_beats"]

log = get_logger(__name__)


async def follow_workers(coord: Coord, fleet: FleetView, claimants: Callable[[], set[str]]) -> None:
    """Keep the fleet view as etcd has it, for ever."""
    async for change in coord.watch(keys.WORKERS):
        if change.kind is ChangeKind.SNAPSHOT:
            cards = {}
            for item in change.items:
                card = _card(item.value)
                if card is not None:
                    cards[item.key.removeprefix(keys.WORKERS)] = card
            fleet.snapshot(cards, claimants())
            continue
        incarnation = change.key.removeprefix(keys.WORKERS)
        if change.kind is ChangeKind.DELETE:
            left = await _left_in_order(coord, incarnation)
            log.info("worker_gone", worker=incarnation, left=left)
            fleet.deleted(incarnation, left=left)
        elif (card := _card(change.value)) is not None:
            log.info("worker_came", worker=incarnation, slots=card.slots, id=card.worker_id)
            fleet.put(incarnation, card)


async def _left_in_order(coord: Coord, incarnation: str) -> bool:
    """Whether the worker deregistered: then its open legs are no sign against their runs."""
    try:
        return await coord.get(keys.departure(incarnation)) is not None
    except CoordError:
        return False


def _card(value: bytes) -> registry_pb2.WorkerCard | None:
    card = registry_pb2.WorkerCard()
    try:
        card.ParseFromString(value)
    except DecodeError:
        log.warning("worker_card_undecodable")
        return None
    return card


def on_beats(fleet: FleetView) -> Callable[[Message], None]:
    """A handler of the registries' heartbeats."""

    def handle(message: Message) -> None:
        beats = registry_pb2.FleetBeats()
        try:
            beats.ParseFromString(message.data)
        except DecodeError:
            log.warning("beats_undecodable")
            return
        fleet.beats(beats.beats)

    return handle
