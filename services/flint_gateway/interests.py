"""Tells the owners of shard groups which runs this gateway wants to hear of (OwnerNudge over core NATS).

What is wanted within one turn of the event loop travels together. Fire and forget: an interest lasts 60 s at the
owner, is renewed by the hub, and the hub's safety net serves whoever was not heard.
"""

from __future__ import annotations

import asyncio

from flint_bus.bus import Bus
from flint_bus.subjects import owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.ids import group_of_run

__all__ = ["Interests"]

_PER_MESSAGE = 1000


class Interests:
    """See the module."""

    def __init__(self, bus: Bus, watcher: str, groups: int) -> None:
        self._bus = bus
        self._watcher = watcher
        self._groups = groups
        self._wanted: dict[bytes, bool] = {}
        self._scheduled = False

    def group(self, run_id: bytes) -> int:
        """The shard group of a run."""
        return group_of_run(run_id, self._groups)

    def want(self, run_id: bytes, *, steps: bool) -> None:
        """Asks the run's owner for its end (or, with `steps`, for every change)."""
        self._wanted[run_id] = steps or self._wanted.get(run_id, False)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        wanted, self._wanted = self._wanted, {}
        nudges: dict[int, list[dispatch_pb2.Interest]] = {}
        for run_id, steps in wanted.items():
            interest = dispatch_pb2.Interest(run_id=run_id, watcher=self._watcher, steps=steps)
            nudges.setdefault(self.group(run_id), []).append(interest)
        for group, interests in nudges.items():
            for begin in range(0, len(interests), _PER_MESSAGE):
                nudge = dispatch_pb2.OwnerNudge(interests=interests[begin : begin + _PER_MESSAGE])
                self._bus.publish_now(owner_subject(group), nudge.SerializeToString())
