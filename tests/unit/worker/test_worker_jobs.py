"""Messages with jobs: several in one, one by itself as older schedulers write it, and what cannot be read."""

from __future__ import annotations

import os

from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_worker.intake import jobs_in


def job(number: int) -> dispatch_pb2.Job:
    return dispatch_pb2.Job(run_id=os.urandom(16), leg_nonce=bytes([number]) * 16, leg=number, input=b"{}", seed=2**63)


def test_a_batch_gives_its_jobs_in_order() -> None:
    jobs = [job(number) for number in range(1, 6)]
    batch = dispatch_pb2.JobBatch(jobs=[j.SerializeToString() for j in jobs])
    assert list(jobs_in(batch.SerializeToString())) == jobs


def test_a_job_by_itself_is_one() -> None:
    alone = job(3)
    assert list(jobs_in(alone.SerializeToString())) == [alone]


def test_what_cannot_be_read_harms_no_other() -> None:
    jobs = [job(1), job(2)]
    parts = [jobs[0].SerializeToString(), b"\xff\xff\xff", jobs[1].SerializeToString()]
    assert list(jobs_in(dispatch_pb2.JobBatch(jobs=parts).SerializeToString())) == jobs
    assert list(jobs_in(b"\xff\xff\xff")) == []
