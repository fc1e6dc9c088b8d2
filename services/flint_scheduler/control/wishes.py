"""What a row in a run's inbox asks for, as bytes and back."""

from __future__ import annotations

from typing import Final

import orjson

from flint_store.commands import Verb

__all__ = ["COMMANDS", "cancel_payload", "cancel_wish"]

COMMANDS: Final = frozenset({Verb.TERMINATE, Verb.PAUSE, Verb.RESUME, Verb.LEVEL, Verb.RESET})
"""Kinds of rows that the commander serves."""

_MARK: Final = b'{"grace_ms":'


def cancel_payload(reason: str, grace_ms: int) -> bytes:
    """A cancel's row. `grace_ms`: how long calls in progress may go on; -1: the usual time."""
    return orjson.dumps({"grace_ms": grace_ms, "reason": reason})


def cancel_wish(payload: str) -> tuple[str, int]:
    """Reason and grace of a cancel's row; one that is plain text is a reason alone."""
    if payload.encode().startswith(_MARK):
        try:
            wish = orjson.loads(payload)
            return str(wish["reason"]), int(wish["grace_ms"])
        except (ValueError, KeyError, TypeError):
            return payload, -1
    return payload, -1
