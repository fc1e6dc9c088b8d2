"""Jobs as messages: what a worker reads of them, how many are together, in which order, and how they are numbered."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_core.queueing import Placement, QueueHints
from flint_scheduler.cards import Phase, RunCard
from flint_scheduler.fleet import WorkerView
from flint_scheduler.jobs import MOST_BYTES, MOST_JOBS, JobWriter, Parcel
from flint_store.branches import BRANCH_REQUEST_PREFIX
from flint_store.legs import LegStart
from flint_store.mail import Letter, Mail
from flint_worker.intake import jobs_in

SESSION = os.urandom(16)
SERVER_TAKES = 2**20


def leg(data: bytes = b"{}", level: int = 5, workflow: str = "w") -> RunCard:
    card = RunCard(
        os.urandom(16),
        "default",
        workflow,
        "1.0.0",
        workflow.encode() * 32,
        7,
        level,
        1_000,
        os.urandom(16),
        Phase.OPEN,
    )
    card.leg, card.nonce, card.claimant, card.generation = 1, os.urandom(16), "inc", 3
    card.start, card.expected_sequence = LegStart(data, b""), 0
    return card


def worker(*, batches: bool = True) -> WorkerView:
    return WorkerView(registry_pb2.WorkerCard(incarnation="inc", slots=10, job_batches=batches))


def pack(cards: Sequence[RunCard], to: WorkerView | None, most_bytes: int = SERVER_TAKES) -> list[Parcel]:
    return JobWriter().pack(cards, to, SESSION, 5_000, most_bytes)


def read(parcels: Sequence[Parcel]) -> list[dispatch_pb2.Job]:
    return [job for parcel in parcels for job in jobs_in(parcel.data)]


def test_a_job_says_everything_of_its_leg() -> None:
    card = leg()
    card.start = LegStart(b"", b"snapshot", [b"e1", b""], ["a"], Mail([Letter("k", "a", b"1")]), 2, 99)
    card.expected_sequence, card.position, card.leg = 44, 12, 3
    card.cancel_requested = card.compensates = True
    card.hints = QueueHints(pool="own", region="eu")
    card.placement = Placement("gpu", "us", 0, "urgent")
    card.request_id = f"{BRANCH_REQUEST_PREFIX}x"
    view = worker()
    view.sequence, view.watermark = 8, 6
    (job,) = read(pack([card], view))
    assert card.nonce is not None
    assert job == dispatch_pb2.Job(
        run_id=card.run_id,
        namespace="default",
        workflow_id="w",
        version="1.0.0",
        definition_hash=b"w" * 32,
        leg=3,
        leg_nonce=card.nonce,
        claimant="inc",
        generation=3,
        group=7,
        expected_sequence=44,
        position=12,
        snapshot=b"snapshot",
        events=[b"e1", b""],
        create_time_ms=1_000,
        level=5,
        trace_id=card.trace_id,
        owner_session=SESSION,
        sequence=9,
        watermark=6,
        cancel_requested=True,
        open_time_ms=5_000,
        seed=int.from_bytes(card.run_id[8:], "big"),
        inbox=[dispatch_pb2.InboxMessage(key="k", await_key="a", content=b"1")],
        awaits=["a"],
        compensates=True,
        branch=True,
        rebuild=dispatch_pb2.Rebuild(reset=2, time_ms=99),
        pool="gpu",
        region="us",
        own_pool="own",
        own_region="eu",
        leg_level="urgent",
    )
    assert card.start is None
    assert card.job_sequence == 9


def test_legs_of_one_worker_are_one_message_named_by_the_first_and_numbered_densely() -> None:
    cards = [leg(b'{"n": %d}' % n, workflow="ab"[n % 2]) for n in range(MOST_JOBS)]
    view = worker()
    (parcel,) = pack(cards, view)
    jobs = read([parcel])
    assert [job.leg_nonce for job in jobs] == [card.nonce for card in cards]
    assert [job.input for job in jobs] == [b'{"n": %d}' % n for n in range(MOST_JOBS)]
    assert [job.workflow_id for job in jobs] == ["ab"[n % 2] for n in range(MOST_JOBS)]
    assert [job.sequence for job in jobs] == list(range(1, MOST_JOBS + 1)) == [c.job_sequence for c in cards]
    assert parcel.message_id == jobs[0].leg_nonce.hex()
    assert view.sequence == MOST_JOBS


def test_a_message_has_its_bounds() -> None:
    view = worker()
    assert [len(p.jobs) for p in pack([leg() for _ in range(2 * MOST_JOBS + 1)], view)] == [MOST_JOBS, MOST_JOBS, 1]
    large = [leg(b"x" * 100_000) for _ in range(5)]
    parcels = pack(large, view)
    assert [len(p.jobs) for p in parcels] == [2, 2, 1]
    assert all(len(p.data) <= MOST_BYTES for p in parcels)
    narrow = pack([leg(b"x" * 10_000) for _ in range(6)], view, most_bytes=32_000)
    assert [len(p.jobs) for p in narrow] == [3, 3]
    assert all(len(p.data) <= 32_000 for p in narrow)
    assert [j.sequence for j in read([*parcels, *narrow])] == list(range(2 * MOST_JOBS + 2, 2 * MOST_JOBS + 13))


def test_what_is_too_large_for_company_is_alone_and_keeps_its_place() -> None:
    cards = [leg(), leg(b"x" * 2 * MOST_BYTES), leg(), leg()]
    parcels = pack(cards, worker())
    assert [len(p.jobs) for p in parcels] == [1, 1, 2]
    assert [job.leg_nonce for job in read(parcels)] == [card.nonce for card in cards]


def test_urgent_legs_are_first_and_the_others_as_they_came() -> None:
    cards = [leg(level=level) for level in (5, 0, 9, 1, 0, 5)]
    view = worker()
    jobs = read(pack(cards, view))
    assert [job.leg_nonce for job in jobs] == [cards[n].nonce for n in (1, 4, 0, 2, 3, 5)]
    assert [job.sequence for job in jobs] == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_reads_no_batches_is_sent_one_job_a_message() -> None:
    cards = [leg() for _ in range(3)]
    parcels = pack(cards, worker(batches=False))
    assert [p.message_id for p in parcels] == [c.nonce.hex() for c in cards if c.nonce is not None]
    assert [dispatch_pb2.Job.FromString(p.data).leg_nonce for p in parcels] == [c.nonce for c in cards]
    assert [job.leg_nonce for job in read(parcels)] == [c.nonce for c in cards]


def test_legs_of_a_worker_that_has_ended_are_not_numbered() -> None:
    cards = [leg() for _ in range(2)]
    assert [job.sequence for job in read(pack(cards, None))] == [0, 0]
    assert [card.job_sequence for card in cards] == [0, 0]


def test_a_message_that_is_too_large_after_all_is_taken_apart() -> None:
    (parcel,) = pack([leg() for _ in range(3)], worker())
    parts = list(parcel.singly())
    assert [p.message_id for p in parts] == [c.nonce.hex() for c in parcel.cards if c.nonce is not None]
    assert [j.leg_nonce for j in read(parts)] == [j.leg_nonce for j in read([parcel])]
