from __future__ import annotations

import asyncio

import orjson
from worker_bench import Bench, https, noops

from flint_core.events import decode_events


async def test_ten_steps_are_ten_entries(bench: Bench) -> None:
    job = bench.job(bench.define(noops(10)))
    assert await bench.run(job) == "succeeded"
    entries = await bench.entries(job)
    assert [entry.index for entry in entries] == list(range(1, 11))
    assert all(len(decode_events(entry.events)) == 1 for entry in entries)
    assert entries[-1].end.WhichOneof("end") == "succeeded"
    assert orjson.loads(entries[-1].end.succeeded.output) == {"n": 9}
    assert {entry.leg_nonce for entry in entries} == {job.leg_nonce}
    assert {entry.claimant for entry in entries} == {job.claimant}
    calls = [step for entry in entries for step in entry.steps if step.kind == "call"]
    assert [step.step for step in calls] == [f"/do/{n}/step{n}" for n in range(10)]


async def test_pure_steps_cost_no_append(bench: Bench) -> None:
    job = bench.job(bench.define([{"a": {"set": {"x": 1}}}, {"b": {"set": {"y": "${ .x + 1 }"}}}]))
    assert await bench.run(job) == "succeeded"
    (entry,) = await bench.entries(job)
    assert orjson.loads(entry.end.succeeded.output) == {"y": 2}
    assert [step.step for step in entry.steps if step.kind == "set"] == ["/do/0/a", "/do/1/b"]
