"""Carrying a decision out, by the same keys in etcd that every registry and scheduler reads.

Taking no more legs and taking them again is a member of the worker's card; ending is a wish to drain, which the worker
reads in its next heartbeat's answer and follows by itself. Everything may be repeated, and a worker whose lease has
ended meanwhile is passed over. Nothing here kills.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_coord import Coord, CoordUnavailable, LeaseEnded, keys
from flint_elastic import Decision
from flint_ops.logging import get_logger
from flint_registry.provisioners import Order, Provisioner, ProvisionerRefused, ProvisionerUnavailable
from flint_registry.scaling.observing import PoolSight
from flint_registry.scaling.policies import PoolKey

__all__ = ["Actor"]

_ETCD_TIMEOUT_S: Final = 2.0
_LONGEST_NAME: Final = 40
_AT_ONCE: Final = 32

_Act: TypeAlias = Callable[[registry_pb2.WorkerCard, bool], Awaitable[None]]

_log = get_logger("flint_registry.scaling")


class Actor:
    """Used from one event loop."""

    def __init__(self, coord: Coord, provisioner: Provisioner) -> None:
        self._coord = coord
        self._provisioner = provisioner
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def carry_out(self, key: PoolKey, decision: Decision, sight: PoolSight, slots: int) -> str:
        """Does what was decided, for workers of the provisioner's; empty, or what could not be done."""
        failures = [
            *await self._each(self._mark, sight, decision.revive, draining=False),
            *await self._start(key, decision.start, slots),
            *await self._each(self._mark, sight, decision.drain, draining=True),
            *await self._each(self._ask_to_drain, sight, decision.end, draining=True),
        ]
        return "; ".join(dict.fromkeys(failures))

    async def end_overdue(self, sight: PoolSight) -> None:
        """Tells processes to end that should have ended, or registered, by themselves."""
        if not sight.overdue:
            return
        _log.warning("workers_overdue", workers=sight.overdue[:20])
        try:
            await self._provisioner.end(sight.overdue)
        except (ProvisionerUnavailable, ProvisionerRefused) as error:
            _log.warning("workers_not_ended", error=str(error))

    async def _start(self, key: PoolKey, count: int, slots: int) -> list[str]:
        region, pool = key
        if not count:
            return []
        orders = [Order(f"{pool[:_LONGEST_NAME]}-{uuid.uuid4().hex[:12]}", pool, region, slots) for _ in range(count)]
        try:
            await self._provisioner.start(orders)
        except (ProvisionerUnavailable, ProvisionerRefused) as error:
            return [str(error)]
        return []

    async def _each(self, act: _Act, sight: PoolSight, incarnations: Iterable[str], *, draining: bool) -> list[str]:
        cards = [sight.cards[i].card for i in incarnations if i in sight.managed and i in sight.cards]

        async def one(card: registry_pb2.WorkerCard) -> str:
            async with self._gate:
                try:
                    await act(card, draining)
                except LeaseEnded:
                    return ""
                except CoordUnavailable as error:
                    return f"etcd: {error}"
            return ""

        return [failure for failure in await asyncio.gather(*map(one, cards)) if failure]

    async def _mark(self, card: registry_pb2.WorkerCard, draining: bool) -> None:
        marked = registry_pb2.WorkerCard()
        marked.CopyFrom(card)
        marked.draining = draining
        value = marked.SerializeToString(deterministic=True)
        await self._coord.put(keys.worker(card.incarnation), value, card.lease_id, timeout_s=_ETCD_TIMEOUT_S)

    async def _ask_to_drain(self, card: registry_pb2.WorkerCard, draining: bool) -> None:
        await self._coord.put(keys.drain(card.incarnation), b"", card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
