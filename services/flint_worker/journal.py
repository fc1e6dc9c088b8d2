"""The leg's end of the journal: entries with their fence, appended until it is known what became of them (R8, R9).

States of one append: SENT → STORED, or → UNSURE (no answer, the stream is missing or full): sent again with the same id
and the same expected sequence, for as long as the lease holds and nobody told us to give up, or → STOPPED: the subject
moved on without us. Repeating is safe: the same entry can be stored once only.
"""

from __future__ import annotations

import asyncio
from typing import Final

from flint_bus import AppendUnknown, Bus, BusError, SequenceMismatch, StreamFull, StreamMissing, journal_stream
from flint_bus.subjects import journal_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.queueing import URGENT
from flint_ops.clock import boottime
from flint_worker.lease import Lease
from flint_worker.telemetry import APPEND_RETRIES, APPENDS

__all__ = ["JournalWriter", "LegStopped"]

_PURGED_AFTER_S: Final = 8.0
"""Below the smallest `journal.keep_folded_s`."""
_APPEND_TIMEOUT_S: Final = 2.0
_READ_TIMEOUT_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0


class LegStopped(Exception):
    """The leg must stop without another word, because it is not its word any more or has been said.

    `reason`: lease, superseded, given-up, failed. What is not stored for another reason ends the run (leg.py).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JournalWriter:
    """Appends one leg's entries in order. One append at a time."""

    def __init__(self, bus: Bus, lease: Lease, job: dispatch_pb2.Job) -> None:
        self._bus = bus
        self._lease = lease
        self._nonce = job.leg_nonce.hex()
        self._subject = journal_subject(job.generation, job.group, job.run_id)
        self._stream = journal_stream(job.generation)
        self._expected: int = job.expected_sequence
        self._index = job.position + 1
        self._job = job
        self._patient = job.level != URGENT
        self._stored_at = boottime()
        self.give_up = asyncio.Event()
        """Set: stop trying, the journal is gone."""
        self.unsure = False
        """Whether an append is being tried again."""
        self.written = 0
        """Entries stored by this leg."""

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
        msg_id = f"{self._nonce}.{self._index}"
        pause_s = _FIRST_PAUSE_S
        while True:
            if not self._lease.valid():
                raise LegStopped("lease")
            try:
                sequence = await self._bus.append(
                    self._subject,
                    data,
                    msg_id=msg_id,
                    stream=self._stream,
                    expected_sequence=self._expected,
                    timeout_s=_APPEND_TIMEOUT_S,
                    patient=self._patient,
                )
            except SequenceMismatch:
                found = await self._sequence_of(msg_id)
                if found is None:
                    self._expected = 0  # the subject's entries have left by age or purge: its sequence is 0 again (R8)
                    continue
                sequence = found
            except (AppendUnknown, StreamMissing, StreamFull):
                APPEND_RETRIES.inc()
                self.unsure = True
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            self.unsure = False
            self._expected = sequence
            self._stored_at = boottime()
            self._index += 1
            self.written += 1
            APPENDS.inc()
            return

    async def _sequence_of(self, msg_id: str) -> int | None:
        """After error 10071: the subject's last message is ours (an acknowledgement was lost), or we stop (R9).

        None when the subject is empty although something was expected: folded entries are purged, never before
        `journal.keep_folded_s`; earlier than that they were lost, and the leg stops.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            if not self._lease.valid():
                raise LegStopped("lease")
            try:
                last = await self._bus.last_message(self._stream, self._subject, _READ_TIMEOUT_S)
            except BusError:
                self.unsure = True
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            if last is not None and last.msg_id == msg_id:
                return last.sequence
            if last is None and self._expected and boottime() - self._stored_at > _PURGED_AFTER_S:
                return None
            raise LegStopped("superseded")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(min(seconds, max(0.001, self._lease.remaining_s))):
                await self.give_up.wait()
        except TimeoutError:
            return
        raise LegStopped("given-up")
