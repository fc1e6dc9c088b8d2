"""A lease that this process holds, and the task that keeps it.

States of a kept lease: **valid** → (renewed whenever a third of its time is used up) → **valid** … → **lost**, for
ever: etcd says that it ended, or its validity passed on this machine's boot-time clock before a renewal was answered,
or it was revoked. Validity is counted from before the renewal was sent, so it ends here before it ends in etcd;
whoever acts under the lease looks at `valid` right before acting. If the keeping task died, validity would simply run
out.
"""

from __future__ import annotations

import asyncio

from flint_coord.connection import Connection
from flint_coord.errors import CoordUnavailable, LeaseEnded
from flint_coord.renewals import Renewals
from flint_coord.wire import rpc
from flint_ops.clock import boottime

__all__ = ["Lease"]


class Lease:
    """A lease of ours. Made by `Coord.grant`."""

    def __init__(
        self, connection: Connection, renewals: Renewals, lease_id: int, ttl_s: int, valid_until: float
    ) -> None:
        self._connection = connection
        self._renewals = renewals
        self.id = lease_id
        self.ttl_s = ttl_s
        self.valid_until = valid_until
        """When it may have ended, on the clock of `flint_ops.clock.boottime`, seconds."""
        self.lost = asyncio.Event()
        """Set once the lease is not held any more; never cleared. `valid` is the stricter test."""
        self._keeper: asyncio.Task[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether it surely still holds at this moment."""
        return not self.lost.is_set() and boottime() < self.valid_until

    @property
    def remaining_s(self) -> float:
        """Seconds for which it surely still holds, 0 when it does not."""
        return 0.0 if self.lost.is_set() else max(0.0, self.valid_until - boottime())

    def keep(self) -> asyncio.Task[None]:
        """Starts to renew it; the task ends when the lease is lost. Calling it again returns the same task."""
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"coord-lease-{self.id:x}")
        return self._keeper

    async def revoke(self, *, timeout_s: float = 2.0) -> None:
        """Gives it up now: its keys go at once. `lost` is set before etcd is asked.

        Raises CoordUnavailable when etcd did not answer; the lease then ends by itself within its time to live.
        """
        self.lost.set()
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        try:
            await self._connection.unary(
                self._connection.lease.LeaseRevoke,
                rpc.LeaseRevokeRequest(ID=self.id),
                timeout_s=timeout_s,
                repeat=True,
            )
        except LeaseEnded:
            return

    async def _keep(self) -> None:
        third = self.ttl_s / 3
        try:
            while True:
                await asyncio.sleep(max(0.0, self.remaining_s - 2 * third))
                if not self.valid:
                    return
                sent = boottime()
                try:
                    ttl_s = await self._renewals.renew(self.id, timeout_s=min(third, self.valid_until - sent))
                except CoordUnavailable:
                    # Other renewals follow at once, until validity is over; each waits on the connection, none spins.
                    await asyncio.sleep(min(0.05, self.remaining_s))
                    continue
                if ttl_s == 0:
                    return
                self.valid_until = max(self.valid_until, sent + ttl_s)
        finally:
            self.lost.set()
