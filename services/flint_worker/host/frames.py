"""Messages on the host's socket: each preceded by its length, four bytes, big-endian."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_REQUEST_BYTES", "FrameTooLarge", "Frames", "framed"]

MOST_REQUEST_BYTES: Final = 2**20
_LENGTH: Final = 4


class FrameTooLarge(Exception):
    """The other side announced more than it may send."""


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self, most_bytes: int = MOST_REQUEST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now. Raises FrameTooLarge; then the stream is of no more use."""
        self._held += data
        found = []
        while len(self._held) >= _LENGTH:
            size = int.from_bytes(self._held[:_LENGTH], "big")
            if size > self._most_bytes:
                raise FrameTooLarge(f"a message of {size} bytes; at most {self._most_bytes} are taken")
            if len(self._held) < _LENGTH + size:
                break
            found.append(bytes(self._held[_LENGTH : _LENGTH + size]))
            del self._held[: _LENGTH + size]
        return found


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return len(message).to_bytes(_LENGTH, "big") + message
