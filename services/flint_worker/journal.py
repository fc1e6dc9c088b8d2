"""The leg's end of the journal: entries with their fence, appended until it is known what became of them (R8, R9).

How they travel, and what is done until that is known, is the lane's (`lanes.py`).
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

from flint_bus import Bus, MessageTooLarge
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.journal import field, varint
from flint_worker.lanes import Lanes, LegStopped, Member
from flint_worker.lease import Lease

__all__ = ["JournalWriter", "LegStopped"]

_RUN: Final = field(journal_pb2.JournalEntry.RUN_ID_FIELD_NUMBER)
_NONCE: Final = field(journal_pb2.JournalEntry.LEG_NONCE_FIELD_NUMBER)
_INDEX: Final = varint(journal_pb2.JournalEntry.INDEX_FIELD_NUMBER << 3)


class JournalWriter:
    """Appends one leg's entries in order. One append at a time."""

    __slots__ = ("_bus", "_lane", "_lease", "_member", "_position", "_whose")

    def __init__(self, bus: Bus, lease: Lease, job: dispatch_pb2.Job, lanes: Lanes) -> None:
        self._bus = bus
        self._lease = lease
        self._lane = lanes.of(job)
        self._member = Member()
        self._position = job.position
        run, nonce = job.run_id, job.leg_nonce
        self._whose = b"".join(
            (_RUN, varint(len(run)), run, _NONCE, varint(len(nonce)), nonce, _leg_and_claimant(job.leg, job.claimant))
        )

    @property
    def unsure(self) -> bool:
        """Whether an append is being tried again."""
        pending = self._member.pending
        return self._lane.unsure and pending is not None and not pending.done()

    def give_up(self) -> None:
        """Stop trying, the journal is gone."""
        self._lane.give_up(self._member)

    def append(self, entry: bytes) -> asyncio.Future[None]:
        """Done when the entry is stored. `entry` is the encoded one without whose it is and which, which is added here.

        Raises LegStopped, or MessageTooLarge before anything was sent. The future raises LegStopped, or AppendRefused
        when it will never be stored; when it is cancelled, the entry may be stored or not.
        """
        member = self._member
        data = b"".join((self._whose, _INDEX, varint(self._position + member.stored + 1), entry))
        if not self._lease.valid():
            raise LegStopped("lease")
        if len(data) > self._bus.max_append:
            raise MessageTooLarge(f"{len(data)} bytes; the server takes {self._bus.max_append} beside headers")
        return self._lane.append(data, member)


@lru_cache(maxsize=256)
def _leg_and_claimant(leg: int, claimant: str) -> bytes:
    return journal_pb2.JournalEntry(leg=leg, claimant=claimant).SerializeToString()
