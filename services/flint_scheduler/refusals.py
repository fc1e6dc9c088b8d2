"""The record's expected failures as refusals of RPCs: one place, used by every servicer that reads or writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from flint_rpc.errors import ErrorReason, Refused, component_unavailable, field_invalid
from flint_store import errors

__all__ = ["store_refusals"]

_REFUSALS: dict[type[errors.StoreError], tuple[grpc.StatusCode, ErrorReason.ValueType]] = {
    errors.FunctionsFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL),
    errors.NamespaceNotFound: (grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND),
    errors.WorkflowNotFound: (grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND),
    errors.VersionExists: (grpc.StatusCode.ALREADY_EXISTS, ErrorReason.ERROR_REASON_VERSION_EXISTS),
    errors.WorkflowInUse: (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_WORKFLOW_IN_USE),
    errors.CalendarNotFound: (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_CALENDAR_NOT_FOUND),
    errors.CalendarInUse: (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_CALENDAR_IN_USE),
    errors.ScheduleNotFound: (grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_SCHEDULE_NOT_FOUND),
    errors.ScheduleConflict: (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_SCHEDULE_CONFLICT),
    errors.KeyNotFound: (grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_KEY_NOT_FOUND),
    errors.LastAdminKey: (grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_LAST_ADMIN_KEY),
}


@contextmanager
def store_refusals() -> Iterator[None]:
    """Turns the record's expected failures inside the block into `Refused`; others pass: they are defects."""
    try:
        yield
    except errors.StoreUnavailable as error:
        raise component_unavailable("PostgreSQL", str(error).removeprefix("PostgreSQL: ")) from error
    except errors.VersionInvalid as error:
        raise field_invalid(("version", str(error))) from error
    except errors.KeyIdTaken as error:
        raise field_invalid(("key_id", str(error))) from error
    except errors.StoreError as error:
        known = _REFUSALS.get(type(error))
        if known is None:
            raise
        code, reason = known
        raise Refused(code, reason, str(error)) from error
