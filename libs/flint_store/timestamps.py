"""PostgreSQL's times as protobuf timestamps, fast: lists of runs hold thousands of them."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["from_timestamp", "set_timestamp"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def set_timestamp(target: Timestamp, value: datetime | None) -> None:
    """Set a message's timestamp field from an aware datetime; None leaves it unset."""
    if value is not None:
        since = value - _EPOCH
        target.seconds = since.days * 86_400 + since.seconds
        target.nanos = since.microseconds * 1000


def from_timestamp(value: Timestamp) -> datetime:
    """The aware datetime (UTC, microseconds) of a timestamp."""
    return value.ToDatetime(tzinfo=UTC)
