"""What the leader holds of pools, told to all replicas so that each can show it.

States at a replica: **nothing** → heard from the leader: **known** → not heard of for `STALE_S`: **nothing**.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from flint_bus import Bus, Message, MessageTooLarge
from flint_bus.subjects import FLEET_POOLS
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.clock import boottime
from flint_ops.logging import get_logger
from flint_registry.scaling.policies import PoolKey

__all__ = ["STALE_S", "Outlooks"]

STALE_S: Final = 20.0
_EVERY_S: Final = 5.0
_MOST: Final = 1_000

_log = get_logger("flint_registry.outlook")


class Outlooks:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._heard: dict[PoolKey, registry_pb2.PoolOutlook] = {}
        self._heard_at = 0.0
        self._told: bytes = b""
        self._told_at = 0.0

    def get(self, key: PoolKey) -> registry_pb2.PoolOutlook | None:
        """What the leader said of a pool lately."""
        return self._heard.get(key) if boottime() - self._heard_at < STALE_S else None

    def keys(self) -> list[PoolKey]:
        """Pools of which the leader said something lately."""
        return list(self._heard) if boottime() - self._heard_at < STALE_S else []

    def hear(self, message: Message) -> None:
        """A handler of PoolOutlooks."""
        try:
            self._take(registry_pb2.PoolOutlooks.FromString(message.data))
        except DecodeError as error:
            _log.error("outlook_unreadable", error=str(error))

    def tell(self, bus: Bus | None, outlooks: registry_pb2.PoolOutlooks) -> None:
        """As leader: takes it over, and publishes it when it differs from the last or that was a while ago."""
        self._take(outlooks)
        data = outlooks.SerializeToString(deterministic=True)
        now = boottime()
        if bus is None or not bus.connected.is_set() or (data == self._told and now - self._told_at < _EVERY_S):
            return
        self._told, self._told_at = data, now
        try:
            bus.publish_now(FLEET_POOLS, data)
        except MessageTooLarge as error:
            _log.error("outlook_too_large", error=str(error))

    def _take(self, outlooks: registry_pb2.PoolOutlooks) -> None:
        self._heard = {(outlook.region, outlook.pool): outlook for outlook in outlooks.pools[:_MOST]}
        self._heard_at = boottime()
