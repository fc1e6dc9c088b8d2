"""What frames hold, in bytes, as functions of the state alone: so that a restored run counts alike."""

from __future__ import annotations

from typing import Any, Final

from flint_core.engine.frames import Frame
from flint_core.sizes import weigh

__all__ = ["ENTRY", "held_by_for", "held_by_listen", "key_weight", "mail_weight"]

ENTRY: Final = 8
"""What a gathered value weighs beside itself."""


def mail_weight(key: str, content: Any) -> int:
    """What an event weighs that waits behind the one that is being looked at."""
    return weigh(content) + key_weight(key)


def key_weight(key: str) -> int:
    """What a remembered key weighs."""
    return len(key) + 3


def held_by_listen(frame: Frame) -> int:
    """What the frame holds: events that wait, keys, correlations, what was gathered."""
    notes = frame.notes or {}
    held: int = notes.get("weight", 0)
    held += sum(mail_weight(key, content) for key, content in (frame.mail or ())[1:])
    held += sum(key_weight(key) for key in notes.get("keys", ()))
    held += sum(weigh(value) + ENTRY for value in frame.gathered or ())
    return held


def held_by_for(frame: Frame) -> int:
    """What a loop holds: the collection, and outputs where they are gathered."""
    return weigh(frame.items) + sum(weigh(value) for value in frame.gathered or ())
