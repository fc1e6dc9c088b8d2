"""An election for one key: at most one of its candidates leads at a time, as far as etcd can promise it.

States: **follower** (watches the key; asks nothing of etcd) → the key is absent → **candidate** (a lease, then
creating the key under it) → won: **leader** (the given coroutine runs while the lease holds) → the lease is lost, the
store was replaced, or it resigns: the coroutine is cancelled and awaited, the lease revoked → **follower**. When the
leader's process dies, its key goes with its lease and the others are candidates. Leadership is permission, not a
fence: a leader that was stopped for longer than its lease may run on for the moment until it notices; what it writes
must bear that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from flint_coord.coord import Coord
from flint_coord.errors import CoordUnavailable, LeaseEnded
from flint_coord.lease import Lease
from flint_coord.watch import Change, ChangeKind

__all__ = ["Election"]

_log = structlog.get_logger(room="flint_coord.election")
_PAUSE_S = 0.2


class Election:
    """One candidate of an election."""

    def __init__(self, coord: Coord, key: str, value: str, ttl_s: int) -> None:
        self._coord = coord
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self.leader = ""
        """Who leads, as last seen; empty when nobody does."""

    @property
    def leading(self) -> bool:
        """Whether this candidate leads at this moment."""
        return self._lease is not None and self._lease.valid

    async def run(self, lead: Callable[[Lease], Awaitable[None]]) -> None:
        """Takes part until cancelled; `lead` runs while this candidate leads and is cancelled when it does not any
        more.

        Cancelling resigns: `lead` is cancelled and awaited, then the lease is revoked, so a successor is there within
        milliseconds. An exception of `lead` resigns and is raised.
        """
        while True:
            await self._wait_until_free()
            try:
                lease = await self._coord.grant(self._ttl_s)
            except CoordUnavailable as error:
                _log.warning("election_waits_for_etcd", key=self._key, error=str(error))
                await asyncio.sleep(_PAUSE_S)
                continue
            lease.keep()
            try:
                if await self._coord.create(self._key, self._value, lease.id):
                    await self._hold(lease, lead)
            except (CoordUnavailable, LeaseEnded) as error:
                _log.warning("election_undecided", key=self._key, error=str(error))
                await asyncio.sleep(_PAUSE_S)
            finally:
                self._lease = None
                # Unanswered, the lease ends by itself.
                with contextlib.suppress(CoordUnavailable):
                    await lease.revoke()

    async def _wait_until_free(self) -> None:
        async with contextlib.aclosing(self._coord.watch(self._key)) as changes:
            async for change in changes:
                holder = self._holder(change)
                if holder is None:
                    continue
                self.leader = holder
                if not holder:
                    return

    async def _hold(self, lease: Lease, lead: Callable[[Lease], Awaitable[None]]) -> None:
        self._lease = lease
        self.leader = self._value
        _log.info("election_won", key=self._key, candidate=self._value)

        async def run() -> None:
            await lead(lease)

        loop = asyncio.get_running_loop()
        work = loop.create_task(run(), name=f"lead-{self._key}")
        ends = [
            work,
            loop.create_task(lease.lost.wait(), name=f"lead-{self._key}-lease"),
            loop.create_task(self._until_taken(lease), name=f"lead-{self._key}-key"),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.wait(ends)
            self._lease = None
            self.leader = ""
            _log.info("election_left", key=self._key, candidate=self._value)
        for task in ends:
            if not task.cancelled():
                task.result()

    async def _until_taken(self, lease: Lease) -> None:
        """Ends when the key is not this lease's any more, though the lease may live (an operator deleted it, say)."""
        async with contextlib.aclosing(self._coord.watch(self._key)) as changes:
            async for change in changes:
                if change.kind is ChangeKind.SNAPSHOT:
                    if not any(item.key == self._key and item.lease_id == lease.id for item in change.items):
                        return
                elif change.key == self._key and (change.kind is ChangeKind.DELETE or change.lease_id != lease.id):
                    return

    def _holder(self, change: Change) -> str | None:
        """Who holds the key after this change; empty: nobody; None: the change says nothing of it."""
        if change.kind is ChangeKind.SNAPSHOT:
            return next((item.value.decode() for item in change.items if item.key == self._key), "")
        if change.key != self._key:
            return None
        return "" if change.kind is ChangeKind.DELETE else change.value.decode()
