"""Who should own which shard group: pure, the same answer on every replica that sees the same members and owners.

Everybody keeps what it has, up to its even share; what is left over goes to those who have less. So ownership is even,
and when a member joins or leaves no more groups move than that takes. Groups without an owner go by rendezvous hashing:
each to the member with the highest hash of (member, group) among those that have room. While replicas see different
states of a change they may want different things; once they see the same one, nobody wants anything more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

__all__ = ["assign_groups"]

_NOBODY: Mapping[int, str] = {}


def assign_groups(members: Iterable[str], groups: int, owners: Mapping[int, str] = _NOBODY) -> dict[int, str]:
    """The owner of each group, 0 to groups - 1; empty when there is no member.

    `owners`: of the groups that have one; those of others than the members count as having none. With more members than
    groups those that have nothing stay without, as long as nobody leaves.
    """
    names = sorted(set(members))
    if not names:
        return {}
    share, rest = divmod(groups, len(names))
    held: dict[str, list[int]] = {name: [] for name in names}
    for group, owner in owners.items():
        if owner in held and 0 <= group < groups:
            held[owner].append(group)
    # One more than the even share for those who have it already. Whoever is about to give groups away counts no more
    # than others who have it, so it is the same ones from the first to the last group given.
    order = sorted(names, key=lambda name: (-min(len(held[name]), share + 1), name))
    room = {name: share + (place < rest) for place, name in enumerate(order)}
    targets: dict[int, str] = {}
    for name, kept in held.items():
        if len(kept) > room[name]:
            kept.sort(key=lambda group: _weight(name, group), reverse=True)
        for group in kept[: room[name]]:
            targets[group] = name
        room[name] -= min(len(kept), room[name])
    open_to = [name for name in names if room[name]]
    for group in range(groups):
        if group not in targets:
            name = max(open_to, key=lambda member: _weight(member, group))
            targets[group] = name
            room[name] -= 1
            if not room[name]:
                open_to.remove(name)
    return targets


def _weight(member: str, group: int) -> bytes:
    return blake2b(f"{member}/{group}".encode(), digest_size=8).digest()
