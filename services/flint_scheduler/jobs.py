"""Jobs as messages: the legs of one commit for one worker travel together.

What many jobs have in common is serialised once: a Job is the concatenation of what its definition says, what its
worker and the moment say, and its own part (protobuf merges such parts when they are read).

A leg's nonce is in one message only, and a message is named by its first leg's nonce: so a message that comes again is
dropped like a lone job was (R3), and the worker takes each job once by its own memory of nonces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_core.queueing import URGENT
from flint_scheduler.cards import RunCard
from flint_scheduler.delivery import inbox_messages
from flint_scheduler.fleet import WorkerView
from flint_store.legs import LegStart

__all__ = ["MOST_BYTES", "MOST_JOBS", "JobWriter", "Parcel"]

MOST_JOBS: Final = 128
"""Jobs in one message."""
MOST_BYTES: Final = 256 * 1024
"""Bytes of several jobs in one message; a larger one is alone."""
_FRAME: Final = 8  # bytes that a job takes in a batch beside its own, at most
_KNOWN: Final = 1000
_NOTHING: Final = LegStart(b"", b"")


@dataclass(slots=True)
class Parcel:
    """Legs of one worker whose jobs are one message."""

    cards: list[RunCard] = field(default_factory=list)
    jobs: list[bytes] = field(default_factory=list)
    size: int = 0  # of the jobs, bytes
    batch: bool = True  # whether it is written as a JobBatch, even with one job

    @property
    def data(self) -> bytes:
        """The message."""
        return dispatch_pb2.JobBatch(jobs=self.jobs).SerializeToString() if self.batch else self.jobs[0]

    @property
    def message_id(self) -> str:
        """Names the message: the same one again is dropped."""
        nonce = self.cards[0].nonce
        return nonce.hex() if nonce is not None else ""

    def singly(self) -> Iterator[Parcel]:
        """Each job as a message of its own."""
        for card, job in zip(self.cards, self.jobs, strict=True):
            yield Parcel([card], [job], len(job), self.batch)


class JobWriter:
    """Writes jobs of legs that are open. Used from one event loop."""

    def __init__(self) -> None:
        self._definitions: dict[tuple[bytes, str, str, str], bytes] = {}

    def pack(
        self, cards: Sequence[RunCard], worker: WorkerView | None, session: bytes, now_ms: int, most_bytes: int
    ) -> list[Parcel]:
        """The messages for legs of one incarnation, in order: the urgent ones first, the others as they come.

        `worker`: None when it has ended meanwhile. Numbers the jobs. `most_bytes`: of one message.
        """
        if len(cards) > 1 and any(c.level == URGENT for c in cards):
            cards = sorted(cards, key=lambda c: c.level != URGENT)
        batches = worker is not None and worker.card.job_batches
        shared = dispatch_pb2.Job(
            claimant=cards[0].claimant or "",
            owner_session=session,
            open_time_ms=now_ms,
            watermark=worker.watermark if worker is not None else 0,
        ).SerializeToString()
        most_bytes = min(MOST_BYTES, most_bytes)
        parcels: list[Parcel] = []
        parcel: Parcel | None = None
        for card in cards:
            if worker is not None:
                worker.sequence += 1
                card.job_sequence = worker.sequence
            job = self._definition(card) + shared + _own_part(card)
            size = len(job) + _FRAME
            if parcel is None or not batches or len(parcel.jobs) >= MOST_JOBS or parcel.size + size > most_bytes:
                parcel = Parcel(batch=batches)
                parcels.append(parcel)
            parcel.cards.append(card)
            parcel.jobs.append(job)
            parcel.size += size
        return parcels

    def _definition(self, card: RunCard) -> bytes:
        key = (card.definition_hash, card.namespace, card.workflow_id, card.version)
        known = self._definitions.get(key)
        if known is None:
            if len(self._definitions) >= _KNOWN:
                self._definitions.clear()
            known = self._definitions[key] = dispatch_pb2.Job(
                namespace=card.namespace,
                workflow_id=card.workflow_id,
                version=card.version,
                definition_hash=card.definition_hash,
            ).SerializeToString()
        return known


def _own_part(card: RunCard) -> bytes:
    """What no other job says. Takes the card's start and expected sequence: the next leg has others."""
    start = card.start or _NOTHING
    run_id = card.run_id
    job = dispatch_pb2.Job(
        run_id=run_id,
        leg=card.leg,
        leg_nonce=card.nonce or b"",
        generation=card.generation,
        group=card.group,
        level=card.level,
        input=start.input,
        create_time_ms=card.created_ms,
        trace_id=card.trace_id,
        seed=int.from_bytes(run_id[8:], "big"),
        sequence=card.job_sequence,
    )
    # Most begin from their input alone.
    if card.expected_sequence:
        job.expected_sequence = card.expected_sequence
    if card.position:
        job.position = card.position
    if start.snapshot:
        job.snapshot = start.snapshot
    if start.events:
        job.events.extend(start.events)
    if start.awaits:
        job.awaits.extend(start.awaits)
    if start.mail.letters:
        job.inbox.extend(inbox_messages(start.mail))
    if start.reset:
        job.rebuild.reset = start.reset
        job.rebuild.time_ms = start.reset_ms
    if card.compensates:
        job.compensates = True
    if card.cancel_requested:
        job.cancel_requested = True
    if card.is_branch:
        job.branch = True
    own = card.hints
    if own is not None:
        job.own_pool, job.own_region = own.pool, own.region
    placed = card.placement
    if placed is not None:
        job.pool, job.region, job.leg_level = placed.pool, placed.region, placed.named
    card.start = None
    card.expected_sequence = None
    return job.SerializeToString()
