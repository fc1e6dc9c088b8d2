"""The keys below `/<cluster>/`, in one place.

| key | value | lease |
|---|---|---|
| `schedulers/<id>` | the scheduler's address | the scheduler's |
| `groups/<n>` | id of the scheduler that may try to own the group | that scheduler's |
| `workers/<incarnation>` | `WorkerCard` | the worker's own |
| `drains/<incarnation>` | empty: the worker is asked to drain | the worker's own |
| `quarantines/<incarnation>` | `Quarantine`: why it is drained as an outlier | the worker's own |
| `departures/<incarnation>` | `WorkerCard`: the worker left by itself; its key did not run out | one of ten minutes |
| `registry/leader` | id of the registry that leads | that registry's |
| `store` | a random id of this etcd store, written once by whoever comes first | none |
"""

from __future__ import annotations

__all__ = [
    "DEPARTURES",
    "DRAINS",
    "GROUPS",
    "QUARANTINES",
    "REGISTRY_LEADER",
    "SCHEDULERS",
    "STORE",
    "WORKERS",
    "departure",
    "drain",
    "group",
    "quarantine",
    "scheduler",
    "worker",
]

SCHEDULERS = "schedulers/"
GROUPS = "groups/"
WORKERS = "workers/"
DRAINS = "drains/"
QUARANTINES = "quarantines/"
DEPARTURES = "departures/"
REGISTRY_LEADER = "registry/leader"
STORE = "store"


def scheduler(scheduler_id: str) -> str:
    """Key of a live scheduler."""
    return f"{SCHEDULERS}{scheduler_id}"


def group(number: int) -> str:
    """Key of a shard group's permitted owner."""
    return f"{GROUPS}{number}"


def worker(incarnation: str) -> str:
    """Key of a live worker."""
    return f"{WORKERS}{incarnation}"


def drain(incarnation: str) -> str:
    """Key that asks a worker to drain."""
    return f"{DRAINS}{incarnation}"


def quarantine(incarnation: str) -> str:
    """Key that says why a worker is drained as an outlier."""
    return f"{QUARANTINES}{incarnation}"


def departure(incarnation: str) -> str:
    """Key that says that a worker left by itself."""
    return f"{DEPARTURES}{incarnation}"
