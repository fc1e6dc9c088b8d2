"""Sixty simulated workers of one process: seen by all replicas, given jobs, heard in the journal, gone in order."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

from flint_bus import JOBS_STREAM, Bus, journal_stream
from flint_bus.subjects import job_subject, journal_filter
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.fleet.v1.fleet_pb2 import Worker
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_ops.config import JournalSettings, Settings
from support.simulated_fleet import FleetPlan, simulated_fleet

WORKERS = 60
SHARE = 20


def job_for(incarnation: str) -> dispatch_pb2.Job:
    return dispatch_pb2.Job(
        run_id=uuid.uuid4().bytes,
        leg=1,
        leg_nonce=os.urandom(16),
        claimant=incarnation,
        generation=1,
        group=0,
        owner_session=b"s" * 16,
        sequence=1,
        input=b"{}",
    )


async def test_simulated_workers_live_and_work_as_workers_do(start: Any, settings: Settings, eventually: Any) -> None:
    first, second = start("registry-1"), start("registry-2")
    bus = await Bus.connect(settings.nats, name="owner")
    await bus.create_jobs(JournalSettings(max_bytes=2**24))
    await bus.create_journal(1, JournalSettings(max_bytes=2**24))
    consumer = bus.consume(journal_stream(1), journal_filter(1))
    plan = FleetPlan(
        nats_urls=settings.nats.urls,
        nats_user=settings.nats.user,
        nats_password=settings.nats.password.get_secret_value(),
        registries=[first.settings.registry.listen, second.settings.registry.listen],
        token=settings.cluster.internal_token.get_secret_value(),
        workers=WORKERS,
        share=SHARE,
    )
    async with simulated_fleet(plan) as fleet:
        incarnations = {worker.incarnations[-1] for worker in fleet.workers}
        for each in (first, second):

            async def beaten(client: Any = each.client) -> bool:
                shown = await client.workers()
                return set(shown) == incarnations and all(w.HasField("heartbeat_time") for w in shown.values())

            await eventually(beaten)
        jobs = [job_for(incarnation) for incarnation in sorted(incarnations)]
        for job in jobs:
            await bus.append(
                job_subject("local", "default", job.claimant),
                job.SerializeToString(),
                msg_id=job.leg_nonce.hex(),
                stream=JOBS_STREAM,
                timeout_s=60,
            )
        ends: dict[bytes, str] = {}
        async with asyncio.timeout(60):
            while len(ends) < WORKERS:
                for message in await consumer.next_batch():
                    entry = journal_pb2.JournalEntry.FromString(message.data)
                    assert entry.end.WhichOneof("end") == "succeeded"
                    ends[entry.leg_nonce] = entry.claimant
        assert ends == {job.leg_nonce: job.claimant for job in jobs}
        assert fleet.legs == WORKERS
        assert fleet.lapses == 0
    await consumer.close()
    await bus.close()

    async def gone() -> bool:
        shown = await second.client.workers(ended=True)
        return {w.state for w in shown.values()} == {Worker.STATE_ENDED} and set(shown) == incarnations

    await eventually(gone)
