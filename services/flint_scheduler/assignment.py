"""Who should own which shard group: pure, the same answer on every replica that sees the same members.

Rendezvous hashing with a bound: every group prefers the member with the highest hash of (member, group), but no
member gets more than its even share. So ownership is even, and when a member joins or leaves few groups move.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

__all__ = ["assign_groups"]


def assign_groups(members: Iterable[str], groups: int) -> dict[int, str]:
    """The owner of each group, 0 to groups - 1; empty when there is no member."""
    names = sorted(set(members))
    if not names:
        return {}
    share, rest = divmod(groups, len(names))
    load = dict.fromkeys(names, 0)
    full = 0  # members above the even share; at most `rest` may be
    owners: dict[int, str] = {}
    for group in range(groups):
        for name in sorted(names, key=lambda n: _weight(n, group), reverse=True):
            if load[name] < share or (load[name] == share and full < rest):
                full += load[name] == share
                load[name] += 1
                owners[group] = name
                break
    return owners


def _weight(member: str, group: int) -> bytes:
    return blake2b(f"{member}/{group}".encode(), digest_size=8).digest()
