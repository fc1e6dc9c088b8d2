"""Concurrency keys and rates of a definition: how they are compiled, and what they are for one run. Pure.

Compiled members (in the program's `queue`): `concurrency` [{key?, limit | named, overflow}], `rates` [{key?, count,
period_ms, burst | named}]. A `key` is whatever the caller's compiler of keys makes of it. In the record a run's key
tells where it comes from, so that no two of these are ever the same: `workflow/<id>` without a key and with numbers,
`key/<text>` with a key, `limit/<name>` with a named limit, `limit/<name>/<text>` with both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from flint_core.queueing import ConcurrencyKey, RateKey

__all__ = [
    "LIMIT_NAME",
    "MOST_BURST",
    "MOST_KEYS",
    "MOST_KEY_BYTES",
    "MOST_LIMIT",
    "MOST_PERIOD_MS",
    "OVERFLOWS",
    "KeyTooLong",
    "permits_of",
]

OVERFLOWS: Final = ("queue", "refuse", "replace")
MOST_KEYS: Final = 4
"""Concurrency keys of one definition, and as many rates."""
MOST_LIMIT: Final = 1_000_000
MOST_BURST: Final = 10_000
MOST_PERIOD_MS: Final = 31 * 86_400_000
MOST_KEY_BYTES: Final = 500
LIMIT_NAME: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""Names of limits that operators set, as of workflows."""


class KeyTooLong(ValueError):
    """A key's text is longer than `MOST_KEY_BYTES`."""


def permits_of(
    queue: Mapping[str, Any], workflow_id: str, text_of: Callable[[Any], str]
) -> tuple[tuple[ConcurrencyKey, ...], tuple[RateKey, ...]]:
    """What a run asks for. `text_of` evaluates a compiled key over the run's input.

    Raises KeyTooLong, and whatever `text_of` raises.
    """
    places = [
        ConcurrencyKey(
            key=_key(member, workflow_id, text_of),
            limit=member.get("limit", 0),
            overflow=member.get("overflow", "queue"),
            named=member.get("named", ""),
        )
        for member in queue.get("concurrency", ())
    ]
    rates = [
        RateKey(
            key=_key(member, workflow_id, text_of),
            count=member.get("count", 0),
            period_ms=member.get("period_ms", 0),
            burst=member.get("burst", 1),
            named=member.get("named", ""),
        )
        for member in queue.get("rates", ())
    ]
    # Two members that turn out to be one key are one permit: the first says how many there are.
    return tuple({p.key: p for p in reversed(places)}.values())[::-1], tuple(
        {r.key: r for r in reversed(rates)}.values()
    )[::-1]


def _key(member: Mapping[str, Any], workflow_id: str, text_of: Callable[[Any], str]) -> str:
    named = member.get("named", "")
    if "key" not in member:
        return f"limit/{named}" if named else f"workflow/{workflow_id}"
    text = text_of(member["key"])
    if len(text.encode()) > MOST_KEY_BYTES:
        raise KeyTooLong(f"a key of {len(text.encode())} bytes; at most {MOST_KEY_BYTES}")
    if "\0" in text:
        raise KeyTooLong("a key with the character NUL")
    return f"limit/{named}/{text}" if named else f"key/{text}"
