"""How the groups are spread: who lives and who holds which group, as etcd has it; and who should hold what.

Two watches that never end keep the picture. It may be a moment old, and other schedulers may see another one: what it
says is what to try next, never a right to own. Before both watches have told what there is, it says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from flint_coord import ChangeKind, Coord, keys
from flint_scheduler.assignment import assign_groups

__all__ = ["Spread"]


class Spread:
    """One scheduler's picture of all of them. Used from one event loop; `changed` is set whenever it changes."""

    def __init__(self, scheduler_id: str, groups: int) -> None:
        self._id = scheduler_id
        self._groups = groups
        self._members: dict[str, str] = {}
        self._holders: dict[int, str] = {}  # group → scheduler whose key stands in etcd
        self._heard: set[str] = set()
        self.changed = asyncio.Event()
        self.on_members: Callable[[int], None] = lambda count: None

    async def watch_members(self, coord: Coord) -> None:
        """Follow who lives, for ever."""
        async for change in coord.watch(keys.SCHEDULERS):
            if change.kind is ChangeKind.SNAPSHOT:
                self._members = {i.key.removeprefix(keys.SCHEDULERS): i.value.decode() for i in change.items}
                self._heard.add(keys.SCHEDULERS)
            elif change.kind is ChangeKind.PUT:
                self._members[change.key.removeprefix(keys.SCHEDULERS)] = change.value.decode()
            else:
                self._members.pop(change.key.removeprefix(keys.SCHEDULERS), None)
            self.on_members(len(self._members))
            self.changed.set()

    async def watch_groups(self, coord: Coord) -> None:
        """Follow who holds what, for ever."""
        async for change in coord.watch(keys.GROUPS):
            if change.kind is ChangeKind.SNAPSHOT:
                self._holders = {int(i.key.removeprefix(keys.GROUPS)): i.value.decode() for i in change.items}
                self._heard.add(keys.GROUPS)
            elif change.kind is ChangeKind.PUT:
                self._holders[int(change.key.removeprefix(keys.GROUPS))] = change.value.decode()
            else:
                self._holders.pop(int(change.key.removeprefix(keys.GROUPS)), None)
            self.changed.set()

    def moves(self, owned: Mapping[int, object]) -> tuple[list[int], list[int]]:
        """(groups to give, groups to try to take) of one who owns `owned`. Given is only to somebody who lives."""
        if len(self._heard) < 2:
            return [], []
        holders = self._holders | dict.fromkeys(owned, self._id)
        targets = assign_groups(self._members.keys() | {self._id}, self._groups, holders)
        give = [g for g in owned if targets[g] != self._id and targets[g] in self._members]
        take = [
            g
            for g, target in targets.items()
            if target == self._id and g not in owned and self._holders.get(g, self._id) == self._id
        ]
        return give, take
