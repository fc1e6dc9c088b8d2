"""Nudging: tell the owners of runs that there is something in PostgreSQL for them. Fire and forget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flint_bus import Bus
from flint_bus.subjects import owner_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_store.awaits import Target

__all__ = ["nudge_forks", "nudge_inboxes"]

_MOST: Final = 10_000
"""Run ids in one nudge: far below what a message may hold."""


def nudge_inboxes(bus: Bus, targets: Iterable[Target]) -> None:
    """Tell the owners that these runs have something in their inbox. When it is lost, their sweep finds the rows."""
    groups: dict[int, list[bytes]] = {}
    for target in targets:
        groups.setdefault(target.group, []).append(target.run_id)
    for group, run_ids in groups.items():
        for at in range(0, len(run_ids), _MOST):
            nudge = dispatch_pb2.OwnerNudge(inbox=run_ids[at : at + _MOST])
            bus.publish_now(owner_subject(group), nudge.SerializeToString())


def nudge_forks(bus: Bus, targets: Iterable[Target]) -> None:
    """Tell the owners of these runs that branch runs of theirs have ended. Their sweep looks at the forks too."""
    groups: dict[int, set[bytes]] = {}
    for target in targets:
        groups.setdefault(target.group, set()).add(target.run_id)
    for group, run_ids in groups.items():
        nudge = dispatch_pb2.OwnerNudge(branches=run_ids)
        bus.publish_now(owner_subject(group), nudge.SerializeToString())
