"""What can go wrong on the bus.

BusError
├── BusTimeout          no answer in time
├── NoResponders        nobody listens on the subject of a request
├── Disconnected        the connection broke before the answer came; the request may have been served
├── MessageTooLarge     above the server's max_payload; nothing was sent
├── StreamApiError      JetStream refused an administrative request (code, err_code, description)
├── StreamLost          a consumer's stream is gone, is another one, or is behind what was seen of it
└── AppendFailed
    ├── SequenceMismatch  the subject's last sequence is another than expected; not stored
    ├── StreamMissing     no such stream, or the subject belongs to another one; not stored
    ├── StreamFull        discard-new refused it; not stored
    ├── AppendRefused     refused for another reason, and will be again; not stored
    └── AppendUnknown     no answer: it may or may not have been stored, even later
"""

from __future__ import annotations

__all__ = [
    "AppendFailed",
    "AppendRefused",
    "AppendUnknown",
    "BusError",
    "BusTimeout",
    "Disconnected",
    "MessageTooLarge",
    "NoResponders",
    "SequenceMismatch",
    "StreamApiError",
    "StreamFull",
    "StreamLost",
    "StreamMissing",
]


class BusError(Exception):
    """Base of all."""


class BusTimeout(BusError):
    """No answer in time."""


class NoResponders(BusError):
    """Nobody listens on the subject of a request."""


class Disconnected(BusError):
    """The connection broke before the answer came."""


class MessageTooLarge(BusError):
    """Above the server's max_payload. Nothing was sent."""


class StreamApiError(BusError):
    """JetStream refused an administrative request."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} (code {code}, err_code {err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class StreamLost(BusError):
    """A consumer's stream is gone, is another one, or is behind what was seen of it."""


class AppendFailed(BusError):
    """Base of what an append raises."""


class SequenceMismatch(AppendFailed):
    """The subject's last sequence is another than expected: not stored. `last` is it, where the server told."""

    def __init__(self, message: str, last: int | None) -> None:
        super().__init__(message)
        self.last = last


class StreamMissing(AppendFailed):
    """No such stream, or the subject belongs to another one: not stored."""


class StreamFull(AppendFailed):
    """The stream is at its limit and discards what is new: not stored."""


class AppendRefused(AppendFailed):
    """Refused for a reason that will not go away by itself: not stored."""


class AppendUnknown(AppendFailed):
    """No answer: it may or may not have been stored, and may yet be. Trying again is safe only with a message id."""
