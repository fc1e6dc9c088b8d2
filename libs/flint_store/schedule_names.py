"""Request ids of starts by schedules: `~schedule/<kind>/<schedule>/<moment in ms, or a hash>`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final

from flint_core.ids import parse_run_id, run_id_text

__all__ = [
    "SCHEDULE_REQUEST_PREFIX",
    "request_by_events",
    "request_by_time",
    "request_by_trigger",
    "requests_by_time",
    "schedule_of",
    "scheduled_at",
]

SCHEDULE_REQUEST_PREFIX: Final = "~schedule/"
"""Clients cannot use it and do not see it."""

_TIMED: Final = ("after", "at", "cron", "every")  # `at`: of schedules that are objects of their own


def request_by_time(kind: str, schedule_id: bytes, at_ms: int) -> str:
    """The request id of the start for a moment."""
    return f"{SCHEDULE_REQUEST_PREFIX}{kind}/{run_id_text(schedule_id)}/{at_ms}"


def requests_by_time(kind: str, schedule_id: bytes) -> str:
    """What the request ids of all starts by time of a schedule begin with; the moments follow in order."""
    return f"{SCHEDULE_REQUEST_PREFIX}{kind}/{run_id_text(schedule_id)}/"


def request_by_trigger(schedule_id: bytes, request_id: str) -> str:
    """The request id of a start that somebody asked for."""
    digest = blake2b(request_id.encode(), digest_size=16).hexdigest()
    return f"{SCHEDULE_REQUEST_PREFIX}trigger/{run_id_text(schedule_id)}/{digest}"


def request_by_events(schedule_id: bytes, keys: Iterable[str]) -> str:
    """The request id of the start that has these events."""
    digest = blake2b("\0".join(keys).encode(), digest_size=16).hexdigest()
    return f"{SCHEDULE_REQUEST_PREFIX}on/{run_id_text(schedule_id)}/{digest}"


def schedule_of(request_id: str) -> bytes | None:
    """The schedule that may wait for the end of the run with this request id, if one may."""
    if not request_id.startswith(SCHEDULE_REQUEST_PREFIX):
        return None
    _, kind, schedule, _ = request_id.split("/")
    return parse_run_id(schedule) if kind in _TIMED else None


def scheduled_at(request_id: str) -> datetime | None:
    """The moment in a request id made here; None for a start by events or by hand."""
    _, kind, _, moment = request_id.split("/")
    return datetime.fromtimestamp(int(moment) / 1000, UTC) if kind in _TIMED else None
