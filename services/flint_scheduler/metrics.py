"""What the scheduler measures."""

from __future__ import annotations

from flint_ops.metrics import COUNT_BUCKETS, counter, gauge, histogram

__all__ = [
    "ACCEPTED",
    "AWAITS",
    "COMMITS_REFUSED",
    "COMMIT_ROWS",
    "ENTRIES",
    "EVENTS",
    "FOLD_LAG",
    "GENERATIONS",
    "GROUPS",
    "LEGS",
    "LEGS_OPENED",
    "MESSAGES_DELIVERED",
    "PERMITS",
    "PURGED",
    "QUEUE_DEPTH",
    "QUEUE_WAIT",
    "RETENTION_DELETED",
    "RETENTION_OLDEST",
    "RETENTION_SWEPT",
    "RUNS_ENDED",
    "RUNS_PARKED",
    "SCHEDULES",
    "SEALS",
    "STEP_DOWNS",
    "TAKEOVERS",
]

ACCEPTED = counter("scheduler_starts_accepted", "Starts answered")
AWAITS = counter("scheduler_awaits", "Awaits handed to their agent", ("what", "outcome"))
COMMITS_REFUSED = counter("scheduler_commits_refused", "Commits refused because another owner took over")
COMMIT_ROWS = histogram("scheduler_commit_rows", "Rows in one commit", ("lane",), COUNT_BUCKETS)
ENTRIES = counter("scheduler_journal_entries", "Journal entries judged", ("verdict",))
EVENTS = counter("scheduler_events", "Events stored, repeated, delivered to runs, left to the sweep", ("what",))
FOLD_LAG = histogram("scheduler_fold_lag_seconds", "From an entry's arrival to its commit")
GENERATIONS = counter("scheduler_journal_generations", "Journal generations opened because a store was lost")
GROUPS = gauge("scheduler_groups_owned", "Shard groups owned")
LEGS = gauge("scheduler_legs_open", "Legs open")
LEGS_OPENED = counter("scheduler_legs_opened", "Legs opened", ("pool",))
MESSAGES_DELIVERED = counter("scheduler_messages_delivered", "Messages sent to open legs, repeats included")
PERMITS = counter("scheduler_permit_requests", "Runs that asked for permits", ("answer",))
PURGED = counter("scheduler_journal_purged", "Folded messages removed from the journal's stream")
QUEUE_DEPTH = gauge("scheduler_queue_depth", "Runs that wait for a slot", ("pool", "level"))
QUEUE_WAIT = histogram("scheduler_queue_wait_seconds", "From ready to the leg's opening", ("pool", "level"))
RETENTION_DELETED = counter("scheduler_retention_deleted", "Rows deleted because they were kept long enough", ("what",))
RETENTION_OLDEST = gauge(
    "scheduler_retention_oldest_seconds", "Age of the oldest run past its time that something needs still; 0: none"
)
RETENTION_SWEPT = gauge("scheduler_retention_swept_timestamp_seconds", "When all old runs were looked at last")
RUNS_ENDED = counter("scheduler_runs_ended", "Runs that reached a terminal state", ("state",))
RUNS_PARKED = gauge("scheduler_runs_parked", "Runs that wait for a permit")
SCHEDULES = counter("scheduler_schedules", "What schedules did: started, missed, skipped and so on", ("outcome",))
SEALS = counter("scheduler_seals", "SEALs appended", ("reason",))
STEP_DOWNS = counter("scheduler_step_downs", "Times this replica lost or gave up all its groups", ("reason",))
TAKEOVERS = counter("scheduler_group_takeovers", "Groups taken over")
