"""Passing heartbeats on to whoever follows the fleet: the beats of a short moment as one message.

States: **empty** → a beat comes: **gathering** for `COALESCE_S` (a later beat of the same worker replaces the earlier
one) → published → **empty**. There is no task and nothing is sent while no beats come. Without NATS the beats are
dropped: the next ones come within seconds, and nobody decides about life and death by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from flint_bus import Bus, Message, MessageTooLarge, Subscription
from flint_bus.subjects import FLEET_BEATS
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.logging import get_logger
from flint_registry.view import FleetView

__all__ = ["COALESCE_S", "BeatExchange"]

COALESCE_S = 0.1
_PER_MESSAGE = 1000

_log = get_logger("flint_registry.beats")


class BeatExchange:
    """Gives beats to the other replicas and the schedulers, and takes theirs. Used from one event loop."""

    def __init__(self, view: FleetView) -> None:
        self._view = view
        self._bus: Bus | None = None
        self._subscription: Subscription | None = None
        self._gathered: dict[str, registry_pb2.Beat] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether beats go out and come in."""
        return self._bus is not None and self._bus.connected.is_set()

    async def attach(self, bus: Bus) -> None:
        """Begins to publish and to listen."""
        self._subscription = await bus.subscribe(FLEET_BEATS, self._received)
        self._bus = bus

    async def close(self) -> None:
        """Publishes what is gathered and stops listening."""
        self._flush()
        self._bus = None
        if self._subscription is not None:
            await self._subscription.close()

    def offer(self, beats: Iterable[registry_pb2.Beat]) -> None:
        """Takes beats of leases that were renewed just now."""
        for beat in beats:
            earlier = self._gathered.get(beat.incarnation)
            if earlier is not None:
                # Beats tell of functions only what changed.
                told = {figures.function for figures in beat.functions}
                beat.functions.extend(figures for figures in earlier.functions if figures.function not in told)
            self._gathered[beat.incarnation] = beat
        if self._gathered and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_S, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        beats = list(self._gathered.values())
        self._gathered.clear()
        # Also without NATS this replica shows what it was told.
        self._view.hear(beats)
        if self._bus is None or not self.connected:
            return
        for start in range(0, len(beats), _PER_MESSAGE):
            message = registry_pb2.FleetBeats(beats=beats[start : start + _PER_MESSAGE])
            try:
                self._bus.publish_now(FLEET_BEATS, message.SerializeToString())
            except MessageTooLarge as error:
                _log.error("beats_too_large", error=str(error))

    def _received(self, message: Message) -> None:
        try:
            beats = registry_pb2.FleetBeats.FromString(message.data)
        except DecodeError as error:
            _log.error("beats_unreadable", error=str(error))
            return
        self._view.hear(beats.beats)
