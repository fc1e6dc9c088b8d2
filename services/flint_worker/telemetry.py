"""The worker's metrics. Children are bound once; nothing here is labelled with an id."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Histogram

from flint_ops.metrics import counter, gauge, histogram

__all__ = [
    "APPENDS",
    "APPEND_RETRIES",
    "JOBS_REFUSED",
    "LEASE_RENEWALS",
    "LEGS_RUNNING",
    "LEGS_WAITING",
    "legs_ended",
    "step_seconds",
]

_LEGS = counter("worker_legs", "Legs that ended here, by how", ["outcome"])
_STEPS = histogram("worker_step_seconds", "Duration of executed calls", ["function", "state"])
APPENDS: Counter = counter("worker_appends", "Journal entries appended")
APPEND_RETRIES: Counter = counter("worker_append_retries", "Appends that had to be tried again")
JOBS_REFUSED = counter("worker_jobs_refused", "Jobs not taken, by why", ["reason"])
LEGS_RUNNING = gauge("worker_legs_running", "Legs that hold a slot")
LEGS_WAITING = gauge("worker_legs_waiting", "Legs that wait for a slot")
LEASE_RENEWALS = counter("worker_lease_renewals", "Heartbeats, by outcome", ["outcome"])


@lru_cache(maxsize=64)
def legs_ended(outcome: str) -> Counter:
    """Counter of legs that ended with this outcome."""
    return _LEGS.labels(outcome)


@lru_cache(maxsize=256)
def step_seconds(function: str, state: str) -> Histogram:
    """Histogram of one function's durations. Functions are a fixed set, states are `succeeded` and `failed`."""
    return _STEPS.labels(function, state)
