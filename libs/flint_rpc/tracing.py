"""W3C trace context: the 16 bytes of a trace id from `traceparent`, or fresh ones."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

__all__ = ["new_trace_id", "new_trace_ids", "trace_id_of"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_NONE = bytes(16)


def new_trace_id() -> bytes:
    """Random, 16 bytes, never all zero."""
    return os.urandom(15) + b"\x01"


def new_trace_ids(count: int) -> list[bytes]:
    """So many at once: the system is asked once, which costs more than the bytes do."""
    drawn = os.urandom(15 * count)
    return [drawn[at : at + 15] + b"\x01" for at in range(0, 15 * count, 15)]


def trace_id_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> bytes:
    """The caller's trace id from its `traceparent`; a new one when there is none, or a malformed one."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str):
            match = _TRACEPARENT.fullmatch(value)
            if match is not None and not value.startswith("ff"):
                trace_id = bytes.fromhex(match[1])
                if trace_id != _NONE:
                    return trace_id
    return new_trace_id()
