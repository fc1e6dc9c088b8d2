"""Journal entries that travel together, put into one message as they are: each was encoded before, once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flint_contracts.gen.flint.journal.v1 import journal_pb2

__all__ = ["FRAME_BYTES", "field", "together", "varint"]

FRAME_BYTES: Final = 7
"""What `together` adds to an entry, at most."""


def together(entries: Iterable[bytes]) -> bytes:
    """A JournalEntry that holds these encoded ones as `together`."""
    parts: list[bytes] = []
    for entry in entries:
        parts += (_TAG, varint(len(entry)), entry)
    return b"".join(parts)


def varint(number: int) -> bytes:
    """A number, not negative, as protobuf writes it: seven bits a byte, the lowest first."""
    return _SMALL[number] if number < len(_SMALL) else _varint(number)


def field(number: int) -> bytes:
    """What begins a field that has a length: bytes, text, a message. Its length, and it, follow."""
    return _varint(number << 3 | 2)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL: Final = [_varint(number) for number in range(1_024)]
_TAG: Final = field(journal_pb2.JournalEntry.TOGETHER_FIELD_NUMBER)
