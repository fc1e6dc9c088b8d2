"""Expected failures of the record.

StoreError
├── StoreUnavailable     PostgreSQL cannot be reached now, or did not answer in time: trying again may help
├── SchemaError          the schema and this build do not fit
│   ├── SchemaMissing        no migration has run yet
│   ├── SchemaTooOld         migrations of this build have not run
│   ├── SchemaTooNew         a newer build has migrated the schema beyond what this build understands
│   ├── ShardGroupsDiffer    cluster.shard_groups differs from what the first migration fixed
│   └── MigrationLocked      another migration holds the lock for too long
├── FunctionsFull        the namespace has as many functions as it may
├── NamespaceNotFound
├── WorkflowNotFound
├── VersionInvalid       not a semantic version
├── VersionExists        the version was applied before with other content
├── WorkflowInUse        unfinished runs use the version
├── CalendarNotFound     a schedule names a calendar that is not there
├── CalendarInUse        a schedule names the calendar
├── ScheduleNotFound
├── ScheduleConflict     it is there with other content, or was changed meanwhile, or does not allow this
├── KeyNotFound
├── KeyIdTaken           another key has the id
└── LastAdminKey         the cluster would have no administrator left
"""

from __future__ import annotations

__all__ = [
    "CalendarInUse",
    "CalendarNotFound",
    "FunctionsFull",
    "KeyIdTaken",
    "KeyNotFound",
    "LastAdminKey",
    "MigrationLocked",
    "NamespaceNotFound",
    "ScheduleConflict",
    "ScheduleNotFound",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "SchemaTooOld",
    "ShardGroupsDiffer",
    "StoreError",
    "StoreUnavailable",
    "VersionExists",
    "VersionInvalid",
    "WorkflowInUse",
    "WorkflowNotFound",
]


class StoreError(Exception):
    """Base of the record's expected failures. The message is fit to be shown to a user."""


class StoreUnavailable(StoreError):
    """PostgreSQL cannot be reached now or did not answer in time. A write that raises this may have happened."""


class SchemaError(StoreError):
    """The database's schema and this build do not fit together."""


class SchemaMissing(SchemaError):
    """No migration has run on this database."""


class SchemaTooOld(SchemaError):
    """Migrations that this build needs have not run."""


class SchemaTooNew(SchemaError):
    """A newer build has changed the schema beyond what this build understands."""


class ShardGroupsDiffer(SchemaError):
    """cluster.shard_groups was fixed by the first migration and is configured otherwise now."""


class MigrationLocked(SchemaError):
    """Another process has been migrating for longer than this one may wait."""


class FunctionsFull(StoreError):
    """The namespace has as many versions of functions as it may."""


class NamespaceNotFound(StoreError):
    """There is no such namespace."""


class WorkflowNotFound(StoreError):
    """There is no such workflow, or not this version of it."""


class VersionInvalid(StoreError):
    """The text is not a semantic version (semver.org 2.0.0)."""


class VersionExists(StoreError):
    """The same version was applied before with other content; versions are immutable."""


class WorkflowInUse(StoreError):
    """Runs that have not ended use the version."""


class KeyNotFound(StoreError):
    """There is no such key."""


class KeyIdTaken(StoreError):
    """The key id is used by a key with another secret, namespace or role."""


class LastAdminKey(StoreError):
    """It is the last working key with the cluster's admin role."""


class CalendarNotFound(StoreError):
    """There is no such calendar, and a schedule names it."""


class CalendarInUse(StoreError):
    """A schedule in force names the calendar, so it cannot be deleted."""


class ScheduleNotFound(StoreError):
    """There is no such schedule, calendar or backfill."""


class ScheduleConflict(StoreError):
    """The schedule is there with other content, was changed meanwhile, or does not allow what was asked."""
