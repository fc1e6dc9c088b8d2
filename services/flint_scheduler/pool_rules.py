"""Rules of pools in a scheduler's memory: standby slots and dedication, as operators set them, over the configuration.

    read at start ──▶ known ──every 30 s, or when a registry says that one changed──▶ read again

While PostgreSQL is away what was read last holds. When the loop dies the service stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, Message
from flint_bus.subjects import FLEET_SETTINGS
from flint_ops.config import FleetSettings, PoolSettings
from flint_ops.config.pools import merged
from flint_ops.logging import get_logger
from flint_scheduler.fleet import FleetView
from flint_scheduler.places import PoolRule, PoolRules
from flint_store import scaling
from flint_store.errors import StoreUnavailable

__all__ = ["PoolDesk"]

log = get_logger(__name__)

_EVERY_S: Final = 30.0


class PoolDesk:
    """Tells the fleet view which rules count. Used from one event loop."""

    def __init__(self, settings: FleetSettings, engine: AsyncEngine, bus: Bus, fleet: FleetView) -> None:
        self._settings = settings
        self._engine = engine
        self._bus = bus
        self._fleet = fleet
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Read everything, and hear of changes. Raises StoreUnavailable."""
        await self._bus.subscribe(FLEET_SETTINGS, self._heard)
        await self._read()

    async def run(self) -> None:
        """Read again, every so often and when something changed."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._read()
            except StoreUnavailable as error:
                log.info("pools_not_read", error=str(error))

    def _heard(self, message: Message) -> None:
        self._changed.set()  # which pool it was does not matter: all are read

    async def _read(self) -> None:
        rows = await scaling.pools(self._engine)
        self._fleet.rule(
            PoolRules(
                home=self._settings.region,
                usual=_rule(self._settings.defaults),
                by_pool={name: _rule(merged(self._settings, name, {})) for name in self._settings.pools},
                by_place={(r.region, r.pool): _rule(merged(self._settings, r.pool, r.settings)) for r in rows},
            )
        )


def _rule(settings: PoolSettings) -> PoolRule:
    return PoolRule(settings.standby_slots, settings.dedicated_to)
