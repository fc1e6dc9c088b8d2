"""The worker's metrics. What is counted for each step or leg takes no lock; nothing here is labelled with an id."""

from __future__ import annotations

from flint_ops.metrics import Durations, Tally, counter, gauge

__all__ = [
    "APPENDS",
    "APPEND_RETRIES",
    "CALLS",
    "JOBS_REFUSED",
    "LEASE_RENEWALS",
    "LEGS_ENDED",
    "LEGS_RUNNING",
    "LEGS_WAITING",
]

LEGS_ENDED = Tally("worker_legs", "Legs that ended here, by how", "outcome")
CALLS = Durations("worker_step", "Duration of executed calls", ["function", "state"])
"""Functions are a fixed set, states are `succeeded` and `failed`."""
APPENDS = Tally("worker_appends", "Journal entries appended")
APPEND_RETRIES = counter("worker_append_retries", "Appends that had to be tried again")
JOBS_REFUSED = counter("worker_jobs_refused", "Jobs not taken, by why", ["reason"])
LEGS_RUNNING = gauge("worker_legs_running", "Legs that hold a slot")
LEGS_WAITING = gauge("worker_legs_waiting", "Legs that wait for a slot")
LEASE_RENEWALS = counter("worker_lease_renewals", "Heartbeats, by outcome", ["outcome"])
