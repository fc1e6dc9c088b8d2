"""Names of subjects and streams. All begin with `flint.` or `FLINT_`."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

__all__ = [
    "BACKLOG",
    "DEFINITIONS",
    "EVENTS_STORE",
    "FLEET_BEATS",
    "FLEET_POOLS",
    "FLEET_QUARANTINES",
    "FLEET_SETTINGS",
    "FUNCTIONS_REGISTERED",
    "FUNCTION_OFFERS",
    "JOBS_STREAM",
    "LIFECYCLE_INTEREST",
    "NAMESPACES",
    "OWNERS",
    "PAYLOADS",
    "RECORD",
    "RESETS",
    "WORKFLOWS",
    "control_subject",
    "definition_subject",
    "events_stored_subject",
    "function_caller_subject",
    "function_free_subject",
    "function_gateway_subject",
    "function_offer_subject",
    "hints_subject",
    "job_subject",
    "journal_filter",
    "journal_lane_subject",
    "journal_stream",
    "journal_subject",
    "lifecycle_subject",
    "owner_subject",
    "permits_subject",
    "watcher_subject",
]

OWNERS: Final = "flint.owners"
"""Broadcast after a group changed hands: OwnerChanged."""

RESETS: Final = "flint.resets"
"""Broadcast to the gateways before the commit that takes a run back: ChangeBatch of names and the numbers of changes
below which what was said of them counts no more."""

WORKFLOWS: Final = "flint.workflows"
"""Broadcast among the schedulers after a version was stored or deleted: WorkflowsChanged."""

NAMESPACES: Final = "flint.namespaces"
"""Broadcast among the schedulers after settings of a namespace were changed: NamespaceChanged."""

BACKLOG: Final = "flint.backlog"
"""Published by each scheduler while anything waits or is executed: Backlog."""

FLEET_BEATS: Final = "flint.fleet.beats"
"""Broadcast by the registries: FleetBeats."""

FLEET_POOLS: Final = "flint.fleet.pools"
"""Broadcast by the leading registry: PoolOutlooks."""

FLEET_SETTINGS: Final = "flint.fleet.settings"
"""Broadcast by a registry after settings of a pool were changed: PoolChanged."""

FLEET_QUARANTINES: Final = "flint.fleet.quarantines"
"""Broadcast by the leading registry when a worker is quarantined: Quarantine."""

JOBS_STREAM: Final = "FLINT_JOBS"
"""The stream of assigned legs."""

RECORD: Final = "flint.record"
"""Workers ask any scheduler for a part of a run's record: RecordRequest."""

PAYLOADS: Final = "flint.payloads"
"""Where schedulers answer PayloadRequests."""

DEFINITIONS: Final = "flint.definitions.*"
"""Where schedulers answer DefinitionRequests."""


EVENTS_STORE: Final = "flint.events.store"
"""Where schedulers answer StoreEventsRequests of workers."""

LIFECYCLE_INTEREST: Final = "flint.lifecycle.interest"
"""Broadcast by gateways whose clients follow lifecycle events: LifecycleInterest."""


def journal_stream(generation: int) -> str:
    """Name of the stream of one generation of the journal (R11)."""
    return f"FLINT_JOURNAL_{generation}"


def journal_subject(generation: int, group: int, run_id: bytes) -> str:
    """Where a run's SEALs go, and the entries of its urgent legs."""
    return f"flint.journal.{generation}.{group}.{run_id.hex()}"


def journal_lane_subject(generation: int, group: int, lane: str) -> str:
    """Where entries of one worker's legs go. `lane` is hexadecimal and shorter than a run's id."""
    return f"flint.journal.{generation}.{group}.{lane}"


def journal_filter(generation: int, group: int | None = None) -> str:
    """All entries of a group, or of the whole generation."""
    return f"flint.journal.{generation}.>" if group is None else f"flint.journal.{generation}.{group}.*"


def job_subject(region: str, pool: str, incarnation: str) -> str:
    """Where one incarnation's jobs go."""
    return f"flint.jobs.{region}.{pool}.{incarnation}"


def control_subject(incarnation: str) -> str:
    """Where one incarnation answers ControlRequests."""
    return f"flint.control.{incarnation}"


def owner_subject(group: int) -> str:
    """Where the owner of a group hears OwnerNudges."""
    return f"flint.owner.{group}"


def permits_subject(bucket: int) -> str:
    """Where schedulers with runs that wait for permits hear PermitsFreed; a key's bucket is a hash of it."""
    return f"flint.permits.{bucket}"


def hints_subject(run: str) -> str:
    """Where a worker publishes StepHints. `run`: the run's id as in its resource name."""
    return f"flint.hints.{run}"


def definition_subject(definition_hash: bytes) -> str:
    """Where a compiled definition is asked for."""
    return f"flint.definitions.{definition_hash.hex()}"


def watcher_subject(token: str) -> str:
    """Where one gateway hears ChangeBatches."""
    return f"flint.watchers.{token}"


FUNCTIONS_REGISTERED: Final = "flint.functions.registered"
"""Broadcast by a gateway after functions were registered: FunctionsRegistered."""

FUNCTION_OFFERS: Final = "flint.functions.offer.>"
"""All FunctionOffers."""


def function_offer_subject(namespace: str, function: str) -> str:
    """Where calls of a custom function are offered."""
    return f"flint.functions.offer.{namespace}.{_name_hash(function)}"


def function_free_subject(namespace: str, function: str) -> str:
    """Where gateways tell that a function worker has room again."""
    return f"flint.functions.free.{namespace}.{_name_hash(function)}"


def function_caller_subject(token: str) -> str:
    """Where one worker hears FunctionReports."""
    return f"flint.functions.caller.{token}"


def function_gateway_subject(token: str) -> str:
    """Where one gateway hears FunctionOrders."""
    return f"flint.functions.gateway.{token}"


def _name_hash(function: str) -> str:
    return blake2b(function.encode(), digest_size=8).hexdigest()


def events_stored_subject(namespace: str) -> str:
    """Where those who follow a namespace's events hear EventsStored."""
    return f"flint.events.stored.{namespace}"


def lifecycle_subject(namespace: str) -> str:
    """Where a namespace's LifecycleEvents go."""
    return f"flint.lifecycle.of.{namespace}"
