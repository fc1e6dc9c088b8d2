"""Readings: messages of the journal as they come to the fold, and the entries in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from flint_bus import StoredMessage
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_scheduler.holdings import GroupHolding

__all__ = ["Item", "Reading"]

Item = tuple[StoredMessage, int, journal_pb2.JournalEntry | None]
"""An entry: the message that it came in, its place there, and itself (None: not decodable)."""


@dataclass(slots=True)
class Reading:
    """What is to be folded of one group's journal, read under one holding, in the order of the stream for each run."""

    holding: GroupHolding
    generation: int
    messages: list[StoredMessage]
    read_at: float  # loop time
    entries: list[Item] = field(default_factory=list)
    ahead: bool = False  # it overtakes; the same entries come again in their place
    upto: int = 0  # what lies before, this included, is in the record when the reading is: a sequence of the stream
    size: int = 0  # bytes
    spent: bool = False  # its entries were taken apart

    def __post_init__(self) -> None:
        self.size = 0 if self.ahead else sum([len(m.data) for m in self.messages])

    def decode(self) -> None:
        """Parse the entries of its messages."""
        self.entries = [(m, place, entry) for m in self.messages for place, entry in enumerate(_decode(m))]

    def again(self) -> None:
        """Parse the same entries anew: they are to be judged once more."""
        known: dict[int, Sequence[journal_pb2.JournalEntry | None]] = {}
        entries: list[Item] = []
        for message, place, _ in self.entries:
            found = known.get(message.sequence)
            if found is None:
                found = known[message.sequence] = _decode(message)
            entries.append((message, place, found[place]))
        self.entries = entries
        self.spent = False


def _decode(message: StoredMessage) -> Sequence[journal_pb2.JournalEntry | None]:
    """The entries of one message: one, or several that travelled together."""
    entry = journal_pb2.JournalEntry()
    try:
        entry.ParseFromString(message.data)
    except DecodeError:
        return (None,)
    return entry.together or (entry,)
