"""Request ids of starts by schedules: `~schedule/<kind>/<schedule>/<moment in ms, or a hash of events>`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final

from flint_core.ids import parse_run_id, run_id_text

__all__ = ["SCHEDULE_REQUEST_PREFIX", "request_by_events", "request_by_time", "schedule_after", "scheduled_at"]

SCHEDULE_REQUEST_PREFIX: Final = "~schedule/"
"""Clients cannot use it and do not see it."""

_AFTER: Final = f"{SCHEDULE_REQUEST_PREFIX}after/"


def request_by_time(kind: str, schedule_id: bytes, at_ms: int) -> str:
    """The request id of the start for a moment."""
    return f"{SCHEDULE_REQUEST_PREFIX}{kind}/{run_id_text(schedule_id)}/{at_ms}"


def request_by_events(schedule_id: bytes, keys: Iterable[str]) -> str:
    """The request id of the start that has these events."""
    digest = blake2b("\0".join(keys).encode(), digest_size=16).hexdigest()
    return f"{SCHEDULE_REQUEST_PREFIX}on/{run_id_text(schedule_id)}/{digest}"


def schedule_after(request_id: str) -> bytes | None:
    """The schedule that waits for the end of the run with this request id, if one does."""
    if not request_id.startswith(_AFTER):
        return None
    return parse_run_id(request_id.split("/")[2])


def scheduled_at(request_id: str) -> datetime | None:
    """The moment in a request id made here; None for a start by events."""
    _, kind, _, moment = request_id.split("/")
    return None if kind == "on" else datetime.fromtimestamp(int(moment) / 1000, UTC)
