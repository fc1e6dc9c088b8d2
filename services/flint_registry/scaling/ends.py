"""Workers whose end the provisioner saw: their leases are revoked at once, so owners take their legs over without
waiting for them to run out.

States: **following** the provisioner → an end: the incarnations of that worker, by its id, are ended in etcd → …; what
etcd cannot do now is kept and tried at each look. The provisioner tells an end only when nothing of the worker can run
any more, and ids are never used twice: so this is the one place that may end somebody else's lease before its time
(R6). A successor begins with all ends that the provisioner remembers.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from flint_coord import Coord, CoordUnavailable
from flint_ops.logging import get_logger
from flint_registry import metrics
from flint_registry.provisioners import Provisioned, Provisioner, ProvisionerRefused, ProvisionerUnavailable
from flint_registry.view import FleetView

__all__ = ["Ends"]

_KEPT: Final = 10_000
_ETCD_TIMEOUT_S: Final = 2.0

_log = get_logger("flint_registry.ends")


class Ends:
    """Used from one event loop."""

    def __init__(self, coord: Coord, view: FleetView, provisioner: Provisioner, on_end: Callable[[], None]) -> None:
        self._coord = coord
        self._view = view
        self._provisioner = provisioner
        self._on_end = on_end
        self._ended: OrderedDict[str, Provisioned] = OrderedDict()
        self._removed: set[str] = set()

    async def follow(self) -> None:
        """For ever."""
        async with contextlib.aclosing(self._provisioner.watch()) as ends:
            async for worker in ends:
                if not worker.ended:
                    continue
                self._ended[worker.worker_id] = worker
                if len(self._ended) > _KEPT:
                    gone, _ = self._ended.popitem(last=False)
                    self._removed.discard(gone)
                await self.settle()
                self._on_end()

    async def settle(self) -> None:
        """Ends the incarnations that are still there: one may have been registering while its process was killed."""
        for worker in self._view.live():
            card = worker.card
            ended = self._ended.get(card.worker_id)
            if ended is None:
                continue
            try:
                await self._coord.revoke(card.lease_id, timeout_s=_ETCD_TIMEOUT_S)
            except CoordUnavailable as error:
                _log.warning("lease_not_revoked", incarnation=card.incarnation, error=str(error))
                return
            metrics.ENDS_SEEN.labels(card.pool).inc()
            _log.info("worker_end_seen", incarnation=card.incarnation, worker=card.worker_id, how=ended.detail)

    async def clear(self) -> None:
        """Lets the provisioner remove what is left of those that ended."""
        left = [worker_id for worker_id in self._ended if worker_id not in self._removed]
        if not left:
            return
        try:
            await self._provisioner.end(left)
        except (ProvisionerUnavailable, ProvisionerRefused) as error:
            _log.warning("ended_workers_not_removed", error=str(error))
            return
        self._removed.update(left)
