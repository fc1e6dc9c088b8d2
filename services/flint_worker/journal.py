"""The leg's end of the journal: entries with their fence, appended until it is known what became of them (R8, R9).

How they travel, and what is done until that is known, is the lane's (`lanes.py`).
"""

from __future__ import annotations

from flint_bus import Bus, MessageTooLarge
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_worker.lanes import Lanes, LegStopped, Member
from flint_worker.lease import Lease

__all__ = ["JournalWriter", "LegStopped"]


class JournalWriter:
    """Appends one leg's entries in order. One append at a time."""

    def __init__(self, bus: Bus, lease: Lease, job: dispatch_pb2.Job, lanes: Lanes) -> None:
        self._bus = bus
        self._lease = lease
        self._lane = lanes.of(job)
        self._member = Member()
        self._index = job.position + 1
        self._job = job
        self.written = 0
        """Entries stored by this leg."""

    @property
    def unsure(self) -> bool:
        """Whether an append is being tried again."""
        return self._lane.unsure and self._member.pending is not None

    def give_up(self) -> None:
        """Stop trying, the journal is gone."""
        self._lane.give_up(self._member)

    async def append(self, entry: journal_pb2.JournalEntry) -> None:
        """Returns when the entry is stored. What says whose entry it is and which one is added to it here.

        Raises LegStopped, MessageTooLarge before anything was sent, or AppendRefused when it will never be stored.
        """
        job = self._job
        entry.run_id = job.run_id
        entry.leg_nonce = job.leg_nonce
        entry.leg = job.leg
        entry.claimant = job.claimant
        entry.index = self._index
        data = entry.SerializeToString()
        if not self._lease.valid():
            raise LegStopped("lease")
        if len(data) > self._bus.max_append:
            raise MessageTooLarge(f"{len(data)} bytes; the server takes {self._bus.max_append} beside headers")
        await self._lane.append(data, self._member)
        self._index += 1
        self.written += 1
