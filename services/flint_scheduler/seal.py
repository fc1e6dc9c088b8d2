"""The SEAL: the owner's barrier in a run's journal (R8, R9, R10).

It is a write, so whatever was appended before it has a lower sequence. What the former claimant tries to append after
it is refused: by JetStream on the run's own subject, because its expected sequence is no longer the last, and by the
fold in a worker's lane (decision 0027). Its sequence is the next leg's first expected one on the run's subject.
"""

from __future__ import annotations

import os

from flint_bus import Bus
from flint_bus.subjects import journal_stream, journal_subject
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_scheduler.cards import RunCard
from flint_store.fence import OwnerSession

__all__ = ["append_seal"]


async def append_seal(bus: Bus, card: RunCard, generation: int, session: OwnerSession, timeout_s: float) -> int:
    """Append a SEAL behind the run's current (or last) leg; answers its sequence. Raises BusError."""
    entry = journal_pb2.JournalEntry(
        run_id=card.run_id,
        leg_nonce=card.nonce or b"",
        leg=card.leg,
        seal=True,
        seal_session=session.session_id.bytes,
    )
    return await bus.append(
        journal_subject(generation, card.group, card.run_id),
        entry.SerializeToString(),
        msg_id=f"seal.{os.urandom(12).hex()}",
        stream=journal_stream(generation),
        expected_sequence=None,
        timeout_s=timeout_s,
    )
