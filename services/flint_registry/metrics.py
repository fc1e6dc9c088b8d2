"""What a registry counts."""

from __future__ import annotations

from flint_ops.metrics import COUNT_BUCKETS, counter, gauge, histogram

__all__ = [
    "BEATS",
    "DECISIONS",
    "ENDS_SEEN",
    "LEADING",
    "LOST",
    "QUARANTINED",
    "REGISTRATIONS",
    "RENEWALS",
    "RETURNED",
    "WANTED",
    "WORKERS",
]

WORKERS = gauge("registry_workers", "Live workers, as this replica sees them", ("pool", "state"))
REGISTRATIONS = counter("registry_registrations", "Incarnations made by this replica")
RENEWALS = counter("registry_renewals", "Leases that this replica was asked to renew", ("outcome",))
BEATS = histogram("registry_heartbeat_batch", "Beats in one Heartbeat call", buckets=COUNT_BUCKETS)
LOST = counter("registry_workers_lost", "Workers whose lease ran out, recorded by this replica as leader", ("pool",))
LEADING = gauge("registry_leading", "1 while this replica leads")
ENDS_SEEN = counter("registry_ends_seen", "Leases revoked because the provisioner saw the process end", ("pool",))
DECISIONS = counter("registry_scaling_decisions", "Decisions of the autoscaler, by action", ("pool", "action"))
WANTED = gauge("registry_workers_wanted", "Workers that the autoscaler wants, while this replica leads", ("pool",))
RETURNED = counter("registry_workers_returned", "Workers that came back from a quarantine", ("pool",))
QUARANTINED = counter("registry_workers_quarantined", "Workers that were quarantined as outliers", ("pool",))
