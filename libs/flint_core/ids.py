"""Ids of runs: UUIDs of version 7 that carry their shard.

Layout (RFC 9562): 48 bits of Unix milliseconds, version 7, `rand_a` whose low ten bits are the shard, variant, 62
random bits. So ids sort by creation, and the shard of a run is known from its id alone, without a hash and without a
lookup: a scheduler that accepts a run draws an id in a shard it owns.
"""

from __future__ import annotations

import uuid

__all__ = [
    "SHARDS",
    "created_ms",
    "group_of_run",
    "group_of_shard",
    "make_run_id",
    "parse_run_id",
    "run_id_text",
    "shard_of_run",
]

SHARDS = 1024
"""Number of fixed partitions of the runs. Never changes."""


def make_run_id(shard: int, now_ms: int, random_bytes: bytes) -> bytes:
    """A new run id (16 bytes) in the given shard. `random_bytes`: 9 fresh random bytes."""
    if not 0 <= shard < SHARDS:
        raise ValueError(f"shard {shard} is not within 0..{SHARDS - 1}")
    if len(random_bytes) != 9:
        raise ValueError("a run id needs 9 random bytes")
    rand_a = 0x7000 | ((random_bytes[8] & 0x3) << 10) | shard
    low = bytes([0x80 | (random_bytes[0] & 0x3F)]) + random_bytes[1:8]
    return now_ms.to_bytes(6, "big") + rand_a.to_bytes(2, "big") + low


def created_ms(run_id: bytes) -> int:
    """When the run was accepted, Unix milliseconds: the time in its id, and its create_time."""
    return int.from_bytes(run_id[:6], "big")


def shard_of_run(run_id: bytes) -> int:
    """The shard that a run belongs to, 0 to 1023."""
    return int.from_bytes(run_id[6:8], "big") & 0x3FF


def group_of_shard(shard: int, groups: int) -> int:
    """The group in which a shard's ownership moves."""
    return shard % groups


def group_of_run(run_id: bytes, groups: int) -> int:
    """The group that a run belongs to."""
    return group_of_shard(shard_of_run(run_id), groups)


def parse_run_id(text: str) -> bytes | None:
    """The 16 bytes of a run id's canonical text, or None when the text is not one."""
    try:
        value = uuid.UUID(text)
    except ValueError:
        return None
    if value.version != 7 or str(value) != text.lower():
        return None
    return value.bytes


def run_id_text(run_id: bytes) -> str:
    """The canonical text of a run id; the reverse of `parse_run_id`."""
    text = run_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
