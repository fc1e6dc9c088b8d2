"""Namespaces and the queue, as users of the client see them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2
from flint_sdk._messages import moment

__all__ = ["NamespaceSettings", "QueuedPool", "Retention", "pool_from", "retention_from", "settings_from"]

DEFAULT_WEIGHT = 100


@dataclass(frozen=True, slots=True)
class NamespaceSettings:
    """What a namespace may use, and the names it gave to levels. Quotas that are 0 are none.

    `weight`: its share of the slots against other namespaces, 100 unless told. `max_running`, `max_queued`: runs at a
    time. `starts_per_second`, `starts_burst`: how fast runs may be started. `retention_days`: how long ended runs are
    kept; 0: as long as the cluster says, -1: for ever.
    """

    namespace: str
    weight: int
    max_running: int
    max_queued: int
    starts_per_second: float
    starts_burst: int
    levels: dict[str, int]
    update_time: datetime | None
    retention_days: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended runs of a namespace are kept, and what was deleted so far. Seconds; 0 is for ever.

    `namespace_s` counts for workflows that say nothing; `workflows`: those that do. `last_sweep_time`: when the last
    part of the cluster had looked at all of its old runs; None: not all parts have yet.
    """

    namespace: str
    cluster_s: int
    namespace_s: int
    workflows: dict[str, int]
    runs_deleted: int
    rows_deleted: int
    last_deletion_time: datetime | None
    last_sweep_time: datetime | None
    oldest_run_time: datetime | None


@dataclass(frozen=True, slots=True)
class QueuedPool:
    """What waits for one pool (and region, "" is any). `ready`: by level; `held`: for a window, a moment or a quota.

    `waiting_for`: why the ready ones are not executed, beyond that all slots are taken.
    """

    pool: str
    region: str
    ready: tuple[int, ...]
    held: int
    oldest_wait_s: float
    running: int
    waiting_for: str


def settings_from(message: namespaces_pb2.NamespaceSettings) -> NamespaceSettings:
    """From the contract's message."""
    return NamespaceSettings(
        namespace=message.name.split("/")[1],
        weight=message.weight or DEFAULT_WEIGHT,
        max_running=message.max_running,
        max_queued=message.max_queued,
        starts_per_second=message.starts_per_second,
        starts_burst=message.starts_burst,
        levels={named.name: named.level for named in message.levels},
        update_time=moment(message, "update_time"),
        retention_days=message.retention_days,
    )


def pool_from(message: namespaces_pb2.QueuedPool) -> QueuedPool:
    """From the contract's message."""
    return QueuedPool(
        pool=message.pool,
        region=message.region,
        ready=tuple(message.ready),
        held=message.held,
        oldest_wait_s=message.oldest_wait_ms / 1000,
        running=message.running,
        waiting_for=message.waiting_for,
    )


def retention_from(namespace: str, message: namespaces_pb2.Retention) -> Retention:
    """From the contract's message."""
    return Retention(
        namespace=namespace,
        cluster_s=message.cluster_s,
        namespace_s=message.namespace_s,
        workflows={kept.workflow_id: kept.retention_s for kept in message.workflows},
        runs_deleted=message.runs_deleted,
        rows_deleted=message.rows_deleted,
        last_deletion_time=moment(message, "last_deletion_time"),
        last_sweep_time=moment(message, "last_sweep_time"),
        oldest_run_time=moment(message, "oldest_run_time"),
    )
